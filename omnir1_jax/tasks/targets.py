"""Target texts for supervised training: the completions that the ground truth dictates (the paper's baseline).

`toy.lessons` has further ones, for thinkers trained from scratch.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool

from omnir1_jax.data.frame_sampling import SAMPLED_FPS
from omnir1_jax.data.preprocess import tokens
from omnir1_jax.errors import InputError
from omnir1_jax.systems.prompts import clock
from omnir1_jax.tasks.examples import Arrays, ExampleConfig


@dataclass(frozen=True, kw_only=True)
class TargetConfig(ExampleConfig):
    """Config of all supervised examples.

    Attributes:
      targets: target texts of a prompt.
      target_tokens: maximum tokens of one, including its question and the ending token.
      keyframes: maximum keyframes of a plan made from the ground truth; more would not be looked at.
    """

    targets: int
    target_tokens: int
    keyframes: int = 4


@dataclass(frozen=True)
class Target:
    """`answer` is learnt; `question` is only read, between the prompt and the answer. `before`: earlier ones."""

    answer: str
    question: str = ""
    before: tuple["Target", ...] = ()


def pack(targets: Sequence[Target], config: TargetConfig) -> Arrays:
    """Targets as arrays: tokens, lengths and weights, 1 for the answers' tokens and the one that ends them.

    Raises:
      InputError: too many targets, or one that is too long.
    """
    g, c = config.targets, config.target_tokens
    ids = tokens.token_ids(config.tokenizer)
    if len(targets) > g:
        raise InputError(f"{len(targets)} targets do not fit sft.targets = {g}")
    out = np.full((g, c), ids.pad, np.int32)
    lengths, weights = np.zeros(g, np.int32), np.zeros((g, c), np.float32)
    encode = lambda text: config.tokenizer(text, add_special_tokens=False)["input_ids"] if text else []
    for n, target in enumerate(targets):
        token_ids, learnt = [], []
        for part in (*target.before, target):
            for text, weight in ((part.question, 0.0), (part.answer, 1.0)):
                token_ids += (piece_ids := encode(text))
                learnt += [weight] * len(piece_ids)
        token_ids, learnt = [*token_ids, ids.eos[0]], [*learnt, 1.0]
        if len(token_ids) > c:
            raise InputError(f"a target of {len(token_ids)} tokens does not fit sft.target_tokens = {c}")
        out[n, : len(token_ids)], weights[n, : len(token_ids)], lengths[n] = token_ids, learnt, len(token_ids)
    return {"target/tokens": out, "target/lengths": lengths, "target/weights": weights}


def thought(reasoning: str, answer: str) -> str:
    """A completion in System 1's format."""
    return f"<think>{reasoning}</think> <answer>{answer}</answer>"


def piece(first: int, last: int, description: str) -> str:
    """One object of a plan that covers frames `first` to `last`."""
    start, end = (clock(t / SAMPLED_FPS) for t in (first, last))
    return f'{{"start_time": "{start}", "end_time": "{end}", "description": {quoted(description)}}}'


def quoted(text: str) -> str:
    """A text as a JSON string that any reader of flat objects accepts: no escapes, no closing brace."""
    plain = "".join(" " if c in '"\\{}' or c < " " else c for c in text)
    return f'"{plain}"'


def best_moments(masks: Bool[np.ndarray, "n t h w"], count: int) -> list[int]:
    """Frames at which the target is largest, one in each of up to `count` even parts of the time it is seen."""
    areas = masks.sum(axis=(0, 2, 3))
    seen = np.flatnonzero(areas)
    return [int(part[areas[part].argmax()]) for part in np.array_split(seen, min(count, len(seen))) if len(part)]
