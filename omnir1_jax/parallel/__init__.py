"""Meshes, logical-axis rules and multiple processes: how a run is sharded over the devices of many machines."""

from omnir1_jax.parallel.mesh import (
    AXES,
    BATCH,
    batch_parts,
    batch_sharding,
    jit,
    jit_step,
    make_mesh,
    parts_here,
)
from omnir1_jax.parallel.rules import (
    DECODING_RULES,
    DEFAULT_RULES,
    Rules,
    constrain,
    constrain_rows,
    named_sharding,
    one_cpu,
    replicate,
    replicated,
    shards,
    state_shardings,
    tree_shardings,
)

__all__ = [
    "AXES",
    "BATCH",
    "DECODING_RULES",
    "DEFAULT_RULES",
    "Rules",
    "batch_parts",
    "batch_sharding",
    "constrain",
    "constrain_rows",
    "jit",
    "jit_step",
    "make_mesh",
    "named_sharding",
    "one_cpu",
    "parts_here",
    "replicate",
    "replicated",
    "shards",
    "state_shardings",
    "tree_shardings",
]
