"""User-defined reward terms: `reward.extra`, added to the reward that a task gives.

A term is `(batch, completions, reading, grounding, masks) -> Float[b g]` on the outputs of the stages before it. It is
traced into the step, unless it is marked `on_host`: then it gets numpy arrays, and the stages run one by one.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from omnir1_jax.config import lookup
from omnir1_jax.errors import InputError
from omnir1_jax.models.qwen_omni.sample import Completions
from omnir1_jax.rewards.vos import VosTerms
from omnir1_jax.rl import grpo
from omnir1_jax.rl.config import Rewards, StepConfig

Term = Callable[..., Float[Array, "b g"]]
SETTING = "reward.extra"


class Extra(NamedTuple):
    """A term with its weight; `name` is the function's own, under which it is logged."""

    name: str
    function: Term
    weight: float

    @property
    def host(self) -> bool:
        """Whether it runs on the host."""
        return getattr(self.function, "host", False)


def on_host(term: Term) -> Term:
    """Marks a term that cannot be traced; it needs step.mode=staged."""
    term.host = True  # type: ignore[attr-defined]
    return term


def load(weights: Sequence[tuple[str, float]]) -> tuple[Extra, ...]:
    """The terms of `reward.extra`.

    Raises:
      InputError: there is no such function, or two have one name.
    """
    terms = [Extra(name.rpartition(":")[2], lookup.function(name, {}, SETTING), weight) for name, weight in weights]
    names = [term.name for term in terms]
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"{SETTING}: two terms are called {name}; the log needs two names")
    return tuple(terms)


def overlong(rewards: Rewards, completions: Completions, config: StepConfig) -> Rewards:
    """The rewards with the term of `grpo.overlong`, if it is set."""
    cache = config.grpo.overlong
    if not cache:
        return rewards
    value = grpo.overlong(completions.lengths, config.sampling.max_tokens, cache)
    return dataclasses.replace(rewards, total=rewards.total + value, terms=rewards.terms | {"overlong": value})


def score(rewards: Rewards, config: StepConfig) -> Float[Array, "b g"]:
    """The rewards that give the advantages: the total, or with `grpo.advantage` "per_term" the normalised terms' sum.

    The terms are those of video segmentation's accuracy, of other tasks their accuracy; then format, length bonus,
    overlong and `reward.extra`, each with its weight. One of weight 0 does not count.
    """
    if config.grpo.advantage != "per_term":
        return rewards.total
    weights = {name: 1.0 for name in ("accuracy", "overlong")} | {term.name: term.weight for term in config.extra}
    weights |= {name: getattr(config.reward, name) for name in ("format", "length_bonus")}
    if VosTerms._fields[0] in rewards.terms:
        del weights["accuracy"]
        weights |= {name: getattr(config.reward, name) for name in VosTerms._fields}
    used = [name for name in rewards.terms if weights.get(name)]
    values = jnp.stack([rewards.terms[name] for name in used])
    return grpo.decoupled(values, jnp.asarray([weights[name] for name in used], jnp.float32))


def add(rewards: Rewards, terms: Sequence[Extra], *outputs: Any) -> Rewards:
    """The rewards with further terms.

    Args:
      outputs: batch, completions, reading, grounding, masks.

    Raises:
      InputError: a term of another shape, or of the name of one of the task's own.
    """
    total, all_terms, shape = rewards.total, dict(rewards.terms), rewards.total.shape
    for term in terms:
        value = jnp.asarray(term.function(*outputs), jnp.float32)
        if value.shape != shape:
            raise InputError(f"{SETTING}: {term.name} gave {value.shape}, not one number per completion {shape}")
        if term.name in all_terms:
            raise InputError(f"{SETTING}: the task has a term {term.name} already; rename yours")
        total, all_terms[term.name] = total + term.weight * value, value
    return jax.lax.stop_gradient(dataclasses.replace(rewards, total=total, terms=all_terms))
