"""The decoder's weights for decoding: one copy in the activations' dtype, resharded over the mesh."""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict

from omnir1_jax.models import quantise
from omnir1_jax.models.qwen_omni.decoder import Decoder
from omnir1_jax.parallel import DECODING_RULES, constrain_tree


@functools.cache
def axes(decoder: Decoder, form: quantise.Format | None = None) -> Any:
    """Shapes of the decoder's parameters, boxed with their logical axes."""
    tokens = jnp.zeros((1, 1), jnp.int32)
    arguments = tokens, jnp.zeros((1, 3, 1), jnp.int32), jnp.ones((1, 1), bool)
    boxed = jax.eval_shape(decoder.init, jax.random.key(0), *arguments)["params"]
    return boxed if form is None else quantise.quantised({"text": boxed}, form)["text"]


def decoding_copy(decoder: Decoder, variables: Mapping[str, Any]) -> dict[str, Any]:
    """The variables cast once, as every use of them would cast them, and sharded for decoding.

    A token's step reads all weights; sharded as for training they would travel to every device for each token. A LoRA
    adapter is small and keeps its sharding.
    """
    floating = lambda x: jnp.issubdtype(x.dtype, jnp.floating)
    cast = jax.tree.map(lambda x: x.astype(decoder.dtype) if floating(x) else x, dict(variables))
    if jax.sharding.get_abstract_mesh().empty:
        return cast
    params, named = flatten_dict(cast["params"]), axes(decoder, quantise.format_of(cast["params"]))
    adapter = {path: x for path, x in params.items() if path[-1] in ("a", "b")}  # beside quantised kernels
    base = unflatten_dict({path: x for path, x in params.items() if path not in adapter})
    placed = flatten_dict(constrain_tree(base, named, DECODING_RULES))
    return cast | {"params": unflatten_dict(placed | adapter)}
