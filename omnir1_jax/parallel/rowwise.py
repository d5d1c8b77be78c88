"""Functions that each device runs independently on its rows of a batch."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.sharding import PartitionSpec

from omnir1_jax.parallel.mesh import BATCH


def rowwise(function: Callable[..., Any], shared: Any, *rows: Any, columns: Sequence[Any] = ()) -> Any:
    """`function(shared, *rows, *columns)` with `shared` replicated once and no communication while it runs.

    Use it where the compiler would otherwise shard along the weights and move every activation. Loops with a
    data-dependent end stop on each device independently. Without a mesh (`jax.set_mesh`), or if the rows do not divide
    over it, the function is called directly.

    Args:
      function: function of independent rows; its results are rows too.
      rows: trees of arrays whose first axis is the batch.
      columns: trees whose second axis (and then that of the results) is independent too; it is sharded over `tensor`
        if it divides, and each shard then repeats what depends on the rows only.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.are_all_axes_manual:
        return function(shared, *rows, *columns)
    axes = tuple(axis for axis in BATCH if axis in mesh.shape)
    parts = math.prod(mesh.shape[axis] for axis in axes)
    if any(x.shape[0] % parts for x in jax.tree.leaves((rows, columns))):
        return function(shared, *rows, *columns)
    replicated, row = PartitionSpec(), PartitionSpec(axes)
    shard_columns = columns and all(x.shape[1] % mesh.shape.get("tensor", 1) == 0 for x in jax.tree.leaves(columns))
    cell = PartitionSpec(axes, "tensor") if shard_columns and "tensor" in mesh.shape else row
    specs = replicated, *(row for _ in rows), *(cell for _ in columns)
    run = jax.shard_map(function, mesh=mesh, in_specs=specs, out_specs=cell, check_vma=False)
    return run(shared, *rows, *columns)
