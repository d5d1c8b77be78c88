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
      keys, values: layer, row, key head, token, channel; keys are already rotated. Of unstacked layers, lists of one
        layer's arrays in the layout that `Stack` describes.
      last: final hidden state of the last real token of each prompt: it predicts token 0 of every continuation.
    """

    keys: Float[Array, "l b k p d"]
    values: Float[Array, "l b k p d"]
    mask: Bool[Array, "b p"]
    next_position: Int[Array, " b"]
    last: Float[Array, "b e"]


class Stack(NamedTuple):
    """Keys and values of g continuations of each prompt: layer, row, continuation, key head, slot, channel.

    Of unstacked layers, those of one layer in the layout of a CPU's products: row, continuation and key head are one
    axis (XLA would write every token twice, in both shapes), and the channel of keys precedes the slot.
    """

    keys: Float[Array, "l b g k c d"] | Float[Array, "bgk d c"]
    values: Float[Array, "l b g k c d"] | Float[Array, "bgk c d"]


class TailCache(NamedTuple):
    """Keys and values of g continuations of each prompt so far.

    Attributes:
      stacks: one of all layers, or one per layer (`decoder.unstack_layers`).
      mask: slots that hold a real token.
      used: number of slots written so far, the same for all rows (a tail prompt may be padded).
    """

    stacks: tuple[Stack, ...]
    mask: Bool[Array, "b g c"]
    used: Int[Array, ""]


def empty_tail(
    config: TextConfig, rows: int, group: int, slots: int, dtype: DTypeLike, unstacked: bool = False
) -> TailCache:
    """A tail with a capacity of `slots` tokens of each of `group` continuations of `rows` prompts.

    Args:
      unstacked: whether there is a stack per layer instead of one of all.
    """
    heads, layers = config.num_kv_heads, config.num_layers
    # Separate arrays: a shared buffer could not be updated in place.
    zeros = lambda *shape: jnp.zeros(shape, dtype)
    if unstacked:
        n, d = rows * group * heads, config.head_dim
        stacks = tuple(Stack(zeros(n, d, slots), zeros(n, slots, d)) for _ in range(layers))
    else:
        shape = (layers, rows, group, heads, slots, config.head_dim)
        stacks = (Stack(zeros(*shape), zeros(*shape)),)
    return TailCache(stacks, jnp.zeros((rows, group, slots), bool), jnp.zeros((), jnp.int32))
