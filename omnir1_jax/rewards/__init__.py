"""Rewards by name: plans and masks (VOS), one box (RefAVS), a box with points (refCOCOg)."""

from omnir1_jax.rewards.single import refavs_accuracy, refcocog_terms
from omnir1_jax.rewards.vos import (
    Matching,
    PlanTerms,
    VosTerms,
    accuracy,
    match,
    plan_terms,
    region_similarity,
    vos_terms,
)

__all__ = [
    "Matching",
    "PlanTerms",
    "VosTerms",
    "accuracy",
    "match",
    "plan_terms",
    "refavs_accuracy",
    "refcocog_terms",
    "region_similarity",
    "vos_terms",
]
