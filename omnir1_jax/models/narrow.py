"""Programs and products that read narrow parameters, in little memory and fast on a CPU."""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Num

from omnir1_jax.parallel import one_cpu

# XLA's CPU backend computes in float32. From "convert a layer's slice" it makes "slice the converted stack", which does
# not depend on the layer any more, and moves that out of the loop: all layers in float32 at once.
IN_THE_LOOP = {"xla_disable_hlo_passes": "while-loop-invariant-code-motion"}
FEW_ROWS = 16  # narrow ones, such as a token of each answer, are multiplied by a kernel piece by piece
PIECE = 1 << 20  # values of such a piece


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
    """`jnp.tensordot(x, kernel.astype(x.dtype), axes, **options)`.

    On one CPU as a product of two matrices: with more axes XLA would move the activations in memory for the kernel's
    gradient. A few narrow rows are multiplied by one piece of the kernel after the other: XLA would first convert all
    of it to float32 in memory, which takes longer than the product.
    """
    if not one_cpu():
        return jnp.tensordot(x, kernel.astype(x.dtype), axes, **options)
    rows, columns = x.shape[: x.ndim - axes], kernel.shape[axes:]
    matrix = kernel.reshape(-1, math.prod(columns))
    x = x.reshape(-1, matrix.shape[0])
    if len(x) <= FEW_ROWS and x.dtype.itemsize < 4:
        y = _by_pieces(x, matrix).astype(options.get("preferred_element_type", x.dtype))
    else:
        y = jnp.matmul(x, matrix.astype(x.dtype), **options)
    return y.reshape(*rows, *columns)


def _by_pieces(x: Num[Array, "n d"], matrix: Num[Array, "d m"]) -> Float[Array, "n m"]:
    """Sums in float32 over some of the matrix's rows at a time, which stay in the processor's cache."""
    size = len(matrix)
    count = next(n for n in range(min(max(matrix.size // PIECE, 1), size), size + 1) if size % n == 0)
    wide = lambda values: values.astype(x.dtype).astype(jnp.float32)
    add = lambda total, part: (total + jnp.matmul(wide(part[0]), wide(part[1])), None)
    parts = x.reshape(len(x), count, size // count).swapaxes(0, 1), matrix.reshape(count, size // count, -1)
    return jax.lax.scan(add, jnp.zeros((len(x), matrix.shape[1]), jnp.float32), parts)[0]


def _narrow(x: jax.Array) -> bool:
    return jnp.issubdtype(x.dtype, jnp.floating) and x.dtype.itemsize < 4
