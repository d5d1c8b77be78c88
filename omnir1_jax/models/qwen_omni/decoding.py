"""The decoder's weights for decoding: one copy in the activations' dtype, resharded over the mesh."""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from omnir1_jax.models.qwen_omni.decoder import Decoder
from omnir1_jax.parallel import DECODING_RULES, constrain_tree


@functools.cache
def axes(decoder: Decoder) -> Any:
    """Shapes of the decoder's parameters, boxed with their logical axes."""
    tokens = jnp.zeros((1, 1), jnp.int32)
    arguments = tokens, jnp.zeros((1, 3, 1), jnp.int32), jnp.ones((1, 1), bool)
    return jax.eval_shape(decoder.init, jax.random.key(0), *arguments)["params"]


def decoding_copy(decoder: Decoder, variables: Mapping[str, Any]) -> dict[str, Any]:
    """The variables cast once, as every use of them would cast them, and sharded for decoding.

    A token's step reads all weights; sharded as for training they would travel to every device for each token. A LoRA
    adapter is small and keeps its sharding.
    """
    cast = jax.tree.map(lambda x: x.astype(decoder.dtype), dict(variables))
    if jax.sharding.get_abstract_mesh().empty:
        return cast
    return cast | {"params": constrain_tree(cast["params"], axes(decoder), DECODING_RULES)}
