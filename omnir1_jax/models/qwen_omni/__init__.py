"""The Qwen2.5-Omni thinker: encoders, decoder, weights, sampling and scoring."""

import importlib

_LAZY = ("load", "logits_from_hf", "read_config", "save")

__all__ = list(_LAZY)


def __getattr__(name: str):
    """Imports these functions on first use: data loading imports `layout` from here and must not import JAX."""
    if name in _LAZY:
        return getattr(importlib.import_module("omnir1_jax.models.qwen_omni.pretrained"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
