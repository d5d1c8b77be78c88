"""Work that each device does by itself on its rows of a batch."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.sharding import PartitionSpec

from omnir1_jax.parallel.mesh import BATCH


def rowwise(function: Callable[..., Any], shared: Any, *rows: Any, columns: Sequence[Any] = ()) -> Any:
    """`function(shared, *rows, *columns)`, `shared` brought to every device once and nothing moved while it runs.

    For what a compiler would otherwise cut along the weights, which moves every activation. Loops that end by the data
    end on each device by themselves. Without a mesh (`jax.set_mesh`), or where the rows do not divide over it, the
    function is called as it is.

    Args:
      function: of rows that do not depend on one another; its results are rows too.
      rows: trees of arrays, each with the batch in front.
      columns: such trees whose second axis (and then that of the results) holds what does not depend on one another
        either; it is cut over `tensor` where it divides, what comes of the rows alone being done by each of these.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.are_all_axes_manual:
        return function(shared, *rows, *columns)
    axes = tuple(axis for axis in BATCH if axis in mesh.shape)
    parts = math.prod(mesh.shape[axis] for axis in axes)
    if any(x.shape[0] % parts for x in jax.tree.leaves((rows, columns))):
        return function(shared, *rows, *columns)
    whole, row = PartitionSpec(), PartitionSpec(axes)
    wide = columns and all(x.shape[1] % mesh.shape.get("tensor", 1) == 0 for x in jax.tree.leaves(columns))
    cell = PartitionSpec(axes, "tensor") if wide and "tensor" in mesh.shape else row
    specs = whole, *(row for _ in rows), *(cell for _ in columns)
    run = jax.shard_map(function, mesh=mesh, in_specs=specs, out_specs=cell, check_vma=False)
    return run(shared, *rows, *columns)
