"""The optimizer of a run: AdamW or Muon with a schedule, clipping, frozen patterns, accumulation."""

import fnmatch
from collections.abc import Callable, Mapping
from typing import Any

import flax.traverse_util
import optax
from optax.contrib import MuonDimensionNumbers

from omnir1_jax.config.sections import Optimizer
from omnir1_jax.errors import InputError

MUON_RMS = 0.2  # RMS of Muon's updates, about that of AdamW's, so that both take one learning rate (arXiv 2502.16982)
DECAYED = ("kernel", "embedding", "a", "b")  # last names of the matrices' paths

# Functions of the peak learning rate, the updates after the warm-up, and the share of the rate at the last one.
SCHEDULES: dict[str, Callable[[float, int, float], Callable[[Any], Any]]] = {
    "cosine": optax.cosine_decay_schedule,
    "linear": lambda rate, updates, share: optax.linear_schedule(rate, share * rate, updates),
    "constant": lambda rate, updates, share: optax.constant_schedule(rate),
}

ENDLESS = ("constant",)  # schedules that do not depend on how many updates a run has


def schedule(settings: Optimizer, gradients: int) -> Callable[[Any], Any]:
    """Learning rate by update, over a run of `gradients` gradients."""
    total = max(gradients // settings.accumulate, 1)
    decay = SCHEDULES[settings.schedule](
        settings.learning_rate, max(total - settings.warmup_steps, 1), settings.final_share
    )
    if settings.warmup_steps == 0:
        return decay
    warmup = optax.linear_schedule(0.0, settings.learning_rate, settings.warmup_steps)
    return optax.join_schedules([warmup, decay], [settings.warmup_steps])


def make(settings: Optimizer, gradients: int, trainable: Any) -> optax.GradientTransformation:
    """The optimizer for parameters like `trainable` (shapes suffice).

    Args:
      gradients: number of gradients in the run.

    Raises:
      InputError: a freeze pattern that matches nothing, or all.
    """
    rule = RULES[settings.rule](settings, schedule(settings, gradients))
    chain = optax.chain(optax.clip_by_global_norm(settings.clip_norm), rule) if settings.clip_norm else rule
    if settings.freeze:
        labels = _labels(trainable, settings.freeze)
        chain = optax.partition({"trained": chain, "frozen": optax.set_to_zero()}, labels)
    if settings.accumulate > 1:
        return optax.MultiSteps(chain, settings.accumulate).gradient_transformation()
    return chain


def _adamw(settings: Optimizer, rate: Callable[[Any], Any]) -> optax.GradientTransformation:
    decayed = lambda tree: _by_path(tree, lambda path, _: path[-1] in DECAYED)
    return optax.adamw(
        rate, b1=settings.b1, b2=settings.b2, eps=settings.eps, weight_decay=settings.weight_decay, mask=decayed
    )


def _muon(settings: Optimizer, rate: Callable[[Any], Any]) -> optax.GradientTransformation:
    """Muon for kernels, which alone decay; NAdam for embeddings, biases, norms and adapters."""
    return optax.contrib.muon(
        rate,
        eps=settings.eps,
        weight_decay=settings.weight_decay,
        adam_b1=settings.b1,
        adam_b2=settings.b2,
        muon_weight_dimension_numbers=_matrices,
        consistent_rms=MUON_RMS,
    )


def _matrices(tree: Any) -> Any:
    """The matrix axes of a kernel; those before them count layers, or the taps of a convolution."""

    def matrix(path: tuple[str, ...], leaf: Any) -> MuonDimensionNumbers | None:
        if path[-1] != "kernel" or isinstance(leaf, optax.MaskedNode):  # frozen
            return None
        n = leaf.ndim
        if path[-2] in ("q", "k", "v"):  # [..., width, heads, head_dim]
            return MuonDimensionNumbers(n - 3, (n - 2, n - 1))
        if path[-2] == "o":  # [..., heads, head_dim, width]
            return MuonDimensionNumbers((n - 3, n - 2), n - 1)
        return MuonDimensionNumbers(n - 2, n - 1)

    if not isinstance(tree, Mapping):  # optax.tree.map_params calls with a placeholder for all parameters
        return MuonDimensionNumbers()
    return _by_path(tree, matrix)


def _labels(trainable: Any, patterns: tuple[str, ...]) -> Any:
    names = ["/".join(path) for path in flax.traverse_util.flatten_dict(trainable)]
    for pattern in patterns:
        if not fnmatch.filter(names, pattern):
            raise InputError(f"optimizer.freeze: {pattern!r} names no trained parameter; there are {', '.join(names)}")
    cold = lambda path: any(fnmatch.fnmatchcase("/".join(path), pattern) for pattern in patterns)
    labels = _by_path(trainable, lambda path, _: "frozen" if cold(path) else "trained")
    if "trained" not in flax.traverse_util.flatten_dict(labels).values():
        raise InputError("optimizer.freeze: every parameter is frozen")
    return labels


def _by_path(tree: Any, rule: Callable[[tuple[str, ...], Any], Any]) -> Any:
    flat = flax.traverse_util.flatten_dict(tree)
    return flax.traverse_util.unflatten_dict({path: rule(path, leaf) for path, leaf in flat.items()})


RULES: dict[str, Callable[[Optimizer, Callable[[Any], Any]], optax.GradientTransformation]] = {
    "adamw": _adamw,
    "muon": _muon,
}
