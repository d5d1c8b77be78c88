"""The decoder's weights for decoding: one copy in the activations' dtype, resharded over the mesh."""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict

from omnir1_jax.models import quantise
from omnir1_jax.models.qwen_omni.decoder import Decoder
from omnir1_jax.parallel import DECODING_RULES, constrain


@functools.cache
def axes(decoder: Decoder, form: quantise.Format | None = None) -> Any:
    """Shapes of the decoder's parameters, boxed with their logical axes."""
    tokens = jnp.zeros((1, 1), jnp.int32)
    arguments = tokens, jnp.zeros((1, 3, 1), jnp.int32), jnp.ones((1, 1), bool)
    boxed = jax.eval_shape(decoder.init, jax.random.key(0), *arguments)["params"]
    return boxed if form is None else quantise.quantised({"text": boxed}, form)["text"]


def decoding_copy(decoder: Decoder, variables: Mapping[str, Any]) -> dict[str, Any]:
    """The variables cast once, as every use of them would cast them, and sharded for decoding.

    A token's step reads all weights; sharded as for training they would travel to every device for each token, and so
    would those of a LoRA adapter.
    """
    floating = lambda x: jnp.issubdtype(x.dtype, jnp.floating)
    cast = jax.tree.map(lambda x: x.astype(decoder.dtype) if floating(x) else x, dict(variables))
    if jax.sharding.get_abstract_mesh().empty:
        return cast
    float_axes = flatten_dict(axes(decoder))
    stored_axes = flatten_dict(axes(decoder, quantise.format_of(cast["params"])))

    def shard(path: tuple[str, ...], x: jax.Array) -> jax.Array:
        """`x` sharded by its axes; an adapter's factors like their kernel's input and output."""
        kernel = float_axes.get((*path[:-1], "kernel"))
        if path[-1] == "a":
            names = *kernel.names[: x.ndim - 1], None
        elif path[-1] == "b":
            names = kernel.names[0], None, *kernel.names[len(kernel.names) + 2 - x.ndim :]
        else:
            names = getattr(stored_axes[path], "names", (None,) * x.ndim)
        return constrain(x, names, DECODING_RULES)

    sharded = {path: shard(path[1:], x) for path, x in flatten_dict(cast).items()}
    return unflatten_dict(sharded)
