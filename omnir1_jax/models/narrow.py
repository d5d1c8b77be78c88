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


def jit(function: Callable[..., Any], **how: Any) -> Any:
    """`jax.jit(function, **how)` for positional arguments; on a CPU, parameters narrower than float32 are converted
    layer by layer. `lower` is that of the program that a call with these arguments runs."""
    usual, in_the_loop = jax.jit(function, **how), jax.jit(function, **how, compiler_options=IN_THE_LOOP)

    def chosen(args: Any) -> Any:
        narrow = any(isinstance(x, jax.Array) and x.ndim > 1 and _narrow(x) for x in jax.tree.leaves(args))
        return in_the_loop if narrow and jax.default_backend() == "cpu" else usual

    @functools.wraps(function)
    def run(*args: Any) -> Any:
        return chosen(args)(*args)

    run.lower = lambda *args: chosen(args).lower(*args)  # type: ignore[attr-defined]
    return run


def product(x: Num[Array, "..."], kernel: Num[Array, "..."], axes: int, **how: Any) -> Num[Array, "..."]:
    """`jnp.tensordot(x, kernel, axes, **how)`.

    On one CPU as a product of two matrices: of more axes XLA would move the activations in memory for the kernel's
    gradient. Of a single narrow row it would make a vector times a matrix, for which it first writes the matrix in
    float32, at seven times the seconds of two rows; so that row is put twice.
    """
    if not one_cpu():
        return jnp.tensordot(x, kernel, axes, **how)
    rows, columns = x.shape[: x.ndim - axes], kernel.shape[axes:]
    matrix = kernel.reshape(-1, math.prod(columns))
    x = x.reshape(-1, matrix.shape[0])
    if len(x) == 1 and x.dtype.itemsize < 4:
        y = jnp.matmul(jnp.concatenate([x, x]), matrix, **how)[0]
    else:
        y = jnp.matmul(x, matrix, **how)
    return y.reshape(*rows, *columns)


def _narrow(x: jax.Array) -> bool:
    return jnp.issubdtype(x.dtype, jnp.floating) and x.dtype.itemsize < 4
