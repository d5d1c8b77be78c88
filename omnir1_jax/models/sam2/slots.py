"""The slots of an object's memory: rows selected per object, and attention that skips empty slots."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Num

FEW = 1024  # keys of the memory up to which empty slots cost less than further programs without them


def rows(x: Num[Array, "o t *d"] | Bool[Array, "o t *d"], indices: Int[Array, "o *s"]) -> Array:
    """The rows of `x` at each object's indices."""
    return jax.vmap(lambda row, index: jnp.take(row, index, axis=0, mode="clip"))(x, indices)


def recall_filled(
    recall: Callable[..., Array],
    max_over_clips: Callable[[Int[Array, ""]], Int[Array, ""]],
    active: Bool[Array, " o"],
    maps: Float[Array, "o s n c"],
    times: Int[Array, "o s"],
    seen: Bool[Array, "o s"],
) -> Float[Array, "o h w d"]:
    """`recall` on the fewest slots that hold all filled ones: a third, two thirds or all. Each costs compile time."""
    slots = seen.shape[1]
    sizes = sorted({-(-slots * part // 3) for part in (1, 2, 3)})
    if slots * maps.shape[2] <= FEW:
        return recall(maps, times, seen)
    order = jnp.argsort(~seen, axis=1, stable=True)

    def with_slots(size: int) -> Callable[[], Array]:
        return lambda: recall(*(rows(x, order[:, :size]) for x in (maps, times, seen)))

    count = jnp.max(jnp.where(active, jnp.sum(seen, axis=1), 0))
    chosen = jnp.searchsorted(jnp.array(sizes), max_over_clips(count))
    return jax.lax.switch(chosen, [with_slots(size) for size in sizes])
