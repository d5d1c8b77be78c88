"""One table from logical axis names to mesh axes."""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

Rules = Sequence[tuple[str, str | tuple[str, ...] | None]]

# Weights: the model axis goes over `fsdp`, the wide axis (heads, ffn, vocabulary) over `tensor`.
# Activations: batch over `data` and `fsdp`. A name that is absent here is replicated.
DEFAULT_RULES: Rules = (
    ("batch", ("data", "fsdp")),
    ("layers", None),
    ("embed", "fsdp"),
    ("vocab", "tensor"),
    ("heads", "tensor"),
    ("kv_heads", "tensor"),
    ("head_dim", None),
    ("mlp", "tensor"),
    ("rank", None),
)


def named_sharding(
    mesh: Mesh | AbstractMesh, names: Sequence[str | None], shape: Sequence[int], rules: Rules
) -> NamedSharding:
    """The sharding of one array with logical axes `names`.

    A dimension that its mesh axes do not divide is replicated, so that odd sizes (a bias of 3, a
    vocabulary of 151 in a test) still load; plans report what was left whole.
    """
    table = dict(rules)
    spec, used = [], set()
    for name, size in zip(names, shape, strict=True):
        axes = table.get(name) if name is not None else None
        axes = (axes,) if isinstance(axes, str) else tuple(axes or ())
        parts = 1
        for axis in axes:
            parts *= mesh.shape[axis]
        if axes and not used & set(axes) and size % parts == 0:
            used |= set(axes)
            spec.append(axes if len(axes) > 1 else axes[0])
        else:
            spec.append(None)
    return NamedSharding(mesh, PartitionSpec(*spec))


def tree_shardings(mesh: Mesh, boxed: Any, rules: Rules = DEFAULT_RULES) -> Any:
    """Shardings for a tree as `Module.init` returns it, leaves boxed by `nn.with_logical_partitioning`.

    Leaves without names are replicated. Returns a tree of `NamedSharding` with the unboxed structure.
    """

    def one(leaf):
        if isinstance(leaf, nn.LogicallyPartitioned):
            return named_sharding(mesh, leaf.names, leaf.value.shape, rules)
        return NamedSharding(mesh, PartitionSpec())

    return jax.tree.map(one, boxed, is_leaf=lambda leaf: isinstance(leaf, nn.LogicallyPartitioned))
