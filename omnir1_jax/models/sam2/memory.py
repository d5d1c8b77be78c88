"""The memory: a frame and its mask become a memory; a frame attends to memories and object pointers."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from omnir1_jax.models.sam2.config import Sam2Config
from omnir1_jax.models.sam2.layers import (
    Conv,
    DepthwiseConv,
    Linear,
    activation,
    attend,
    norm,
    partitioned,
    project,
    sine_position_2d,
)

ATTENTION_EPS = 1e-5
ENCODER_EPS = 1e-6


def axial_rope(
    side: int, width: int, theta: float
) -> tuple[Float[np.ndarray, "n width"], Float[np.ndarray, "n width"]]:
    """Cosines and sines of positions on a side x side map: half the channels turn with x, half with y, in pairs."""
    rate = 1.0 / (np.float32(theta) ** (np.arange(0, width // 2, 2, dtype=np.float32) / np.float32(width // 2)))
    y, x = (a.reshape(-1).astype(np.float32) for a in np.meshgrid(np.arange(side), np.arange(side), indexing="ij"))
    angle = np.concatenate((x[:, None] * rate, y[:, None] * rate), axis=-1).repeat(2, axis=-1)
    return np.cos(angle), np.sin(angle)


class RotaryLinear(nn.Module):
    """A dense layer, its channels divided into heads and rotated by position in neighbouring pairs, in fp32.

    The other channel of each pair is computed a second time from the kernel's swapped columns, which gives the same
    numbers: swapping channels of the result instead takes a TPU longer than the attention itself.
    """

    features: int
    heads: int
    dtype: str

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "*b n c"],
        rotary: tuple[Float[np.ndarray, "n d"], Float[np.ndarray, "n d"]] | None = None,
    ) -> Float[Array, "*b n h d"]:
        init = partitioned(nn.initializers.lecun_normal(), "embed", "heads")
        kernel = self.param("kernel", init, (x.shape[-1], self.features))
        bias = self.param("bias", partitioned(nn.initializers.zeros, "heads"), (self.features,))
        split = lambda y: y.reshape(*x.shape[:-1], self.heads, -1)
        if rotary is None:
            return split(project(x, kernel, bias, self.dtype))
        y = project(x, kernel, bias, self.dtype).astype(jnp.float32)
        partner = project(x, _partners(kernel), _partners(bias), self.dtype).astype(jnp.float32)
        cos, sin = (angle[:, None] for angle in rotary)
        return (split(y) * cos + split(partner) * sin).astype(self.dtype)


def _partners(x: Float[Array, "*b d"]) -> Float[Array, "*b d"]:
    """(a, b) of each pair of neighbours as (-b, a)."""
    pairs = x.reshape(*x.shape[:-1], -1, 2)
    return jnp.stack((-pairs[..., 1], pairs[..., 0]), axis=-1).reshape(x.shape)


class RopeAttention(nn.Module):
    """Attention whose keys are maps (with rotary position) followed by tokens (without)."""

    config: Sam2Config

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b n d"],
        map_keys: Float[Array, "b s n c"],
        map_values: Float[Array, "b s n c"],
        token_keys: Float[Array, "b p c"] | None = None,
        token_values: Float[Array, "b p c"] | None = None,
        seen: Bool[Array, "b m"] | None = None,
    ) -> Float[Array, "b n d"]:
        config, dtype, heads = self.config, self.config.dtype, self.config.attention_heads
        inner = config.width // config.attention_downsample
        b, s, n, c = map_keys.shape
        rotary = axial_rope(config.grid, inner // heads, config.rope_theta)
        q_proj, k_proj = (RotaryLinear(inner, heads, dtype, name=name) for name in ("q_proj", "k_proj"))
        v_proj = Linear(inner, dtype, ("embed", "heads"), name="v_proj")
        q = q_proj(x, rotary)
        k = k_proj(map_keys, rotary).reshape(b, s * n, heads, -1)
        v = map_values.reshape(b, s * n, c)
        if token_keys is not None:
            k = jnp.concatenate((k, k_proj(token_keys)), axis=1)
            v = jnp.concatenate((v, token_values), axis=1)
        # The weights of one head's keys add up to 1, so that it may project the sum of narrow values.
        late = heads == 1 and c < inner
        v = v[:, :, None] if late else v_proj(v).reshape(b, -1, heads, inner // heads)
        out = attend(q, k, v, dtype=dtype, score_limit=config.score_limit, keys=seen).reshape(b, n, -1)
        return Linear(config.width, dtype, ("heads", "embed"), name="o_proj")(v_proj(out) if late else out)


class MemoryAttentionLayer(nn.Module):
    """Self-attention, attention to the memory, MLP; all pre-norm."""

    config: Sam2Config

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b n d"],
        map_keys: Float[Array, "b s n c"],
        map_values: Float[Array, "b s n c"],
        token_keys: Float[Array, "b p c"],
        token_values: Float[Array, "b p c"],
        seen: Bool[Array, "b m"],
    ) -> Float[Array, "b n d"]:
        config, dtype = self.config, self.config.dtype
        y = norm(ATTENTION_EPS, dtype, "norm1")(x)
        x = x + RopeAttention(config, name="self_attn")(y, y[:, None], y[:, None])
        y = norm(ATTENTION_EPS, dtype, "norm2")(x)
        x = x + RopeAttention(config, name="cross_attn")(y, map_keys, map_values, token_keys, token_values, seen)
        y = norm(ATTENTION_EPS, dtype, "norm3")(x)
        y = activation(config.attention_activation)(Linear(config.attention_mlp, dtype, name="linear1")(y))
        return x + Linear(config.width, dtype, ("mlp", "embed"), name="linear2")(y)


class MemoryAttention(nn.Module):
    """Conditions a frame's map on memories and pointers. The layers are stacked."""

    config: Sam2Config

    @nn.compact
    def __call__(
        self,
        frame: Float[Array, "b h w d"],
        maps: Float[Array, "b s n c"],
        map_positions: Float[Array, "b s n c"],
        tokens: Float[Array, "b p c"],
        token_positions: Float[Array, "b p c"],
        seen: Bool[Array, "b m"],
    ) -> Float[Array, "b h w d"]:
        config, dtype = self.config, self.config.dtype
        b, h, w, d = frame.shape
        x = frame + 0.1 * sine_position_2d(h, w, d).astype(dtype)
        layers = nn.scan(
            lambda layer, x, *memory: (layer(x, *memory), None),
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=nn.broadcast,
            length=config.attention_layers,
            metadata_params={nn.PARTITION_NAME: "layers"},
        )
        maps, map_positions, tokens, token_positions = (
            a.astype(dtype) for a in (maps, map_positions, tokens, token_positions)
        )
        x, _ = layers(
            MemoryAttentionLayer(config, name="layers"),
            x.reshape(b, h * w, d),
            maps + map_positions,
            maps,
            tokens + token_positions,
            tokens,
            seen,
        )
        return norm(ATTENTION_EPS, dtype, "norm")(x).reshape(b, h, w, d)


class FuserBlock(nn.Module):
    """A ConvNeXt block."""

    config: Sam2Config

    @nn.compact
    def __call__(self, x: Float[Array, "b h w d"]) -> Float[Array, "b h w d"]:
        config, dtype, width = self.config, self.config.dtype, self.config.width
        y = DepthwiseConv(config.fuser_kernel, config.fuser_padding, dtype, name="depthwise")(x)
        y = norm(ENCODER_EPS, dtype, "norm")(y)
        y = activation(config.fuser_activation)(Linear(config.fuser_mlp, dtype, name="pointwise1")(y))
        y = Linear(width, dtype, ("mlp", "embed"), name="pointwise2")(y)
        scale = self.param("scale", partitioned(nn.initializers.constant(1e-6), "embed"), (width,))
        return x + scale.astype(dtype) * y


class MemoryEncoder(nn.Module):
    """A frame's map and a mask at the input side to a memory."""

    config: Sam2Config

    @nn.compact
    def __call__(self, frame: Float[Array, "b h w d"], mask: Float[Array, "b s s"]) -> Float[Array, "b h w c"]:
        config, dtype = self.config, self.config.dtype
        x, act = mask[..., None].astype(dtype), activation(config.mask_activation)
        for i in range(config.mask_layers):
            channels = x.shape[-1] * config.mask_stride**2
            x = Conv(channels, config.mask_kernel, config.mask_stride, config.mask_padding, dtype, name=f"mask_{i}")(x)
            x = act(norm(ENCODER_EPS, dtype, f"mask_norm_{i}")(x))
        x = Linear(config.width, dtype, (None, "embed"), 4, name="mask_out")(x)
        x = x + Linear(config.width, dtype, (None, "embed"), 4, name="frame")(frame)
        for i in range(config.fuser_layers):
            x = FuserBlock(config, name=f"fuser_{i}")(x)
        return Linear(config.memory_channels, dtype, ("embed", None), 4, name="out")(x)


def mask_for_memory(
    logits: Float[Array, "b y x"], binary: bool, side: int, scale: float, bias: float
) -> Float[Array, "b side side"]:
    """Mask logits for the memory encoder: resized to `side`, squashed to [0, 1] (or thresholded at 0), scaled."""
    b = logits.shape[0]
    lifted = jax.image.resize(logits, (b, side, side), "linear", antialias=False)
    mask = (lifted > 0).astype(logits.dtype) if binary else jax.nn.sigmoid(lifted)
    return mask * scale + bias
