"""The Qwen2 pre-tokeniser's pattern in the graph: for every place the end of a match that begins there.

    (?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*
    |\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+

Matches follow each other without a gap, so that the pieces are what one reaches from the beginning.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from omnir1_jax.text import characters
from omnir1_jax.text.characters import ADDED, LETTER, NUMBER, OTHER, SPACE, Characters
from omnir1_jax.text.vocab import shift

_LONG_S = 0x17F  # folds to "s", as (?i) has it


def _run_end(member: Bool[Array, "n m"]) -> Int[Array, "n m"]:
    """The first place from p on that is no member."""
    m = member.shape[1]
    place = jnp.arange(m, dtype=jnp.int32)
    return jax.lax.cummin(jnp.where(member, m, place), axis=1, reverse=True)


def piece_ends(table: Characters, unit: Int[Array, "n m"], count: Int[Array, "n"]) -> Int[Array, "n m"]:
    """Where the match that begins at each place ends. `unit` needs one free place at the end of every row."""
    m = unit.shape[1]
    place = jnp.arange(m, dtype=jnp.int32)
    # What lies past the end, as an added token, belongs to no class and so ends every run.
    kind = jnp.where(place < count[:, None], characters.kinds(table, unit), ADDED)
    letter, number, space, other = (kind == k for k in (LETTER, NUMBER, SPACE, OTHER))
    line = space & ((unit == 0x0A) | (unit == 0x0D))
    blank = space & (unit == 0x20)
    at = lambda x, p: jnp.take_along_axis(x, jnp.minimum(p, m - 1), axis=1)

    letters, spaces, others, lines = (_run_end(x) for x in (letter, space, other, line))
    after = lambda x: shift(x, 1)

    low = jnp.where((unit >= 0x41) & (unit <= 0x5A), unit + 0x20, unit)
    low = jnp.where(low == _LONG_S, ord("s"), low)
    low = jnp.where(place < count[:, None], low, 0)
    one, two = shift(low, 1), shift(low, 2)
    quote = low == ord("'")
    short = quote & ((one == ord("s")) | (one == ord("t")) | (one == ord("m")) | (one == ord("d")))
    pairs = (("r", "e"), ("v", "e"), ("l", "l"))
    long = quote & jnp.any(jnp.stack([(one == ord(a)) & (two == ord(b)) for a, b in pairs]), axis=0)

    led = (other | (space & ~line)) & after(letter)
    marks = other | (blank & after(other))
    mark_end = jnp.where(other, others, after(others))
    last_line = jax.lax.cummax(jnp.where(line, place, -1), axis=1)
    broken = at(last_line, jnp.maximum(spaces - 1, 0))
    # White space to the end of the text matches whole; before a character it leaves one for it.
    solid_next = at(kind, spaces) != ADDED
    return jnp.select(
        [
            kind == ADDED,
            short,
            long,
            led,
            letter,
            number,
            marks,
            space & (broken >= place),
            space & solid_next & (spaces - place > 1),
        ],
        [
            place + 1,
            place + 2,
            place + 3,
            after(letters),
            letters,
            place + 1,
            at(lines, mark_end),
            broken + 1,
            spaces - 1,
        ],
        spaces,
    )


def piece_starts(ends: Int[Array, "n m"], count: Int[Array, "n"]) -> Bool[Array, "n m"]:
    """Where pieces begin: from 0, from end to end. One step a piece, all rows at once."""
    n, m = ends.shape
    row = jnp.arange(n)

    def step(carry):
        here, start = carry
        live = here < count
        start = start.at[row, jnp.where(live, here, m)].set(True, mode="drop")
        return jnp.where(live, ends[row, jnp.minimum(here, m - 1)], here), start

    carry = (jnp.zeros(n, jnp.int32), jnp.zeros((n, m), bool))
    return jax.lax.while_loop(lambda c: jnp.any(c[0] < count), step, carry)[1]
