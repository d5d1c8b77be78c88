"""The vision encoder: patches of images and frame pairs to one vector per cell."""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int, UInt8

from omnir1_jax.models.attention import Mask, attend
from omnir1_jax.models.layers import Linear, RMSNorm
from omnir1_jax.models.qwen_omni.config import VisionConfig
from omnir1_jax.models.qwen_omni.inputs import VisionInputs
from omnir1_jax.models.qwen_omni.rope import Rotary, rotate
from omnir1_jax.models.remat import ATTENTION_OUTPUT, remat

# CLIP's, which the released checkpoints' preprocessor_config.json names.
MEAN = np.array([0.48145466, 0.4578275, 0.40821073], np.float32)
STD = np.array([0.26862954, 0.26130258, 0.27577711], np.float32)


def patchify(
    pixels: UInt8[Array, "*b frames rows cols channels"], config: VisionConfig
) -> Float[Array, "*b patches columns"]:
    """Cells of raw pixels to normalised patches, float32.

    Patches go row by row through the cell; the columns of a patch are channel, frame, row, column: what the Hugging
    Face image processor puts into `pixel_values`.
    """
    m, p, t = config.spatial_merge_size, config.patch_size, config.temporal_patch_size
    x = (pixels.astype(jnp.float32) - 255 * MEAN) / (255 * STD)
    batch = x.shape[:-4]
    x = x.reshape(*batch, t, m, p, m, p, config.in_channels)
    n = len(batch)
    x = x.transpose(*range(n), n + 1, n + 3, n + 5, n, n + 2, n + 4)
    return x.reshape(*batch, m * m, config.in_channels * t * p * p)


class Spans(NamedTuple):
    """Lists of cells that attend among themselves.

    Attributes:
      cells: -1 padded.
      position: index of each cell in the flattened lists; 0 for cells in no list.
    """

    cells: Int[Array, "b spans size"]
    position: Int[Array, "b n"]


def spans_of(cells: Int[Array, "b spans size"], n: int) -> Spans:
    """The lists with their inverse, so that both directions are gathers."""
    flat = cells.reshape(cells.shape[0], -1)
    target = jnp.where(flat < 0, n, flat)  # n is out of range, hence dropped
    order = jnp.arange(flat.shape[1], dtype=jnp.int32)
    position = jax.vmap(lambda indices: jnp.zeros(n, jnp.int32).at[indices].set(order, mode="drop"))(target)
    return Spans(cells, position)


def attend_within(
    q: Float[Array, "b n m h d"],
    k: Float[Array, "b n m h d"],
    v: Float[Array, "b n m h d"],
    spans: Spans,
    implementation: str,
) -> Float[Array, "b n m h d"]:
    """Attention of the patches of each span's cells to one another. Cells in no span get finite values."""
    b, _, m, h, d = q.shape
    count, size = spans.cells.shape[1:]
    index = jnp.maximum(spans.cells, 0).reshape(b, count * size, 1, 1, 1)

    def gather(x):
        return jnp.take_along_axis(x, index, axis=1).reshape(b * count, size * m, h, d)

    keys = jnp.repeat(spans.cells.reshape(b * count, size) >= 0, m, axis=1)
    out = attend(gather(q), gather(k), gather(v), mask=Mask(keys=keys), implementation=implementation)
    return jnp.take_along_axis(out.reshape(b, count * size, m, h, d), spans.position[:, :, None, None, None], axis=1)


def axial_rotary(rows_cols: Int[Array, "b n 2"], config: VisionConfig) -> Rotary:
    """Angles of each patch, float32: the first half of the frequencies turns with its row, the second with its column.

    Rows and columns are counted in patches; the patches of a cell go row by row.
    """
    m = config.spatial_merge_size
    quarter = config.hidden_size // config.num_heads // 4
    frequencies = 1.0 / np.float32(config.rope_theta) ** (np.arange(quarter, dtype=np.float32) / quarter)
    within = np.indices((m, m)).reshape(2, m * m).T
    patches = (rows_cols[:, :, None] * m + within).astype(jnp.float32)
    angles = (patches[..., None] * frequencies).reshape(*patches.shape[:-1], 2 * quarter)
    return jnp.cos(angles), jnp.sin(angles)


class Block(nn.Module):
    """Attention in windows or in full frames, then a gated feed-forward; both with biases."""

    config: VisionConfig
    dtype: DTypeLike
    attention: str

    @nn.compact
    def __call__(
        self, x: Float[Array, "b n m d"], full_attention: Bool[Array, ""], angles: Rotary, windows: Spans, frames: Spans
    ):
        c = self.config
        head_dim = c.hidden_size // c.num_heads
        y = RMSNorm(c.hidden_size, c.rms_norm_eps, self.dtype, name="attention_norm")(x)
        shapes = (c.hidden_size,), (c.num_heads, head_dim), ("embed",), ("heads", "head_dim")
        q, k, v = (Linear(*shapes, use_bias=True, dtype=self.dtype, name=name)(y) for name in ("q", "k", "v"))
        q, k = (rotate(t.astype(jnp.float32), angles).astype(self.dtype) for t in (q, k))
        # One program for both kinds of block: the branch not taken costs nothing at run time.
        y = jax.lax.cond(
            full_attention,
            lambda: attend_within(q, k, v, frames, self.attention),
            lambda: attend_within(q, k, v, windows, self.attention),
        )
        y = checkpoint_name(y, ATTENTION_OUTPUT)
        shapes = (c.num_heads, head_dim), (c.hidden_size,), ("heads", "head_dim"), ("embed",)
        x = x + Linear(*shapes, use_bias=True, dtype=self.dtype, name="o")(y)

        y = RMSNorm(c.hidden_size, c.rms_norm_eps, self.dtype, name="mlp_norm")(x)
        shapes = (c.hidden_size,), (c.intermediate_size,), ("embed",), ("mlp",)
        gate, up = (Linear(*shapes, use_bias=True, dtype=self.dtype, name=name)(y) for name in ("gate", "up"))
        shapes = (c.intermediate_size,), (c.hidden_size,), ("mlp",), ("embed",)
        return x + Linear(*shapes, use_bias=True, dtype=self.dtype, name="down")(nn.silu(gate) * up), None


class PatchEmbed(nn.Module):
    """One matrix product: the reference's convolution has its kernel as its stride."""

    config: VisionConfig
    dtype: DTypeLike

    @nn.compact
    def __call__(self, patches: Float[Array, "*b columns"]) -> Float[Array, "*b d"]:
        c = self.config
        shape = (c.in_channels, c.temporal_patch_size, c.patch_size, c.patch_size, c.hidden_size)
        init = nn.with_logical_partitioning(nn.initializers.normal(0.02), (None, None, None, None, "embed"))
        kernel = self.param("kernel", init, shape).reshape(-1, c.hidden_size)
        return patches.astype(self.dtype) @ kernel.astype(self.dtype)


class VisionEncoder(nn.Module):
    """`VisionInputs` to one vector per cell, in the order of the cells; padding cells hold nothing of meaning.

    Attributes:
      dtype, remat, attention: as in `decoder.Decoder`.
    """

    config: VisionConfig
    dtype: DTypeLike = jnp.float32
    remat: str = "none"
    attention: str = "auto"

    @nn.compact
    def __call__(self, inputs: VisionInputs) -> Float[Array, "b n e"]:
        c = self.config
        patches = inputs.pixels
        if patches.dtype == jnp.uint8:
            patches = patchify(patches, c)
        x = PatchEmbed(c, self.dtype, name="patch_embed")(patches)
        b, n, m, d = x.shape
        blocks = nn.scan(
            remat(Block, self.remat),
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=(0, nn.broadcast, nn.broadcast, nn.broadcast),
            length=c.depth,
            metadata_params={nn.PARTITION_NAME: "layers"},
        )(c, self.dtype, self.attention, name="blocks")
        full_attention = jnp.asarray(np.isin(np.arange(c.depth), c.full_attention_blocks))
        spans = spans_of(inputs.windows, n), spans_of(inputs.frames, n)
        x, _ = blocks(x, full_attention, axial_rotary(inputs.rows_cols, c), *spans)

        x = RMSNorm(d, c.rms_norm_eps, self.dtype, name="merger_norm")(x).reshape(b, n, m * d)
        x = Linear((m * d,), (m * d,), ("embed",), ("mlp",), use_bias=True, dtype=self.dtype, name="merger_in")(x)
        x = nn.gelu(x, approximate=False)
        out = (m * d,), (c.out_hidden_size,), ("mlp",), ("embed",)
        return Linear(*out, use_bias=True, dtype=self.dtype, name="merger_out")(x)
