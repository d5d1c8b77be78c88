"""The image encoder: Hiera, a hierarchical ViT with windows, and the feature pyramid on top of it."""

from typing import NamedTuple

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from omnir1_jax.errors import InputError
from omnir1_jax.models.sam2.config import BlockSpec, HieraConfig, Sam2Config
from omnir1_jax.models.sam2.layers import Conv, Linear, Mlp, attend, norm, partitioned


class Features(NamedTuple):
    """What the rest of the model knows of a frame; strides 4, 8 and 16."""

    fine: Float[Array, "*t h4 w4 d8"]
    middle: Float[Array, "*t h8 w8 d4"]
    coarse: Float[Array, "*t h w d"]


def bicubic_matrix(size: int, out: int) -> Float[np.ndarray, "out size"]:
    """Rows of weights that resize `size` samples to `out` as torch does: cubic with a = -0.75, edges repeated."""
    a, matrix = -0.75, np.zeros((out, size))
    for i in range(out):
        x = (i + 0.5) * size / out - 0.5
        floor = int(np.floor(x))
        for k in range(-1, 3):
            u = abs(x - floor - k)
            near = (a + 2) * u**3 - (a + 3) * u**2 + 1
            far = a * u**3 - 5 * a * u**2 + 8 * a * u - 4 * a
            matrix[i, min(max(floor + k, 0), size - 1)] += near if u <= 1 else far
    return matrix.astype(np.float32)


def pool(x: Float[Array, "b h w c"]) -> Float[Array, "b y x c"]:
    """2x2 max pooling; an odd last row or column is dropped."""
    b, h, w, c = x.shape
    h, w = h // 2, w // 2
    return x[:, : 2 * h, : 2 * w].reshape(b, h, 2, w, 2, c).max(axis=(2, 4))


def partition(x: Float[Array, "b h w c"], window: int) -> Float[Array, "n window window c"]:
    """Splits maps into windows, zeros added below and to the right where the window does not divide the map."""
    b, h, w, c = x.shape
    x = jnp.pad(x, ((0, 0), (0, -h % window), (0, -w % window), (0, 0)))
    y = x.reshape(b, x.shape[1] // window, window, x.shape[2] // window, window, c)
    return y.transpose(0, 1, 3, 2, 4, 5).reshape(-1, window, window, c)


def unpartition(x: Float[Array, "n k k c"], height: int, width: int) -> Float[Array, "b height width c"]:
    """The inverse of `partition` for maps of `height` x `width`; padding is removed."""
    n, window, _, c = x.shape
    rows, columns = -(-height // window), -(-width // window)
    y = x.reshape(n // (rows * columns), rows, columns, window, window, c).transpose(0, 1, 3, 2, 4, 5)
    return y.reshape(-1, rows * window, columns * window, c)[:, :height, :width]


class WindowAttention(nn.Module):
    """Self-attention over all positions of each map; with `pool` the queries are max-pooled 2x2 first."""

    spec: BlockSpec
    dtype: str
    score_limit: int

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b y x d"]:
        b, dim, heads = x.shape[0], self.spec.dim, self.spec.heads
        qkv = Linear(3 * dim, self.dtype, ("embed", "heads"), name="qkv")(x)
        q, k, v = jnp.split(qkv, 3, axis=-1)
        if self.spec.pool:
            q = pool(q)
        _, y, x_, _ = q.shape
        q, k, v = (a.reshape(b, -1, heads, dim // heads) for a in (q, k, v))
        out = attend(q, k, v, dtype=self.dtype, score_limit=self.score_limit)
        return Linear(dim, self.dtype, ("heads", "embed"), name="proj")(out.reshape(b, y, x_, dim))


class Block(nn.Module):
    """One Hiera block: windowed or global attention, then an MLP, both pre-norm with a skip."""

    spec: BlockSpec
    hiera: HieraConfig
    dtype: str
    score_limit: int

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b y x d"]:
        spec, hiera = self.spec, self.hiera
        y = norm(hiera.eps, self.dtype, "norm1")(x)
        if spec.dim != spec.dim_in:
            x = Linear(spec.dim, self.dtype, (None, "embed"), name="proj")(y)
            x = pool(x) if spec.pool else x
        h, window = y.shape[1], spec.window
        if window and spec.pool and -(-(h // 2) // (window // 2)) != -(-h // window):
            raise InputError(f"SAM 2: pooled windows of {window} do not tile a map of height {h}; use another side")
        y = WindowAttention(spec, self.dtype, self.score_limit, name="attn")(partition(y, window) if window else y)
        y = unpartition(y, x.shape[1], x.shape[2]) if window else y
        x = x + y
        hidden = int(spec.dim * hiera.mlp_ratio)
        mlp = Mlp(hidden, spec.dim, 2, self.dtype, hiera.activation, name="mlp")
        return x + mlp(norm(hiera.eps, self.dtype, "norm2")(x))


class ImageEncoder(nn.Module):
    """Normalised pixels to `Features`.

    Runs of equal blocks are one scanned module, so that the large size's 48 blocks compile as 13 bodies.
    """

    config: Sam2Config

    @nn.compact
    def __call__(self, pixels: Float[Array, "t s s 3"]) -> Features:
        config, hiera, dtype = self.config, self.config.hiera, self.config.dtype
        x = Conv(hiera.dims[0], hiera.patch_kernel, hiera.patch_stride, hiera.patch_padding, dtype, name="patch")(
            pixels.astype(dtype)
        )
        x = x + self.position(x.shape[1], x.shape[2]).astype(dtype)
        stages = []
        for run in hiera.runs():
            if run.count == 1:
                x = Block(run.spec, hiera, dtype, config.score_limit, name=run.name)(x)
            else:
                scan = nn.scan(
                    lambda block, x, _: (block(x), None),
                    variable_axes={"params": 0},
                    split_rngs={"params": True},
                    length=run.count,
                    metadata_params={nn.PARTITION_NAME: "layers"},
                )
                x, _ = scan(Block(run.spec, hiera, dtype, config.score_limit, name=run.name), x, None)
            if run.ends_stage:
                stages.append(x)
        levels: list = [None] * len(stages)
        for level in reversed(range(len(stages))):
            y = Linear(config.width, dtype, (None, "embed"), 4, name=f"lateral_{level}")(stages[level])
            if level in config.top_down_levels and level + 1 < len(stages):
                y = y + levels[level + 1].repeat(2, axis=1).repeat(2, axis=2)
            levels[level] = y
        fine = Linear(config.width // 8, dtype, ("embed", None), 4, name="fine")(levels[0])
        middle = Linear(config.width // 4, dtype, ("embed", None), 4, name="middle")(levels[1])
        return Features(fine, middle, levels[2])

    def position(self, height: int, width: int) -> Float[Array, "height width c"]:
        """A small learnt map resized to the grid, plus a learnt window repeated over it."""
        hiera = self.config.hiera
        init = partitioned(nn.initializers.zeros, None, "embed", None, None)
        coarse = self.param("position", init, (1, hiera.dims[0], *hiera.background))
        window = self.param("window_position", init, (1, hiera.dims[0], hiera.windows[0], hiera.windows[0]))
        coarse, window = (a[0].transpose(1, 2, 0).astype(jnp.float32) for a in (coarse, window))
        rows, columns = bicubic_matrix(coarse.shape[0], height), bicubic_matrix(coarse.shape[1], width)
        resized = jnp.einsum("yi,xj,ijc->yxc", rows, columns, coarse, precision="highest")
        return resized + jnp.tile(window, (height // window.shape[0], width // window.shape[1], 1))
