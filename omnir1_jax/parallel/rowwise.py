"""Work that each device does by itself on its rows of a batch."""

import math
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import PartitionSpec

from omnir1_jax.parallel.mesh import BATCH


def rowwise(function: Callable[..., Any], shared: Any, *rows: Any) -> Any:
    """`function(shared, *rows)` with `shared` brought to every device once and nothing moved while it runs.

    For what a compiler would otherwise cut along the weights, which moves every activation. Loops that end by the data
    end on each device by themselves. Without a mesh (`jax.set_mesh`), or where the rows do not divide over it, the
    function is called as it is.

    Args:
      function: of rows that do not depend on one another; its results are rows too.
      rows: trees of arrays, each with the batch in front.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.are_all_axes_manual:
        return function(shared, *rows)
    axes = tuple(axis for axis in BATCH if axis in mesh.shape)
    parts = math.prod(mesh.shape[axis] for axis in axes)
    if any(x.shape[0] % parts for x in jax.tree.leaves(rows)):
        return function(shared, *rows)
    cut, whole = PartitionSpec(axes), PartitionSpec()
    specs = whole, *(cut for _ in rows)
    return jax.shard_map(function, mesh=mesh, in_specs=specs, out_specs=cut, check_vma=False)(shared, *rows)
