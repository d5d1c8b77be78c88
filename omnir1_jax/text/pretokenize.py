"""The Qwen2 pre-tokeniser's pattern in the graph: for every position the end of a match that begins there.

    (?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*
    |\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+

Matches follow each other without a gap, so the pieces are those reached from the beginning.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from omnir1_jax.text import characters
from omnir1_jax.text.characters import ADDED, LETTER, NUMBER, OTHER, SPACE, Characters
from omnir1_jax.text.vocab import shift

_LONG_S = 0x17F  # folds to "s", as (?i) has it


def _run_end(member: Bool[Array, "n m"]) -> Int[Array, "n m"]:
    """The first position from p on that is not a member."""
    m = member.shape[1]
    position = jnp.arange(m, dtype=jnp.int32)
    return jax.lax.cummin(jnp.where(member, m, position), axis=1, reverse=True)


def piece_ends(table: Characters, unit: Int[Array, "n m"], count: Int[Array, "n"]) -> Int[Array, "n m"]:
    """End of the match that begins at each position. `unit` needs one free position at the end of every row."""
    m = unit.shape[1]
    position = jnp.arange(m, dtype=jnp.int32)
    # Positions past the end, like added tokens, belong to no class and so end every run.
    kind = jnp.where(position < count[:, None], characters.kinds(table, unit), ADDED)
    letter, number, space, other = (kind == k for k in (LETTER, NUMBER, SPACE, OTHER))
    newline = space & ((unit == 0x0A) | (unit == 0x0D))
    blank = space & (unit == 0x20)
    gather = lambda x, p: jnp.take_along_axis(x, jnp.minimum(p, m - 1), axis=1)

    letters, spaces, others, lines = (_run_end(x) for x in (letter, space, other, newline))
    after = lambda x: shift(x, 1)

    low = jnp.where((unit >= 0x41) & (unit <= 0x5A), unit + 0x20, unit)
    low = jnp.where(low == _LONG_S, ord("s"), low)
    low = jnp.where(position < count[:, None], low, 0)
    one, two = shift(low, 1), shift(low, 2)
    quote = low == ord("'")
    short = quote & ((one == ord("s")) | (one == ord("t")) | (one == ord("m")) | (one == ord("d")))
    pairs = (("r", "e"), ("v", "e"), ("l", "l"))
    long = quote & jnp.any(jnp.stack([(one == ord(a)) & (two == ord(b)) for a, b in pairs]), axis=0)

    led = (other | (space & ~newline)) & after(letter)
    marks = other | (blank & after(other))
    mark_end = jnp.where(other, others, after(others))
    last_line = jax.lax.cummax(jnp.where(newline, position, -1), axis=1)
    broken = gather(last_line, jnp.maximum(spaces - 1, 0))
    # White space up to the end of the text matches entirely; before a character, all but the last one.
    solid_next = gather(kind, spaces) != ADDED
    return jnp.select(
        [
            kind == ADDED,
            short,
            long,
            led,
            letter,
            number,
            marks,
            space & (broken >= position),
            space & solid_next & (spaces - position > 1),
        ],
        [
            position + 1,
            position + 2,
            position + 3,
            after(letters),
            letters,
            position + 1,
            gather(lines, mark_end),
            broken + 1,
            spaces - 1,
        ],
        spaces,
    )


def piece_starts(ends: Int[Array, "n m"], count: Int[Array, "n"]) -> Bool[Array, "n m"]:
    """Where pieces begin: from 0, from end to end. One step per piece, all rows at once."""
    n, m = ends.shape
    row = jnp.arange(n)

    def step(carry):
        cursor, start = carry
        live = cursor < count
        start = start.at[row, jnp.where(live, cursor, m)].set(True, mode="drop")
        return jnp.where(live, ends[row, jnp.minimum(cursor, m - 1)], cursor), start

    carry = (jnp.zeros(n, jnp.int32), jnp.zeros((n, m), bool))
    return jax.lax.while_loop(lambda c: jnp.any(c[0] < count), step, carry)[1]
