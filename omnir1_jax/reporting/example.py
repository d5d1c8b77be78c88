"""What is told of one completion: plain values of the host, whatever produced them."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, UInt8

Number = float | int
Box = tuple[Number, Number, Number, Number]


class Piece(NamedTuple):
    """One group of a plan.

    start, end: seconds. frames: first and last, None unless the piece is valid. failure: why it is not, by name.
    """

    start: float
    end: float
    frames: tuple[int, int] | None
    description: str
    failure: str | None = None


class Keyframe(NamedTuple):
    """A frame that System 2 looked at, what it was asked and what it answered, as text and as boxes.

    boxes: inclusive (x_min, y_min, x_max, y_max) in the pixels of the clip's own size.
    """

    frame: int
    description: str
    answer: str
    boxes: tuple[Box, ...] = ()


class Clip(NamedTuple):
    """What a picture shows.

    frames: at any size, in the aspect of `size`. size: width and height that all boxes refer to. truth, predicted:
    masks of all objects together at any size, stretched over the frame. boxes: true ones of n objects, -1 where an
    object is not in the frame. seconds: when each frame is seen. numbers: of the frames in their video, where these
    are not all of it from the first on.
    """

    frames: UInt8[np.ndarray, "t h w 3"]
    size: tuple[int, int]
    truth: Bool[np.ndarray, "t y x"] | None = None
    predicted: Bool[np.ndarray, "t yp xp"] | None = None
    boxes: Float[np.ndarray, "n t 4"] | None = None
    seconds: tuple[float, ...] | None = None
    numbers: tuple[int, ...] | None = None


class Example(NamedTuple):
    """One prompt and one completion.

    Attributes:
      family: of the task: "vos", "refavs", "refcocog", "qa".
      answer: what was read from the completion where that is no plan.
      gold: the right answer where it is a text.
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
        case Mapping():
            return {str(key): finite(item) for key, item in value.items()}
        case str() | bool() | None:
            return value
        case list() | tuple():
            return [finite(item) for item in value]
        case np.ndarray() | np.generic():
            return finite(value.tolist())
        case float():
            return value if math.isfinite(value) else None
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
