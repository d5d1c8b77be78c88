"""Reward terms of one's own: what is said in few tokens earns more.

In a config: c.reward.extra = (("docs/examples/brevity.py:brevity", 0.5),)
"""

import numpy as np

from omnir1_jax.rl.terms import on_host


def brevity(batch, completions, reading, grounding, masks):
    """1 for a completion of no tokens, 0 for one that fills its buffer. Jittable, so any step.mode takes it."""
    return 1 - completions.lengths / completions.tokens.shape[-1]


@on_host
def variety(batch, completions, reading, grounding, masks):
    """Share of a completion's tokens that are not repeated, by numpy: step.mode=staged alone takes it."""
    each = lambda tokens, length: len(np.unique(tokens[:length])) / max(length, 1)
    return np.vectorize(each, signature="(n),()->()")(completions.tokens, completions.lengths)
