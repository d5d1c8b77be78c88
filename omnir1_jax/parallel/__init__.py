"""Meshes and logical-axis rules: how a parameter's named axes fall on the devices."""

from omnir1_jax.parallel.mesh import make_mesh
from omnir1_jax.parallel.rules import (
    DECODING_RULES,
    DEFAULT_RULES,
    Rules,
    constrain,
    constrain_tree,
    named_sharding,
    state_shardings,
    tree_shardings,
)

__all__ = [
    "DECODING_RULES",
    "DEFAULT_RULES",
    "Rules",
    "constrain",
    "constrain_tree",
    "make_mesh",
    "named_sharding",
    "state_shardings",
    "tree_shardings",
]
