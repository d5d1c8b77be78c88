"""The optimizer of a run: AdamW with a schedule, clipping, frozen patterns, accumulation."""

import fnmatch
from collections.abc import Callable
from typing import Any

import flax.traverse_util
import optax
from ml_collections import ConfigDict

from omnir1_jax.errors import InputError

DECAYED = ("kernel", "embedding", "a", "b")  # last names of the matrices' paths


def schedule(config: ConfigDict) -> Callable[[Any], Any]:
    """Learning rate by update, over all updates of the run."""
    own = config.optimizer
    total = max(config.steps * config.step.updates // own.accumulate, 1)
    rest, last = max(total - own.warmup_steps, 1), own.final_share * own.learning_rate
    shapes = {
        "cosine": lambda: optax.cosine_decay_schedule(own.learning_rate, rest, own.final_share),
        "linear": lambda: optax.linear_schedule(own.learning_rate, last, rest),
        "constant": lambda: optax.constant_schedule(own.learning_rate),
    }
    if own.schedule not in shapes:
        raise InputError(f"optimizer.schedule: {own.schedule!r} is none of {', '.join(shapes)}")
    if own.warmup_steps == 0:
        return shapes[own.schedule]()
    rise = optax.linear_schedule(0.0, own.learning_rate, own.warmup_steps)
    return optax.join_schedules([rise, shapes[own.schedule]()], [own.warmup_steps])


def make(config: ConfigDict, trainable: Any) -> optax.GradientTransformation:
    """The chain for parameters like `trainable` (shapes will do).

    Raises:
      InputError: a freeze pattern that matches nothing, or all; an unknown schedule.
    """
    own = config.optimizer
    if own.accumulate < 1:
        raise InputError(f"optimizer.accumulate: {own.accumulate} is less than 1")
    decayed = lambda tree: _by_path(tree, lambda path: path[-1] in DECAYED)
    adamw = optax.adamw(
        schedule(config), b1=own.b1, b2=own.b2, eps=own.eps, weight_decay=own.weight_decay, mask=decayed
    )
    chain = optax.chain(optax.clip_by_global_norm(own.clip_norm), adamw) if own.clip_norm else adamw
    if own.freeze:
        labels = _labels(trainable, tuple(own.freeze))
        chain = optax.partition({"trained": chain, "frozen": optax.set_to_zero()}, labels)
    if own.accumulate > 1:
        return optax.MultiSteps(chain, own.accumulate).gradient_transformation()
    return chain


def _labels(trainable: Any, patterns: tuple[str, ...]) -> Any:
    names = ["/".join(path) for path in flax.traverse_util.flatten_dict(trainable)]
    for pattern in patterns:
        if not fnmatch.filter(names, pattern):
            raise InputError(f"optimizer.freeze: {pattern!r} names no trained parameter; there are {', '.join(names)}")
    cold = lambda path: any(fnmatch.fnmatchcase("/".join(path), pattern) for pattern in patterns)
    labels = _by_path(trainable, lambda path: "frozen" if cold(path) else "trained")
    if "trained" not in flax.traverse_util.flatten_dict(labels).values():
        raise InputError("optimizer.freeze: every parameter is frozen")
    return labels


def _by_path(tree: Any, rule: Callable[[tuple[str, ...]], Any]) -> Any:
    flat = flax.traverse_util.flatten_dict(tree)
    return flax.traverse_util.unflatten_dict({path: rule(path) for path in flat})
