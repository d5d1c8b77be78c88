"""Omni-R1 in JAX: a global reasoner and a frozen detail system, trained by GRPO in one compiled step."""

__version__ = "0.1.0"
