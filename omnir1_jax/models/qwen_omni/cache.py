"""Keys and values: a prompt's, held once for its group of continuations, and each continuation's own tail."""

from typing import NamedTuple

import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from omnir1_jax.models.qwen_omni.config import TextConfig


class Prompt(NamedTuple):
    """Prompts ready for the decoder, media embeddings in place. Padding may stand on either side.

    Attributes:
      positions: TMRoPE ids (time, height, width).
      next_position: id of the first token after the prompt, on all three axes.
    """

    embeddings: Float[Array, "b s d"]
    positions: Int[Array, "b 3 s"]
    mask: Bool[Array, "b s"]
    next_position: Int[Array, " b"]


class PromptCache(NamedTuple):
    """Keys and values of prompts, one copy whatever the number of continuations.

    Attributes:
      keys, values: layer, row, key head, token, channel; keys are already rotated.
      last: final hidden state of the last real token of each prompt: it predicts token 0 of every continuation.
    """

    keys: Float[Array, "l b k p d"]
    values: Float[Array, "l b k p d"]
    mask: Bool[Array, "b p"]
    next_position: Int[Array, " b"]
    last: Float[Array, "b e"]


class TailCache(NamedTuple):
    """Keys and values of g continuations of each prompt.

    Attributes:
      keys, values: layer, row, continuation, key head, slot, channel.
      mask: slots that hold a real token.
      used: number of slots written so far, the same for all rows (a tail prompt may be padded).
    """

    keys: Float[Array, "l b g k c d"]
    values: Float[Array, "l b g k c d"]
    mask: Bool[Array, "b g c"]
    used: Int[Array, ""]


def empty_tail(config: TextConfig, rows: int, group: int, slots: int, dtype: DTypeLike) -> TailCache:
    """A tail with a capacity of `slots` tokens of each of `group` continuations of `rows` prompts."""
    # Two arrays: one buffer for both could not be updated in place.
    shape = (config.num_layers, rows, group, config.num_kv_heads, slots, config.head_dim)
    return TailCache(
        keys=jnp.zeros(shape, dtype),
        values=jnp.zeros(shape, dtype),
        mask=jnp.zeros((rows, group, slots), bool),
        used=jnp.zeros((), jnp.int32),
    )
