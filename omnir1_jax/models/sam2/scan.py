"""A scan whose length is known only when it runs."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int


def scan_first(
    step: Callable[[Any, Any], tuple[Any, Any]], carry: Any, xs: Any, count: Int[Array, ""]
) -> tuple[Any, Any]:
    """`jax.lax.scan` that ends after `count` steps; what it stacks is zero beyond them. No gradient flows through."""
    step = jax.jit(step, inline=True)  # traced once for the shapes and the loop
    slice_at = lambda i: jax.tree.map(lambda x: jax.lax.dynamic_index_in_dim(x, i, keepdims=False), xs)
    _, like = jax.eval_shape(lambda carry: step(carry, slice_at(0)), carry)
    length = jax.tree.leaves(xs)[0].shape[0]
    stacked = jax.tree.map(lambda x: jnp.zeros((length, *x.shape), x.dtype), like)

    def body(state: tuple) -> tuple:
        i, carry, stacked = state
        carry, y = step(carry, slice_at(i))
        store = lambda stack, value: jax.lax.dynamic_update_index_in_dim(stack, value, i, 0)
        return i + 1, carry, jax.tree.map(store, stacked, y)

    start = (jnp.zeros((), count.dtype), carry, stacked)
    return jax.lax.while_loop(lambda state: state[0] < count, body, start)[1:]
