"""Group-relative policy optimisation: rewards of a group to advantages, log-probs to a loss.

A variant is a few values of the section `grpo`:
  Omni-R1: the defaults. Dr.GRPO (arXiv 2503.20783): advantage="centred", reduce="constant".
  DAPO's clip-higher (2503.14476): clip_high=0.28, reduce="token". GSPO (2507.18071): ratio="sequence",
  clip_low=3e-4, clip_high=4e-4. RLOO (2402.14740): advantage="leave_one_out".
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from omnir1_jax.config.sections import Grpo

STD_FLOOR = 1e-4


class GrpoMetrics(NamedTuple):
    """Means over completion tokens unless said otherwise; all in float32.

    Attributes:
      kl: k3 estimate of KL(policy || reference).
      ratio: importance ratio.
      clipped: share of tokens (or sequences) whose gradient the clipping cut.
      flat_groups: share of groups whose rewards are all equal.
    """

    kl: Float[Array, ""]
    ratio: Float[Array, ""]
    clipped: Float[Array, ""]
    flat_groups: Float[Array, ""]


def flat_groups(rewards: Float[Array, "b g"]) -> Bool[Array, " b"]:
    """Groups whose rewards are all equal; every group of one."""
    return jnp.all(rewards == rewards[:, :1], axis=1)


def advantages(rewards: Float[Array, "b g"], kind: str = "normalised") -> Float[Array, "b g"]:
    """How much better each completion is than its group, by `Grpo.advantage`. 0 in a flat group."""
    rewards = rewards.astype(jnp.float32)
    g = rewards.shape[1]
    centred = rewards - jnp.mean(rewards, axis=1, keepdims=True)
    if kind == "leave_one_out":
        centred = centred * (g / max(g - 1, 1))
    elif kind == "normalised" and g > 1:
        centred = centred / (jnp.std(rewards, axis=1, ddof=1, keepdims=True) + STD_FLOOR)
    # The mean of equal numbers can miss them by a rounding, which the division by 1e-4 would blow up.
    return jnp.where(flat_groups(rewards)[:, None], 0.0, centred)


def length_bonus(
    accuracy: Float[Array, "b g"], lengths: Float[Array, "b g"], *, low: int = 320, high: int = 750, bar: float = 0.1
) -> Float[Array, "b g"]:
    """1 for each good completion of `low` to `high` tokens, in groups with at least two good ones.

    Args:
      accuracy: reward without format and length terms; good is strictly above `bar`.
      lengths: tokens of each completion, end of sequence included.
    """
    good = accuracy > bar
    several = jnp.sum(good, axis=1, keepdims=True) >= 2
    return (good & several & (low <= lengths) & (lengths <= high)).astype(jnp.float32)


def loss(
    logprobs: Float[Array, "b g c"],
    old_logprobs: Float[Array, "b g c"],
    reference_logprobs: Float[Array, "b g c"],
    mask: Bool[Array, "b g c"],
    rewards: Float[Array, "b g"],
    config: Grpo,
) -> tuple[Float[Array, ""], GrpoMetrics]:
    """The clipped surrogate with its KL penalty.

    Args:
      logprobs: of the completions' tokens under the policy being trained; the only argument with a gradient.
      old_logprobs: under the policy that sampled them. With one update a rollout pass `logprobs` itself: the
        ratio is then 1 in value and the gradient that of REINFORCE.
      reference_logprobs: under the frozen reference.
      mask: tokens of the completion, end of sequence included. Values elsewhere do not count, NaN included.
      rewards: total reward of each completion.

    Returns:
      the loss to minimise, metrics.
    """
    old_logprobs, reference_logprobs, rewards = jax.lax.stop_gradient((old_logprobs, reference_logprobs, rewards))
    flat = flat_groups(rewards)
    # Masked before any arithmetic: where() alone would let a NaN of the padding into the gradient.
    policy, old, reference = (jnp.where(mask, x, 0.0) for x in (logprobs, old_logprobs, reference_logprobs))
    count = jnp.sum(mask, axis=-1, keepdims=True)

    log_ratio = policy - old
    if config.ratio == "sequence":
        log_ratio = jnp.sum(log_ratio, axis=-1, keepdims=True) / jnp.maximum(count, 1)
    ratio = jnp.broadcast_to(jnp.exp(log_ratio), mask.shape)
    advantage = advantages(rewards, config.advantage)[..., None]
    clipped = jnp.clip(ratio, 1.0 - config.clip_low, 1.0 + config.clip_high)
    surrogate = jnp.minimum(ratio * advantage, clipped * advantage)
    ahead = reference - policy
    kl = jnp.exp(ahead) - ahead - 1.0
    per_token = config.beta * kl - surrogate

    used = mask & ~(flat[:, None, None] & config.skip_flat_groups)
    per_token = jnp.where(used, per_token, 0.0)
    completions = jnp.maximum(jnp.sum(jnp.any(used, axis=-1)), 1)
    if config.reduce == "completion":
        value = jnp.sum(per_token / jnp.maximum(count, 1)) / completions
    elif config.reduce == "token":
        value = jnp.sum(per_token) / jnp.maximum(jnp.sum(used), 1)
    else:
        value = jnp.sum(per_token) / (completions * mask.shape[-1])

    mean = lambda x: jnp.sum(jnp.where(mask, x, 0.0)) / jnp.maximum(jnp.sum(mask), 1)
    cut = clipped * advantage < ratio * advantage
    return value, GrpoMetrics(mean(kl), mean(ratio), mean(cut), jnp.mean(flat.astype(jnp.float32)))
