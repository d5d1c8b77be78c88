"""Group-relative policy optimisation: rewards of a group to advantages, log-probs to a loss.

A variant is a few values of the section `grpo`:
  Omni-R1: the defaults. Dr.GRPO (arXiv 2503.20783): advantage="centred", reduce="constant".
  DAPO's clip-higher (2503.14476): clip_high=0.28, reduce="token". GSPO (2507.18071): ratio="sequence",
  clip_low=3e-4, clip_high=4e-4. RLOO (2402.14740): advantage="leave_one_out".
  DAPO's dynamic sampling, of static size: a task's keep=0.5 with a `batch_size` of twice as many.
  DAPO's soft overlong punishment: overlong=4096 of 20480 tokens. GDPO (2601.05242): advantage="per_term".

Others are user-defined functions with the signatures of `centred` and `clipped`, as `module:object` or
`file.py:object`: docs/your_own_task.md.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from omnir1_jax.config import lookup
from omnir1_jax.config.sections import Grpo
from omnir1_jax.errors import InputError

STD_FLOOR = 1e-4


class GrpoMetrics(NamedTuple):
    """Means over completion tokens unless said otherwise; all in float32.

    Attributes:
      kl: k3 estimate of KL(policy || reference).
      ratio: importance ratio.
      clipped: share of tokens (or sequences) whose gradient is clipped.
      flat_groups: share of groups whose rewards are all equal.
    """

    kl: Float[Array, ""]
    ratio: Float[Array, ""]
    clipped: Float[Array, ""]
    flat_groups: Float[Array, ""]


def flat_groups(rewards: Float[Array, "b g"]) -> Bool[Array, " b"]:
    """Groups whose rewards are all equal; every group of one."""
    return jnp.all(rewards == rewards[:, :1], axis=1)


def spread(rewards: Float[Array, "b g"]) -> Float[Array, " b"]:
    """Standard deviation of each group; 0 in a flat one."""
    return jnp.where(flat_groups(rewards), 0.0, jnp.std(rewards, axis=1))


def centred(rewards: Float[Array, "b g"]) -> Float[Array, "b g"]:
    """r - mean. 0 in a flat group."""
    # The mean of equal numbers can miss them by a rounding, which a division by 1e-4 would blow up.
    return jnp.where(flat_groups(rewards)[:, None], 0.0, rewards - jnp.mean(rewards, axis=1, keepdims=True))


def leave_one_out(rewards: Float[Array, "b g"]) -> Float[Array, "b g"]:
    """r - mean of the others. 0 in a flat group."""
    g = rewards.shape[1]
    return centred(rewards) * (g / max(g - 1, 1))


def normalised(rewards: Float[Array, "b g"]) -> Float[Array, "b g"]:
    """(r - mean) / (std + 1e-4). 0 in a flat group."""
    if rewards.shape[1] == 1:
        return centred(rewards)
    return centred(rewards) / (jnp.std(rewards, axis=1, ddof=1, keepdims=True) + STD_FLOOR)


# Terms that were normalised one by one (`decoupled`) have mean 0 already.
ADVANTAGES = {"normalised": normalised, "centred": centred, "leave_one_out": leave_one_out, "per_term": centred}


def decoupled(values: Float[Array, "k b g"], weights: Float[Array, " k"]) -> Float[Array, "b g"]:
    """Terms normalised one by one within their groups, their weighted sum over the batch (GDPO, arXiv 2601.05242).

    In a sum of rewards those with the largest spread dominate; here each counts by its weight alone.
    """
    total = jnp.tensordot(weights, jax.vmap(normalised)(values.astype(jnp.float32)), 1)
    return total / (jnp.std(total) + STD_FLOOR)


def overlong(lengths: Int[Array, "b g"], limit: int, cache: int) -> Float[Array, "b g"]:
    """DAPO's soft overlong punishment (arXiv 2503.14476, eq. 13): 0 up to limit - cache tokens, then down to -1."""
    return jnp.clip((limit - cache - lengths.astype(jnp.float32)) / cache, -1.0, 0.0)


def advantages(rewards: Float[Array, "b g"], kind: str = "normalised") -> Float[Array, "b g"]:
    """How much better each completion is than its group, by `Grpo.advantage`.

    Raises:
      InputError: a user-defined function returns another shape.
    """
    value = lookup.function(kind, ADVANTAGES, "grpo.advantage")(rewards.astype(jnp.float32))
    if jnp.shape(value) != rewards.shape:
        raise InputError(
            f"grpo.advantage: {kind} gave {jnp.shape(value)}, not one number per completion {rewards.shape}"
        )
    return value


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
    """The loss of `Grpo.loss`.

    Args:
      logprobs: of the completions' tokens under the policy being trained; the only argument with a gradient.
      old_logprobs: under the policy that sampled them; in the first update of a rollout the value of `logprobs`, so
        that their ratio is 1 and its gradient that of REINFORCE.
      reference_logprobs: under the frozen reference; without KL term (`beta` 0) the value of `logprobs`.
      mask: tokens of the completion, end of sequence included. Values elsewhere do not count, NaN included.
      rewards: total reward of each completion.

    Returns:
      the loss to minimise, metrics.

    Raises:
      InputError: a user-defined function returns something else.
    """
    old, reference, rewards = jax.lax.stop_gradient((old_logprobs, reference_logprobs, rewards))
    # Masked before any arithmetic: where() alone would let a NaN of the padding into the gradient.
    policy, old, reference = (jnp.where(mask, x, 0.0) for x in (logprobs, old, reference))
    result = lookup.function(config.loss, LOSSES, "grpo.loss")(policy, old, reference, mask, rewards, config)
    if [jax.tree.structure(result), *map(jnp.shape, jax.tree.leaves(result))] != [LOSS_STRUCTURE, (), (), (), (), ()]:
        raise InputError(f"grpo.loss: {config.loss} did not give a scalar and GrpoMetrics of scalars")
    return result


def clipped(
    policy: Float[Array, "b g c"],
    old: Float[Array, "b g c"],
    reference: Float[Array, "b g c"],
    mask: Bool[Array, "b g c"],
    rewards: Float[Array, "b g"],
    config: Grpo,
) -> tuple[Float[Array, ""], GrpoMetrics]:
    """The clipped surrogate with its KL penalty; arguments as those of `loss`, log-probs 0 outside of the mask."""
    log_ratio = policy - old
    if config.ratio == "sequence":
        log_ratio = jnp.sum(log_ratio, axis=-1, keepdims=True) / jnp.maximum(jnp.sum(mask, axis=-1, keepdims=True), 1)
    ratio = jnp.broadcast_to(jnp.exp(log_ratio), mask.shape)
    advantage = advantages(rewards, config.advantage)[..., None]
    clipped_ratio = jnp.clip(ratio, 1.0 - config.clip_low, 1.0 + config.clip_high)
    surrogate = jnp.minimum(ratio * advantage, clipped_ratio * advantage)
    kl = k3(policy, reference)
    value = reduced(config.beta * kl - surrogate, mask, rewards, config)
    return value, metrics(kl, ratio, clipped_ratio * advantage < ratio * advantage, mask, rewards)


LOSSES = {"clipped": clipped}
LOSS_STRUCTURE = jax.tree.structure((0, GrpoMetrics(0, 0, 0, 0)))


def k3(policy: Float[Array, "b g c"], reference: Float[Array, "b g c"]) -> Float[Array, "b g c"]:
    """The k3 estimate of KL(policy || reference) of each token."""
    log_ratio = reference - policy
    return jnp.exp(log_ratio) - log_ratio - 1.0


def reduced(
    per_token: Float[Array, "b g c"], mask: Bool[Array, "b g c"], rewards: Float[Array, "b g"], config: Grpo
) -> Float[Array, ""]:
    """The loss of all tokens, by `Grpo.reduce` and `Grpo.skip_flat_groups`."""
    used = mask & ~(flat_groups(rewards)[:, None, None] & config.skip_flat_groups)
    per_token = jnp.where(used, per_token, 0.0)
    completions = jnp.maximum(jnp.sum(jnp.any(used, axis=-1)), 1)
    if config.reduce == "completion":
        return jnp.sum(per_token / jnp.maximum(jnp.sum(mask, axis=-1, keepdims=True), 1)) / completions
    if config.reduce == "token":
        return jnp.sum(per_token) / jnp.maximum(jnp.sum(used), 1)
    return jnp.sum(per_token) / (completions * mask.shape[-1])


def metrics(
    kl: Float[Array, "b g c"],
    ratio: Float[Array, "b g c"],
    clip_mask: Bool[Array, "b g c"],
    mask: Bool[Array, "b g c"],
    rewards: Float[Array, "b g"],
) -> GrpoMetrics:
    """Means over the completions' tokens."""
    mean = lambda x: jnp.sum(jnp.where(mask, x, 0.0)) / jnp.maximum(jnp.sum(mask), 1)
    return GrpoMetrics(mean(kl), mean(ratio), mean(clip_mask), jnp.mean(flat_groups(rewards).astype(jnp.float32)))
