"""The Qwen2.5-Omni thinker: towers, decoder, weights, sampling and scoring."""

import importlib

_DOORS = ("load", "logits_from_hf", "read_config", "save")

__all__ = list(_DOORS)


def __getattr__(name: str):
    """Fetches the doors on first use: data loading imports `layout` from here and must not pull in JAX."""
    if name in _DOORS:
        return getattr(importlib.import_module("omnir1_jax.models.qwen_omni.pretrained"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
