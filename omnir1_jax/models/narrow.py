"""Programs and products that read narrow parameters, in little memory and fast on a CPU, and kernels stored for it."""

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Num

from omnir1_jax.parallel import one_cpu

# XLA's CPU backend computes in float32. From "convert a layer's slice" it makes "slice the converted stack", which does
# not depend on the layer any more, and moves that out of the loop: all layers in float32 at once.
IN_THE_LOOP = {"xla_disable_hlo_passes": "while-loop-invariant-code-motion"}
FEW_ROWS = 16  # narrow ones, such as a token of each answer, are multiplied by a kernel piece by piece
PIECE = 1 << 20  # values of such a piece
LARGE = 1 << 18  # values of a kernel that is worth a copy of another order


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


@flax.struct.dataclass
class Columns:
    """A kernel as a matrix, each of whose columns lies together in memory."""

    matrix: Float[Array, "columns rows"]
    shape: tuple[int, ...] = flax.struct.field(pytree_node=False)


def columns_together(variables: Any, input_axes: Mapping[str, int]) -> Any:
    """Variables of linear layers for a loop that multiplies a few rows by their kernels in every step, on one CPU.

    XLA multiplies 16 to 48 rows by large kernels that are stored so in half of the time. Narrow kernels stay as they
    are, since a product converts them piece by piece.

    Args:
      input_axes: number of axes that a layer contracts, by its name; others contract one.
    """

    def store(path: tuple, x: Array) -> Array | Columns:
        *_, layer, name = ("", *jax.tree_util.keystr(path, simple=True, separator="/").split("/"))
        if name != "kernel" or x.dtype != jnp.float32 or x.size < LARGE:
            return x
        columns = math.prod(x.shape[input_axes.get(layer, 1) :])
        return Columns(x.reshape(-1, columns).T, x.shape)

    # Without the barrier XLA would move `kernels` out of the loop, where both cancel.
    return jax.lax.optimization_barrier(jax.tree.map_with_path(store, variables))


def kernels(variables: Any) -> Any:
    """The variables that `columns_together` stored, for use within the loop."""
    is_stored = lambda x: isinstance(x, Columns)
    return jax.tree.map(lambda x: x.matrix.T.reshape(x.shape) if is_stored(x) else x, variables, is_leaf=is_stored)


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
