"""What the families share: requests to System 2, counts of failures, the terms beside the accuracy."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from omnir1_jax.models.qwen_omni.sample import Completions
from omnir1_jax.rl import grpo
from omnir1_jax.rl.config import Frozen, Rewards, StepConfig
from omnir1_jax.systems import detail
from omnir1_jax.systems.detail import Requests
from omnir1_jax.text import prompt
from omnir1_jax.text.bpe import Tokens
from omnir1_jax.text.rules import Failure
from omnir1_jax.text.strings import Buffer


def tails(frozen: Frozen, config: StepConfig, description: Buffer) -> Tokens:
    """System 2's prompt after the frame, for each description; leading axes are flattened."""
    form = frozen.grounding
    return prompt.fill(frozen.bpe, form._replace(prefix=form.prefix[:0]), description, config.description_tokens)


def requests(
    config: StepConfig,
    tails: Tokens,
    frame: Int[Array, "b g k"],
    valid: Bool[Array, "b g k"],
) -> Requests:
    """One request for each keyframe, from `tails` in the same order."""
    b, g, k = frame.shape
    tokens = tails.ids.reshape(b, g, k, -1)
    length = tails.length.reshape(b, g, k)
    mask = jnp.arange(tokens.shape[-1]) < length[..., None]
    return Requests(frame, valid & (length > 0), tokens, mask)


def find(models, frozen: Frozen, config: StepConfig, frames: detail.SharpFrames, asked: Requests) -> detail.Grounded:
    """The configured grounder on the frozen copy."""
    params = {"vision": frozen.towers["vision"], "text": frozen.reference}
    return detail.GROUNDERS[config.grounder](models.thinker, params, frames, asked, config.grounding)


def kinds(name: str, failure: Int[Array, "*s"], wanted: Bool[Array, "*s"] | bool = True) -> dict[str, Float[Array, ""]]:
    """How often each kind of failure occurs where something was wanted."""
    count = lambda kind: jnp.sum((failure == kind) & wanted).astype(jnp.float32)
    return {f"{name}/{kind.name.lower()}": count(kind) for kind in Failure if kind != Failure.OK}


def unended(completions: Completions, eos: tuple[int, ...]) -> Bool[Array, "b g"]:
    """Completions that filled the buffer without an ending token."""
    last = jnp.take_along_axis(completions.tokens, jnp.maximum(completions.lengths - 1, 0)[..., None], axis=-1)[..., 0]
    return (completions.lengths > 0) & ~jnp.isin(last, jnp.asarray(eos, jnp.int32))


def total(
    config: StepConfig,
    accuracy: Float[Array, "b g"],
    formatted: Bool[Array, "b g"],
    completions: Completions,
    terms: dict[str, Float[Array, "b g"]],
    failures: dict[str, Float[Array, ""]],
) -> Rewards:
    """Accuracy, format and length bonus with their weights, and everything measured."""
    low, high = config.bonus_range
    bonus = grpo.length_bonus(accuracy, completions.lengths.astype(jnp.float32), low=low, high=high)
    shape = formatted.astype(jnp.float32)
    value = accuracy + config.reward.format * shape + config.reward.length_bonus * bonus
    every = {**terms, "accuracy": accuracy, "format": shape, "length_bonus": bonus}
    failures = {
        **failures,
        "completion/unended": jnp.sum(unended(completions, config.sampling.eos)).astype(jnp.float32),
    }
    return jax.lax.stop_gradient(Rewards(value, every, failures))
