"""Meshes and logical-axis rules: how a parameter's named axes fall on the devices."""

from omnir1_jax.parallel.mesh import make_mesh
from omnir1_jax.parallel.rules import DEFAULT_RULES, Rules, named_sharding, tree_shardings

__all__ = ["DEFAULT_RULES", "Rules", "make_mesh", "named_sharding", "tree_shardings"]
