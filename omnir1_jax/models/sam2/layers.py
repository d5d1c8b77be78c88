"""Small parts that every SAM 2 module is made of."""

import math
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from omnir1_jax.models import attention

NEVER = -1e30  # bias of a key that must not be seen; finite, so that a row without keys stays finite


def partitioned(init: Any, *names: str | None) -> Any:
    """An initialiser whose parameter carries logical axes."""
    return nn.with_logical_partitioning(init, names)


def precision(dtype: str) -> jax.lax.Precision | None:
    """fp32 means fp32 on every device: TPU would otherwise multiply in bf16."""
    return jax.lax.Precision.HIGHEST if dtype == "float32" else None


def activation(name: str) -> Any:
    """`gelu` is the exact one, as in torch."""
    return {"gelu": lambda x: jax.nn.gelu(x, approximate=False), "relu": jax.nn.relu}[name]


def project(
    x: Float[Array, "*b c"], kernel: Float[Array, "c d"], bias: Float[Array, " d"], dtype: str
) -> Float[Array, "*b d"]:
    """x @ kernel + bias; in bf16 summed in fp32 and rounded once, as torch does."""
    rows = x.astype(dtype).reshape(-1, x.shape[-1])  # the kernel's gradient is one plain product: 3 times faster on CPU
    y = jnp.matmul(rows, kernel.astype(dtype), precision=precision(dtype), preferred_element_type=jnp.float32)
    return (y + bias.astype(dtype)).astype(dtype).reshape(*x.shape[:-1], kernel.shape[1])


def pick(table: Float[Array, "k d"], index: Int[Array, "*b"]) -> Float[Array, "*b d"]:
    """`table[index]` without a gather: where `index` is a broadcast constant in a loop, XLA's CPU compiler (jax 0.10.2)
    has gathered wrong rows."""
    chosen = index[..., None, None] == jnp.arange(table.shape[0])[:, None]
    return jnp.sum(jnp.where(chosen, table, 0.0), axis=-2)


class Linear(nn.Module):
    """A dense layer; `axes` are the logical axes of its (in, out) kernel.

    `kernel_dims` leading ones keep the kernel in the shape of the 1x1 convolution that the checkpoint stores.
    """

    features: int
    dtype: str
    axes: tuple[str | None, str | None] = ("embed", "mlp")
    kernel_dims: int = 2

    @nn.compact
    def __call__(self, x: Float[Array, "*b c"]) -> Float[Array, "*b d"]:
        ones = (1,) * (self.kernel_dims - 2)
        init = partitioned(nn.initializers.lecun_normal(), *(None for _ in ones), *self.axes)
        kernel = self.param("kernel", init, (*ones, x.shape[-1], self.features))
        bias = self.param("bias", partitioned(nn.initializers.zeros, self.axes[1]), (self.features,))
        return project(x, kernel.reshape(x.shape[-1], self.features), bias, self.dtype)


class Conv(nn.Module):
    """A 2-D convolution over [b h w c] with explicit padding."""

    features: int
    kernel: int
    stride: int
    padding: int
    dtype: str

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b y x d"]:
        return nn.Conv(
            self.features,
            (self.kernel, self.kernel),
            (self.stride, self.stride),
            padding=((self.padding, self.padding), (self.padding, self.padding)),
            dtype=self.dtype,
            precision=precision(self.dtype),
            kernel_init=partitioned(nn.initializers.lecun_normal(), None, None, None, "embed"),
            bias_init=partitioned(nn.initializers.zeros, "embed"),
            conv_general_dilated=_conv_by_patches if self.stride >= self.kernel else None,
            name="conv",
        )(x)


def _conv_by_patches(
    x: Float[Array, "b h w c"],
    kernel: Float[Array, "k k c d"],
    strides: tuple[int, int],
    padding: Sequence[tuple[int, int]],
    *,
    precision: Any,
    **_,
) -> Float[Array, "b y x d"]:
    """A convolution whose patches do not overlap, as one matrix product: the gradient for its kernel, of a batch of
    videos, is a grouped convolution otherwise, 20 times as slow on CPU."""
    k, stride, (pad, _), (b, h, w, c) = kernel.shape[0], strides[0], padding[0], x.shape
    down, across = ((size + 2 * pad - k) // stride + 1 for size in (h, w))
    padding_of = lambda count, size: (pad, max(0, count * stride - size - pad))
    x = jnp.pad(x, ((0, 0), padding_of(down, h), padding_of(across, w), (0, 0)))[:, : down * stride, : across * stride]
    x = x.reshape(b, down, stride, across, stride, c)[:, :, :k, :, :k].swapaxes(2, 3)
    rows = x.reshape(b * down * across, k * k * c)
    return jnp.matmul(rows, kernel.reshape(k * k * c, -1), precision=precision).reshape(b, down, across, -1)


class DepthwiseConv(nn.Module):
    """One filter per channel, stride 1, as a sum of shifted maps: XLA fuses it, and has no fast grouped one on CPU."""

    kernel: int
    padding: int
    dtype: str

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b y x c"]:
        k, pad, (_, h, w, c) = self.kernel, self.padding, x.shape
        init = partitioned(nn.initializers.lecun_normal(), None, None, None, "embed")
        kernel = self.param("kernel", init, (k, k, 1, c)).astype(self.dtype).astype(jnp.float32)
        bias = self.param("bias", partitioned(nn.initializers.zeros, "embed"), (c,)).astype(self.dtype)
        x = jnp.pad(x.astype(self.dtype), ((0, 0), (pad, pad), (pad, pad), (0, 0)))
        rows, columns = h + 2 * pad - k + 1, w + 2 * pad - k + 1
        y = sum(x[:, i : i + rows, j : j + columns] * kernel[i, j, 0] for i in range(k) for j in range(k))
        return (y + bias).astype(self.dtype)


class PatchConv(nn.Module):
    """A convolution whose stride equals its kernel, as one matrix product over the patches."""

    features: int
    kernel: int
    dtype: str

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b y x d"]:
        k, (b, h, w, c) = self.kernel, x.shape
        init = partitioned(nn.initializers.lecun_normal(), None, None, None, "embed")
        kernel = self.param("kernel", init, (k, k, c, self.features))
        bias = self.param("bias", partitioned(nn.initializers.zeros, "embed"), (self.features,))
        x = x.reshape(b, h // k, k, w // k, k, c).transpose(0, 1, 3, 2, 4, 5).reshape(b, h // k, w // k, k * k * c)
        return project(x, kernel.reshape(k * k * c, self.features), bias, self.dtype)


class UpConv(nn.Module):
    """A transposed convolution with kernel and stride 2: every pixel becomes a 2x2 block.

    The kernel is stored the way `flax.linen.ConvTranspose` holds it: (2, 2, in, out), flipped against torch's.
    """

    features: int
    dtype: str

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b y x d"]:
        b, h, w, c = x.shape
        init = partitioned(nn.initializers.lecun_normal(), None, None, "embed", None)
        kernel = self.param("kernel", init, (2, 2, c, self.features))
        bias = self.param("bias", partitioned(nn.initializers.zeros, None), (self.features,))
        blocks = kernel[::-1, ::-1].transpose(2, 0, 1, 3).reshape(c, 4 * self.features)
        y = project(x, blocks, jnp.tile(bias, 4), self.dtype).reshape(b, h, w, 2, 2, self.features)
        return y.transpose(0, 1, 3, 2, 4, 5).reshape(b, 2 * h, 2 * w, self.features)


class Mlp(nn.Module):
    """`layers` dense layers with an activation between them."""

    hidden: int
    features: int
    layers: int
    dtype: str
    activation: str = "relu"

    @nn.compact
    def __call__(self, x: Float[Array, "*b c"]) -> Float[Array, "*b d"]:
        act = activation(self.activation)
        x = act(Linear(self.hidden, self.dtype, ("embed", "mlp"), name="proj_in")(x))
        for i in range(self.layers - 2):
            x = act(Linear(self.hidden, self.dtype, ("embed", "mlp"), name=f"layers_{i}")(x))
        return Linear(self.features, self.dtype, ("mlp", "embed"), name="proj_out")(x)


def norm(eps: float, dtype: str, name: str | None = None) -> nn.LayerNorm:
    """Layer norm with torch's two-pass variance, computed in fp32."""
    return nn.LayerNorm(
        epsilon=eps,
        dtype=dtype,
        use_fast_variance=False,
        scale_init=partitioned(nn.initializers.ones, "embed"),
        bias_init=partitioned(nn.initializers.zeros, "embed"),
        name=name,
    )


def attend(
    q: Float[Array, "b n h d"],
    k: Float[Array, "b m h d"],
    v: Float[Array, "b m h c"],
    *,
    dtype: str,
    score_limit: int,
    keys: Bool[Array, "b m"] | None = None,
) -> Float[Array, "b n h c"]:
    """Softmax attention with fp32 scores scaled by d**-0.5; `keys` are those that may be seen.

    In bfloat16 on TPU a fused kernel computes it where it pays. Elsewhere queries go through in the fewest equal
    pieces that keep at most `score_limit` scores alive.
    """
    (b, n, h, d), m = q.shape, k.shape[1]
    mask = attention.Mask(keys=keys)
    if dtype == "bfloat16" and attention.automatic(q, k, v, mask) == "splash":
        return attention.attend(q, k, v, mask=mask, implementation="splash")

    def piece(q: Float[Array, "b p h d"]) -> Float[Array, "b p h c"]:
        scores = jnp.einsum("bnhd,bmhd->bhnm", q, k, precision=precision(dtype), preferred_element_type=jnp.float32) * (
            d**-0.5
        )
        if keys is not None:
            scores = jnp.where(keys[:, None, None, :], scores, NEVER)
        weights = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
        return jnp.einsum("bhnm,bmhd->bnhd", weights, v, precision=precision(dtype))

    pieces = next(p for p in range(1, n + 1) if n % p == 0 and (p == n or b * h * (n // p) * m <= score_limit))
    if pieces == 1:
        return piece(q)
    out = jax.lax.map(piece, q.reshape(b, pieces, n // pieces, h, d).swapaxes(0, 1))
    return out.swapaxes(0, 1).reshape(b, n, h, -1)


def sine_position_2d(height: int, width: int, channels: int) -> Float[np.ndarray, "height width channels"]:
    """The fixed position encoding of feature maps and memories: half the channels for y, half for x.

    Coordinates 1..size are scaled to (0, 2 pi]; sine and cosine alternate, temperature 10000.
    """
    half = channels // 2
    rate = np.float32(10000.0) ** (2 * (np.arange(half, dtype=np.float32) // 2) / np.float32(half))

    def encode_axis(size: int) -> np.ndarray:
        position = np.arange(1, size + 1, dtype=np.float32) / np.float32(size + 1e-6) * np.float32(2 * math.pi)
        angle = position[:, None] / rate
        return np.stack((np.sin(angle[:, 0::2]), np.cos(angle[:, 1::2])), axis=-1).reshape(size, half)

    y = np.broadcast_to(encode_axis(height)[:, None], (height, width, half))
    x = np.broadcast_to(encode_axis(width)[None, :], (height, width, half))
    return np.concatenate((y, x), axis=-1).astype(np.float32)


def sine_position_1d(differences: Float[Array, "*b"], channels: int) -> Float[Array, "*b channels"]:
    """The encoding of a time difference: all sines, then all cosines, temperature 10000."""
    half = channels // 2
    rate = np.float32(10000.0) ** (2 * (np.arange(half, dtype=np.float32) // 2) / np.float32(half))
    angle = differences[..., None].astype(jnp.float32) / rate
    return jnp.concatenate((jnp.sin(angle), jnp.cos(angle)), axis=-1)
