"""Programs and products that read narrow parameters, in little memory and fast on a CPU."""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Num

from omnir1_jax.parallel import one_cpu

# XLA's CPU backend computes in float32. From "convert a layer's slice" it makes "slice the converted stack", which does
# not depend on the layer any more, and moves that out of the loop: all layers in float32 at once.
IN_THE_LOOP = {"xla_disable_hlo_passes": "while-loop-invariant-code-motion"}


def jit(function: Callable[..., Any], **options: Any) -> Any:
    """`jax.jit(function, **options)` for positional arguments; on a CPU, parameters narrower than float32 are converted
    layer by layer. `lower` is that of the program that a call with these arguments runs."""
    plain, in_the_loop = jax.jit(function, **options), jax.jit(function, **options, compiler_options=IN_THE_LOOP)

    def program(args: Any) -> Any:
        narrow = any(isinstance(x, jax.Array) and x.ndim > 1 and _narrow(x) for x in jax.tree.leaves(args))
        return in_the_loop if narrow and jax.default_backend() == "cpu" else plain

    @functools.wraps(function)
    def run(*args: Any) -> Any:
        return program(args)(*args)

    run.lower = lambda *args: program(args).lower(*args)  # type: ignore[attr-defined]
    return run


def product(x: Num[Array, "..."], kernel: Num[Array, "..."], axes: int, **options: Any) -> Num[Array, "..."]:
    """`jnp.tensordot(x, kernel, axes, **options)`.

    On one CPU as a product of two matrices: with more axes XLA would move the activations in memory for the kernel's
    gradient. A single narrow row would become a vector times a matrix, for which XLA first converts the matrix to
    float32, seven times as slow as two rows; so that row is duplicated.
    """
    if not one_cpu():
        return jnp.tensordot(x, kernel, axes, **options)
    rows, columns = x.shape[: x.ndim - axes], kernel.shape[axes:]
    matrix = kernel.reshape(-1, math.prod(columns))
    x = x.reshape(-1, matrix.shape[0])
    if len(x) == 1 and x.dtype.itemsize < 4:
        y = jnp.matmul(jnp.concatenate([x, x]), matrix, **options)[0]
    else:
        y = jnp.matmul(x, matrix, **options)
    return y.reshape(*rows, *columns)


def _narrow(x: jax.Array) -> bool:
    return jnp.issubdtype(x.dtype, jnp.floating) and x.dtype.itemsize < 4
