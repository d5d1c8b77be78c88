"""Attention: masks as data, one function that picks the kernel, and the kernels."""

from omnir1_jax.models.attention.dispatch import attend, automatic
from omnir1_jax.models.attention.mask import Mask, Tree
from omnir1_jax.models.attention.xla import attend_shared

__all__ = ["Mask", "Tree", "attend", "attend_shared", "automatic"]
