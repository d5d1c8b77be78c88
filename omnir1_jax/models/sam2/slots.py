"""The slots of an object's memory: each object's own rows, and attention that leaves empty slots out."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Num

FEW = 1024  # keys of the memory up to which empty slots cost less than further programs without them


def rows(x: Num[Array, "o t *d"] | Bool[Array, "o t *d"], at: Int[Array, "o *s"]) -> Array:
    """Each object's own rows of `x`."""
    return jax.vmap(lambda row, index: jnp.take(row, index, axis=0, mode="clip"))(x, at)


def of_filled(
    recall: Callable[..., Array],
    most: Callable[[Int[Array, ""]], Int[Array, ""]],
    active: Bool[Array, " o"],
    maps: Float[Array, "o s n c"],
    times: Int[Array, "o s"],
    seen: Bool[Array, "o s"],
) -> Float[Array, "o h w d"]:
    """`recall` with as few slots as hold all filled ones: a third, two thirds or all. Each costs compile time."""
    slots = seen.shape[1]
    sizes = sorted({-(-slots * part // 3) for part in (1, 2, 3)})
    if slots * maps.shape[2] <= FEW:
        return recall(maps, times, seen)
    order = jnp.argsort(~seen, axis=1, stable=True)

    def of(size: int) -> Callable[[], Array]:
        return lambda: recall(*(rows(x, order[:, :size]) for x in (maps, times, seen)))

    count = jnp.max(jnp.where(active, jnp.sum(seen, axis=1), 0))
    chosen = jnp.searchsorted(jnp.array(sizes), most(count))
    return jax.lax.switch(chosen, [of(size) for size in sizes])
