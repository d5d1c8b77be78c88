"""The logged values of one completion: plain values on the host, whatever produced them."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from omnir1_jax.tasks.description import Clip, Keyframe, Piece


class Example(NamedTuple):
    """One prompt and one completion.

    Attributes:
      family: family of the task: "vos", "refavs", "refcocog", "qa".
      answer: the parsed answer, if the completion is not a plan.
      gold: the reference answer, if it is a text.
      reward: the total. rewards: every term by name, before its weight. advantage: None outside of training.
      failures: names of everything that went wrong, such as "plan/bad_json".
      clip: None where no picture is wanted.
    """

    sample_id: str
    query: str
    completion: str
    family: str = "vos"
    pieces: tuple[Piece, ...] = ()
    keyframes: tuple[Keyframe, ...] = ()
    answer: str | None = None
    gold: str | None = None
    reward: float | None = None
    rewards: Mapping[str, float] = {}
    advantage: float | None = None
    failures: tuple[str, ...] = ()
    clip: Clip | None = None


def finite(value: Any) -> Any:
    """A tree of plain values that strict JSON can hold: numbers that are not finite become None."""
    match value:
        case float():  # first, as most are numbers: to ask for a Mapping takes longer
            return value if math.isfinite(value) else None
        case str() | int() | None:
            return value
        case list() | tuple():
            return [finite(item) for item in value]
        case Mapping():
            return {str(key): finite(item) for key, item in value.items()}
        case np.ndarray() | np.generic():
            return finite(value.tolist())
    return value


def line(step: int, example: Example) -> dict[str, Any]:
    """An example as one JSON object of `rollouts.jsonl`; the clip is left out."""
    return finite(
        {
            "step": step,
            "sample_id": example.sample_id,
            "family": example.family,
            "query": example.query,
            "completion": example.completion,
            "plan": [piece._asdict() for piece in example.pieces],
            "keyframes": [keyframe._asdict() for keyframe in example.keyframes],
            "answer": example.answer,
            "gold": example.gold,
            "reward": example.reward,
            "rewards": example.rewards,
            "advantage": example.advantage,
            "failures": example.failures,
        }
    )
