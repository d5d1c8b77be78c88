"""Linear layer and RMSNorm with named axes, shared by the decoder and the encoders."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from omnir1_jax.models import quantise
from omnir1_jax.models.narrow import product


class Linear(nn.Module):
    """`x @ kernel (+ bias)` over the last `len(in_shape)` axes of x, plus `(x @ a) @ b` where a LoRA adapter is given.

    The adapter comes in the variable collection "lora" beside "params" (`omnir1_jax.models.lora`), or in "params"
    beside a quantised kernel, into which it cannot be merged.

    Attributes:
      in_shape, out_shape: sizes of the contracted axes and of those that replace them.
      in_axes, out_axes: their logical names (`omnir1_jax.parallel.rules`).
    """

    in_shape: tuple[int, ...]
    out_shape: tuple[int, ...]
    in_axes: tuple[str | None, ...]
    out_axes: tuple[str | None, ...]
    use_bias: bool = False
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        axes = len(self.in_shape)

        def fan_in_normal(key, shape, dtype=jnp.float32):
            return jax.random.normal(key, shape, dtype) / math.sqrt(math.prod(self.in_shape))

        x = x.astype(self.dtype)
        if self.has_variable("params", quantise.SCALES):
            kernel, scales = (self.get_variable("params", name) for name in ("kernel", quantise.SCALES))
            y = quantise.product(x, kernel, scales, self.in_shape, self.dtype)
        else:
            kernel = self.param(
                "kernel",
                nn.with_logical_partitioning(fan_in_normal, (*self.in_axes, *self.out_axes)),
                (*self.in_shape, *self.out_shape),
            )
            y = product(x, kernel, axes)
        if self.use_bias:
            bias = self.param(
                "bias", nn.with_logical_partitioning(nn.initializers.zeros, self.out_axes), self.out_shape
            )
            y = y + bias.astype(self.dtype)
        for collection in ("lora", "params"):
            if self.has_variable(collection, "a"):
                a, b = (self.get_variable(collection, name).astype(self.dtype) for name in "ab")
                y = y + jnp.tensordot(jnp.tensordot(x, a, axes), b, 1)
        return y


class RMSNorm(nn.Module):
    """x / rms(x) in float32, cast back, then times the scale: the order of roundings of the reference."""

    size: int
    eps: float = 1e-6
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "*b d"]) -> Float[Array, "*b d"]:
        scale = self.param("scale", nn.with_logical_partitioning(nn.initializers.ones, ("norm",)), (self.size,))
        y = x.astype(jnp.float32)
        y = y * jax.lax.rsqrt(jnp.mean(jnp.square(y), axis=-1, keepdims=True) + self.eps)
        return scale.astype(self.dtype) * y.astype(self.dtype)
