"""The one door to attention kernels: plain XLA everywhere, splash on TPU, cuDNN on NVIDIA.

Who may look at whom is data (`Mask`), so that a kernel can build it block by block and the whole table of queries
against keys never has to exist.
"""

import math
from typing import Literal, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from omnir1_jax.errors import InputError

Implementation = Literal["auto", "xla", "splash", "cudnn"]

# The XLA path holds at most this many scores at a time (float32: 512 MiB), but takes queries in pieces no smaller
# than MIN_QUERIES, below which matrix products are inefficient.
MAX_SCORES = 2**27
MIN_QUERIES = 128
_MASKED = -1e30  # finite, so that a query without any key gives the mean of the values, not NaN


class Tree(NamedTuple):
    """Sequence layout `prompt + group * length`: completions see the prompt and themselves, not one another."""

    prompt: int
    group: int
    length: int


@flax.struct.dataclass
class Mask:
    """All conditions that are given must hold.

    Attributes:
      keys: keys that are real.
      segments: query and key must have the same number (needs as many queries as keys).
      dense: any table.
      causal: no query looks ahead (needs as many queries as keys).
      tree: causal within the prompt and within each completion, see `Tree`.
    """

    keys: Bool[Array, "b t"] | None = None
    segments: Int[Array, "b t"] | None = None
    dense: Bool[Array, "#b s t"] | None = None
    causal: bool = flax.struct.field(pytree_node=False, default=False)
    tree: Tree | None = flax.struct.field(pytree_node=False, default=None)


def attend(
    q: Float[Array, "b s h d"],
    k: Float[Array, "b t k d"],
    v: Float[Array, "b t k d"],
    *,
    mask: Mask = Mask(),  # noqa: B008 (frozen)
    scale: float | None = None,
    implementation: Implementation = "auto",
) -> Float[Array, "b s h d"]:
    """softmax(scale * q k^T) v, softmax in float32; h query heads share k key heads in consecutive groups.

    Args:
      scale: default 1 / sqrt(d).
      implementation: "auto" takes splash on TPU and cuDNN on NVIDIA where `why_not_splash` and `why_not_cudnn` have
        nothing against it, else XLA.

    Raises:
      InputError: the implementation asked for by name cannot do these shapes.
    """
    raise NotImplementedError


def attend_shared(
    q: Float[Array, "b g n h d"],
    prompt_k: Float[Array, "b k p d"],
    prompt_v: Float[Array, "b k p d"],
    prompt_mask: Bool[Array, "b p"],
    tail_k: Float[Array, "b g k c d"],
    tail_v: Float[Array, "b g k c d"],
    tail_mask: Bool[Array, "b g n c"],
    *,
    scale: float | None = None,
) -> Float[Array, "b g n h d"]:
    """g continuations look at one prompt and each at its own tail; the prompt's keys are read in place, once."""
    raise NotImplementedError
