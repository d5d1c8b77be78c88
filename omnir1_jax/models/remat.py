"""What the backward pass recomputes, by name."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax

from omnir1_jax.errors import InputError

ATTENTION_OUTPUT = "attention_output"  # the name under which a block's attention result is known to policies

_policies = jax.checkpoint_policies

# None: no rematerialisation at all. "full" keeps only the input of each block. "attention" keeps the attention
# results besides, so that the costly kernel is not run twice. "dots" keeps every matrix product, "dots_no_batch"
# those without batch axes (the linear layers), "offload" puts these into the host's memory.
POLICIES: dict[str, Callable[..., Any] | None] = {
    "none": None,
    "full": _policies.nothing_saveable,
    "attention": _policies.save_only_these_names(ATTENTION_OUTPUT),
    "dots": _policies.dots_saveable,
    "dots_no_batch": _policies.dots_with_no_batch_dims_saveable,
    "offload": _policies.offload_dot_with_no_batch_dims("device", "pinned_host"),
}


def remat(block: type[nn.Module], policy: str) -> type[nn.Module]:
    """`block` with its backward pass under the policy of that name; for use inside `nn.scan`."""
    if policy not in POLICIES:
        raise InputError(f"remat: no policy named {policy!r}; there are {', '.join(POLICIES)}")
    if POLICIES[policy] is None:
        return block
    return nn.remat(block, policy=POLICIES[policy], prevent_cse=False)
