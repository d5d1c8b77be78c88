"""A GRPO variant of one's own: CISPO's loss (arXiv 2506.13585) on advantages with the batch's deviation.

In a config: c.grpo.loss = "docs/examples/cispo.py:cispo"; c.grpo.advantage = "docs/examples/cispo.py:batch_std"
"""

import jax
import jax.numpy as jnp

from omnir1_jax.rl import grpo


def batch_std(rewards):
    """Rewards [b g] minus their group's mean, over the standard deviation of the whole batch (arXiv 2508.08221)."""
    centred = grpo.centred(rewards)
    return centred / (jnp.std(centred) + grpo.STD_FLOOR)


def cispo(policy, old, reference, mask, rewards, config):
    """REINFORCE whose importance ratio is a clipped constant: no token's gradient is cut off.

    Args:
      policy, old, reference: log-probs [b g c] of the completions' tokens, 0 outside of the mask.
      mask: tokens of the completions.
      rewards: [b g].
      config: the section `grpo` of the settings.
    """
    ratio = jnp.exp(policy - old)
    weight = jax.lax.stop_gradient(jnp.clip(ratio, 1 - config.clip_low, 1 + config.clip_high))
    advantage = grpo.advantages(rewards, config.advantage)[..., None]
    kl = grpo.k3(policy, reference)
    loss = grpo.reduced(config.beta * kl - weight * advantage * policy, mask, rewards, config)
    return loss, grpo.metrics(kl, ratio, weight != ratio, mask, rewards)
