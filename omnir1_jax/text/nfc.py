"""Unicode normalisation form C in the graph, as the tokenizers library's normaliser does it."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from omnir1_jax.text import characters
from omnir1_jax.text.characters import Characters
from omnir1_jax.text.vocab import spread


def _decompose(
    table: Characters, unit: Int[Array, "n m"], count: Int[Array, "n"], capacity: int
) -> tuple[Int[Array, "n r"], Int[Array, "n"]]:
    parts = characters.parts(table, unit)
    real = jnp.arange(unit.shape[1]) < count[:, None]
    owner, nth, total = spread(jnp.where(real, jnp.sum(parts >= 0, axis=-1), 0), capacity)
    nth = jnp.clip(nth, 0, 3)
    row = jnp.arange(unit.shape[0])[:, None]
    return parts[row, owner, nth], total


def _arrange(table: Characters, unit: Int[Array, "n r"], count: Int[Array, "n"]) -> Int[Array, "n r"]:
    """Marks behind a starter in canonical order."""
    real = jnp.arange(unit.shape[1]) < count[:, None]
    order = jnp.where(real, characters.orders(characters.words(table, unit)), 0)
    run = jnp.cumsum(order == 0, axis=1, dtype=jnp.int32)
    return jax.lax.sort((run, order, unit), dimension=1, is_stable=True, num_keys=2)[2]


def _compose(
    table: Characters, unit: Int[Array, "n r"], count: Int[Array, "n"]
) -> tuple[Int[Array, "n r"], Int[Array, "n"]]:
    """The canonical composition algorithm, one step per character, all rows at once."""
    n, r = unit.shape
    row = jnp.arange(n)
    longest = jnp.max(count)

    def step(carry):
        t, starter, starter_at, blocked, length, out = carry
        live = t < count
        current = jax.lax.dynamic_index_in_dim(unit, t, axis=1, keepdims=False)
        order = characters.orders(characters.words(table, current))
        composite = characters.compose(table, starter, current)
        joins = live & (starter >= 0) & (composite >= 0) & (blocked < order)
        adds = live & ~joins
        slot = jnp.where(joins, starter_at, jnp.where(adds, length, r))
        out = out.at[row, slot].set(jnp.where(joins, composite, current), mode="drop")
        begins = adds & (order == 0)
        starter = jnp.where(joins, composite, jnp.where(begins, current, starter))
        starter_at = jnp.where(begins, length, starter_at)
        # -1: nothing stands between the starter and what comes next.
        blocked = jnp.where(begins, -1, jnp.where(adds, order, blocked))
        return t + 1, starter, starter_at, blocked, length + adds, out

    zeros = jnp.zeros(n, jnp.int32)
    carry = (jnp.int32(0), zeros - 1, zeros, zeros - 1, zeros, jnp.zeros_like(unit))
    *_, length, out = jax.lax.while_loop(lambda c: c[0] < longest, step, carry)
    return out, length


def nfc(
    table: Characters, unit: Int[Array, "n m"], count: Int[Array, "n"]
) -> tuple[Int[Array, "n r"], Int[Array, "n"]]:
    """NFC of each row of code points; added tokens are barriers. Row length may grow, to 3/2 of m at most.

    m must be the size in bytes that the code points came from: no character decomposes to more than 3 code points for
    2 of its bytes. Batches without a character that NFC could change skip the work.
    """
    m = unit.shape[1]
    capacity = m + (m + 1) // 2
    real = jnp.arange(m) < count[:, None]
    unit = jnp.where(real, unit, 0)

    def work(_):
        split, total = _decompose(table, unit, count, capacity)
        return _compose(table, _arrange(table, split, total), total)

    def skip(_):
        return jnp.pad(unit, ((0, 0), (0, capacity - m))), count

    return jax.lax.cond(jnp.any(characters.may_change(table, unit) & real), work, skip, None)
