"""One table from logical axis names to mesh axes."""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import numpy as np
import optax
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from omnir1_jax.parallel.mesh import BATCH

Rules = Sequence[tuple[str, str | tuple[str, ...] | None]]

# Weights: the model axis is sharded over `fsdp`, the wide axis (heads, ffn, vocabulary) over `tensor`; a LoRA adapter's
# rank over `fsdp` if its factor has no model axis.
# Activations: batch over `slice`, `data` and `fsdp`; "rows" is the batch where the weights are in the decoding layout.
# A name that is absent here is replicated.
DEFAULT_RULES: Rules = (
    ("batch", BATCH),
    ("rows", ("slice", "data")),
    ("layers", None),
    ("embed", "fsdp"),
    ("vocab", "tensor"),
    ("heads", "tensor"),
    ("kv_heads", "tensor"),
    ("head_dim", None),
    ("mlp", "tensor"),
    ("rank", "fsdp"),
)

# For decoding every weight is sharded along its wide axis over `fsdp` too, so that a token moves activations and not
# weights between devices. If the heads do not divide, their channels are sharded.
DECODING_RULES: Rules = (
    ("vocab", ("fsdp", "tensor")),
    ("heads", ("fsdp", "tensor")),
    ("kv_heads", ("fsdp", "tensor")),
    ("head_dim", ("fsdp", "tensor")),
    ("mlp", ("fsdp", "tensor")),
)


def named_sharding(
    mesh: Mesh | AbstractMesh, names: Sequence[str | None], shape: Sequence[int], rules: Rules
) -> NamedSharding:
    """The sharding of one array with logical axes `names`.

    A dimension that its mesh axes do not divide is replicated, so that odd sizes (a bias of 3, a
    vocabulary of 151 in a test) still load; plans report what is replicated.
    """
    table = dict(rules)
    spec, used = [], set()
    for name, size in zip(names, shape, strict=True):
        axes = table.get(name) if name is not None else None
        axes = (axes,) if isinstance(axes, str) else tuple(axes or ())
        axes = tuple(axis for axis in axes if axis in mesh.shape)
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

    def leaf_sharding(leaf):
        if isinstance(leaf, nn.LogicallyPartitioned):
            return named_sharding(mesh, leaf.names, leaf.value.shape, rules)
        return NamedSharding(mesh, PartitionSpec())

    return jax.tree.map(leaf_sharding, boxed, is_leaf=lambda leaf: isinstance(leaf, nn.LogicallyPartitioned))


def state_shardings(mesh: Mesh, boxed: Any, optimizer: optax.GradientTransformation) -> Any:
    """Shardings of `optimizer`'s state: moments like their parameters in `boxed`, the rest replicated."""
    state = jax.eval_shape(optimizer.init, nn.unbox(boxed))
    left_out = lambda leaf: isinstance(leaf, optax.MaskedNode)  # a frozen parameter has no moment
    return optax.tree.map_params(
        optimizer,
        lambda leaf, sharding: leaf if left_out(leaf) else sharding,
        state,
        tree_shardings(mesh, boxed),
        transform_non_params=lambda _: replicated(mesh),
        is_leaf=left_out,
    )


def constrain(x: jax.Array, names: Sequence[str | None], rules: Rules = DEFAULT_RULES) -> jax.Array:
    """Shards an activation by the logical names of its axes on the mesh of `jax.set_mesh`; no-op without a mesh."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.are_all_axes_manual:
        return x
    return jax.lax.with_sharding_constraint(x, named_sharding(mesh, names, x.shape, rules))


def one_cpu() -> bool:
    """Whether what is traced is for a single CPU device, hence without a mesh."""
    return jax.default_backend() == "cpu" and jax.sharding.get_abstract_mesh().empty


def shards(name: str, size: int, rules: Rules = DEFAULT_RULES) -> int:
    """The number of shards into which `constrain` splits an axis on the mesh of `jax.set_mesh`; 1 without a mesh."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.are_all_axes_manual:
        return 1
    return size // named_sharding(mesh, (name,), (size,), rules).shard_shape((size,))[0]


def constrain_rows(tree: Any, rows: int) -> Any:
    """Shards arrays of `rows` rows like a batch and replicates all others, so that every process holds its rows."""
    name = lambda x: "batch" if x.ndim and x.shape[0] == rows else None
    return jax.tree.map(lambda x: constrain(x, (name(x), *(None,) * (x.ndim - 1))[: x.ndim]), tree)


def replicated(mesh: Mesh) -> NamedSharding:
    """The sharding that replicates an array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def replicate(tree: Any, mesh: Mesh) -> Any:
    """Replicates host arrays, equal in every process, on all devices of the mesh."""

    def place(x):
        host = np.asarray(x)
        return jax.make_array_from_callback(host.shape, replicated(mesh), lambda index: host[index])

    return jax.tree.map(place, tree)
