"""Ref-YouTube-VOS: which videos are its validation set, the server's archive, and local scores where masks exist."""

from collections.abc import Iterable, Mapping
from typing import Any

from omnir1_jax.errors import InputError
from omnir1_jax.evaluation import mevis, predictions


def validation_videos(valid: Mapping[str, Any], test: Mapping[str, Any]) -> list[str]:
    """Videos of valid/meta_expressions.json that are not in test's: the released `valid` file holds both."""
    return sorted(set(valid["videos"]) - set(test["videos"]))


def write_submission(root: str, target: str, expected: Iterable[tuple[str, str]]) -> int:
    """Packs `Annotations/<video>/<expression>/<frame>.png`; every expected (video, expression) must be there."""
    missing = [f"{v}/{e}" for v, e in expected if not predictions.folder(root, v, e).exists()]
    if missing:
        raise InputError(f"{root}: predictions of {len(missing)} expressions are missing, first {missing[0]}")
    return predictions.write_zip(root, target, predictions.REFYTVOS_PREFIX)


aggregate = mevis.aggregate
