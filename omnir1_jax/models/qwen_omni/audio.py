"""The audio encoder: mel spectrograms in chunks of two seconds to 25 vectors per second."""

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

from omnir1_jax.models.attention import Mask, attend
from omnir1_jax.models.layers import Linear
from omnir1_jax.models.qwen_omni.config import AudioConfig
from omnir1_jax.models.qwen_omni.inputs import AudioInputs
from omnir1_jax.models.remat import ATTENTION_OUTPUT, remat


def sinusoids(length: int, channels: int) -> Float[np.ndarray, "length channels"]:
    """Fixed position embedding, sines then cosines, wavelengths from 2 pi to 2 pi * 10,000."""
    half = channels // 2
    frequencies = np.exp(-np.log(10000.0) / (half - 1) * np.arange(half)).astype(np.float32)
    angles = np.arange(length, dtype=np.float32)[:, None] * frequencies
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=1)


def layer_norm(dtype: DTypeLike, name: str) -> nn.LayerNorm:
    """With the reference's epsilon, and the variance from centred values as torch takes it."""
    return nn.LayerNorm(
        epsilon=1e-5,
        dtype=dtype,
        use_fast_variance=False,
        scale_init=nn.with_logical_partitioning(nn.initializers.ones, ("norm",)),
        bias_init=nn.with_logical_partitioning(nn.initializers.zeros, ("norm",)),
        name=name,
    )


class Conv(nn.Module):
    """Convolution over time, kernel 3, one frame of zeros on either side."""

    features: int
    stride: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Float[Array, "b t c"]) -> Float[Array, "b u d"]:
        init = nn.with_logical_partitioning(nn.initializers.lecun_normal(), (None, None, "embed"))
        kernel = self.param("kernel", init, (3, x.shape[-1], self.features))
        bias = self.param("bias", nn.with_logical_partitioning(nn.initializers.zeros, ("embed",)), (self.features,))
        y = lax.conv_general_dilated(
            x.astype(self.dtype),
            kernel.astype(self.dtype),
            window_strides=(self.stride,),
            padding=((1, 1),),
            dimension_numbers=("NWC", "WIO", "NWC"),
        )
        return y + bias.astype(self.dtype)


class Block(nn.Module):
    """Pre-norm attention within a chunk, then the feed-forward; the keys have no bias."""

    config: AudioConfig
    dtype: DTypeLike
    attention: str

    @nn.compact
    def __call__(self, x: Float[Array, "c t d"], keys: Bool[Array, "c t"]):
        c = self.config
        head_dim = c.d_model // c.num_heads
        y = layer_norm(self.dtype, "attention_norm")(x)
        shapes = (c.d_model,), (c.num_heads, head_dim), ("embed",), ("heads", "head_dim")
        q, k, v = (Linear(*shapes, use_bias=name != "k", dtype=self.dtype, name=name)(y) for name in ("q", "k", "v"))
        y = attend(q, k, v, mask=Mask(keys=keys), implementation=self.attention)
        y = checkpoint_name(y, ATTENTION_OUTPUT)
        shapes = (c.num_heads, head_dim), (c.d_model,), ("heads", "head_dim"), ("embed",)
        x = x + Linear(*shapes, use_bias=True, dtype=self.dtype, name="o")(y)

        y = layer_norm(self.dtype, "mlp_norm")(x)
        y = Linear((c.d_model,), (c.ffn_dim,), ("embed",), ("mlp",), use_bias=True, dtype=self.dtype, name="fc1")(y)
        y = nn.gelu(y, approximate=False)
        y = Linear((c.ffn_dim,), (c.d_model,), ("mlp",), ("embed",), use_bias=True, dtype=self.dtype, name="fc2")(y)
        return x + y, None


class AudioEncoder(nn.Module):
    """`AudioInputs` to one vector per audio token; padding tokens hold nothing of meaning.

    Attributes:
      dtype, remat, attention: as in `decoder.Decoder`.
    """

    config: AudioConfig
    dtype: DTypeLike = jnp.float32
    remat: str = "none"
    attention: str = "auto"

    @nn.compact
    def __call__(self, inputs: AudioInputs) -> Float[Array, "b a e"]:
        c = self.config
        # The released checkpoints hold this table and no forward pass reads it; it is here to be exported again.
        self.param(
            "bos_eos",
            nn.with_logical_partitioning(nn.initializers.normal(0.02), (None, "embed")),
            (2, c.output_dim),
        )
        b, chunks, frames, bins = inputs.mel.shape
        lengths = inputs.lengths.reshape(b * chunks, 1)
        x = Conv(c.d_model, 1, self.dtype, name="conv1")(inputs.mel.reshape(b * chunks, frames, bins))
        x = nn.gelu(x, approximate=False) * (jnp.arange(frames) < lengths)[..., None].astype(self.dtype)
        x = nn.gelu(Conv(c.d_model, 2, self.dtype, name="conv2")(x), approximate=False)
        x = x + jnp.asarray(sinusoids(x.shape[1], c.d_model), self.dtype)

        keys = jnp.arange(x.shape[1]) < (lengths - 1) // 2 + 1
        blocks = nn.scan(
            remat(Block, self.remat),
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=nn.broadcast,
            length=c.num_layers,
            metadata_params={nn.PARTITION_NAME: "layers"},
        )(c, self.dtype, self.attention, name="blocks")
        x, _ = blocks(x, keys)

        x = x.reshape(b, -1, c.d_model)
        pairs = jnp.maximum(inputs.pairs, 0).reshape(b, -1, 1)
        x = jnp.take_along_axis(x, pairs, axis=1).reshape(b, -1, 2, c.d_model)
        x = (x[:, :, 0] + x[:, :, 1]) / 2
        x = layer_norm(self.dtype, "post_norm")(x)
        shapes = (c.d_model,), (c.output_dim,), (None,), ("embed",)
        return Linear(*shapes, use_bias=True, dtype=self.dtype, name="proj")(x)
