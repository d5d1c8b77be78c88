"""JSON in the graph: a pushdown automaton over the bytes of `{...}` groups, equal to Python's strict `json`.

A group ends at its first `}`, so that objects cannot nest and the stack is only the depth of arrays. One table gives
the next state by (inside an array?, state, byte); depth is counted beside it.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int, UInt8

from omnir1_jax.text import rules
from omnir1_jax.text.scan import among, occurs, positions
from omnir1_jax.text.vocab import shift

_NAMES = (
    *("BAD", "START", "FIRST_KEY", "NEXT_KEY", "KEY", "KEY_ESCAPE", "KEY_U1", "KEY_U2", "KEY_U3", "KEY_U4"),
    *("COLON", "VALUE", "FIRST_ITEM", "STRING", "ESCAPE", "U1", "U2", "U3", "U4"),
    *("MINUS", "ZERO", "INTEGER", "POINT", "FRACTION", "E", "E_SIGN", "EXPONENT"),
    *("t", "tr", "tru", "f", "fa", "fal", "fals", "n", "nu", "nul", "AFTER", "END"),
)
STATE = {name: i for i, name in enumerate(_NAMES)}
_SPACE, _DIGITS, _HEX = b" \t\n\r", b"0123456789", b"0123456789abcdefABCDEF"


@functools.cache
def transitions() -> np.ndarray:
    """uint8 [2, states, 256]: the next state outside and inside an array, after json.decoder (RFC 8259, strict)."""
    table = np.full((2, len(STATE), 256), STATE["BAD"], np.uint8)

    def rule(state: str, chars: bytes, next_state: str, contexts: tuple[int, ...] = (0, 1)) -> None:
        for context in contexts:
            table[context, STATE[state], list(chars)] = STATE[next_state]

    def value(state: str) -> None:
        rule(state, _SPACE, state)
        for chars, next_state in (
            (b'"', "STRING"),
            (b"[", "FIRST_ITEM"),
            (b"-", "MINUS"),
            (b"0", "ZERO"),
            (b"123456789", "INTEGER"),
            (b"t", "t"),
            (b"f", "f"),
            (b"n", "n"),
        ):
            rule(state, chars, next_state)

    def after(state: str) -> None:
        rule(state, _SPACE, "AFTER")
        rule(state, b",", "NEXT_KEY", (0,))
        rule(state, b"}", "END", (0,))
        rule(state, b",", "VALUE", (1,))
        rule(state, b"]", "AFTER", (1,))

    def string(inner: str, escape: str, hexes: list[str], done: str) -> None:
        rule(inner, bytes(range(0x20, 0x100)), inner)
        rule(inner, b'"', done)
        rule(inner, b"\\", escape)
        rule(escape, b'"\\/bfnrt', inner)
        rule(escape, b"u", hexes[0])
        for state, next_state in zip(hexes, [*hexes[1:], inner]):
            rule(state, _HEX, next_state)

    rule("START", b"{", "FIRST_KEY")
    rule("FIRST_KEY", _SPACE, "FIRST_KEY")
    rule("FIRST_KEY", b"}", "END")
    rule("NEXT_KEY", _SPACE, "NEXT_KEY")
    for state in ("FIRST_KEY", "NEXT_KEY"):
        rule(state, b'"', "KEY")
    string("KEY", "KEY_ESCAPE", ["KEY_U1", "KEY_U2", "KEY_U3", "KEY_U4"], "COLON")
    rule("COLON", _SPACE, "COLON")
    rule("COLON", b":", "VALUE")
    value("VALUE")
    value("FIRST_ITEM")
    rule("FIRST_ITEM", b"]", "AFTER", (1,))
    string("STRING", "ESCAPE", ["U1", "U2", "U3", "U4"], "AFTER")
    for state in ("AFTER", "ZERO", "INTEGER", "FRACTION", "EXPONENT"):
        after(state)
    rule("MINUS", b"0", "ZERO")
    rule("MINUS", b"123456789", "INTEGER")
    rule("INTEGER", _DIGITS, "INTEGER")
    for state in ("ZERO", "INTEGER"):
        rule(state, b".", "POINT")
    for state in ("POINT", "FRACTION"):
        rule(state, _DIGITS, "FRACTION")
    for state in ("ZERO", "INTEGER", "FRACTION"):
        rule(state, b"eE", "E")
    rule("E", b"+-", "E_SIGN")
    for state in ("E", "E_SIGN", "EXPONENT"):
        rule(state, _DIGITS, "EXPONENT")
    for word in ("true", "false", "null"):
        for i in range(1, len(word)):
            next_state = word[: i + 1] if i + 1 < len(word) else "AFTER"
            rule(word[:i], word[i].encode(), next_state)
    return table


class Parse(NamedTuple):
    """The automaton's result for the group of each lane."""

    good: Bool[Array, "l"]
    value: Int[Array, "l f"]  # where the last value of each wanted key begins in its row, -1 if the key is absent
    trace: UInt8[Array, "m l"]  # state after each byte, counted from the group's begin


def wanted(text: UInt8[Array, "n m"], keys: tuple[str, ...]) -> Int[Array, "n m"]:
    """Bit f set at the opening quote of a string equal to key f, spelled without escapes."""
    bits = jnp.zeros(text.shape, jnp.int32)
    for f, key in enumerate(keys):
        bits |= occurs(text, b'"' + key.encode() + b'"').astype(jnp.int32) << f
    return bits


def parse(
    text: UInt8[Array, "n m"],
    key_bits: Int[Array, "n m"],
    row: Int[Array, "l"],
    begin: Int[Array, "l"],
    run: Int[Array, "l"],
    fields: int,
) -> Parse:
    """Run the automaton over `run` bytes from `begin` of each lane's row, all lanes at once.

    Takes as many sequential steps as the longest group has bytes. `run` 0: a lane without a group (not good).
    """
    m, lanes = text.shape[1], row.shape[0]
    table = jnp.asarray(transitions().reshape(-1))
    code = (text.astype(jnp.int32) | key_bits << 8).reshape(-1)
    base = row * m + begin
    flag = jnp.arange(fields, dtype=jnp.int32)
    steps = jnp.max(run)

    def step(carry):
        t, state, depth, bits, value, trace = carry
        active = t < run
        packed = code[jnp.where(active, base + t, 0)]
        byte = packed & 0xFF
        context = (depth > 0).astype(jnp.int32)
        next_state = table[(context * len(STATE) + state) * 256 + byte].astype(jnp.int32)
        opened = (byte == ord("[")) & (next_state == STATE["FIRST_ITEM"])
        closed = (byte == ord("]")) & (next_state == STATE["AFTER"])
        deeper = depth + opened - closed
        next_state = jnp.where(deeper > rules.MAX_NESTING, STATE["BAD"], next_state)
        at_key = (next_state == STATE["KEY"]) & ((state == STATE["FIRST_KEY"]) | (state == STATE["NEXT_KEY"]))
        bits = jnp.where(active & at_key, packed >> 8, bits)
        at_value = active & (state == STATE["VALUE"]) & (next_state != STATE["VALUE"]) & (depth == 0)
        chosen = at_value[:, None] & ((bits[:, None] >> flag) & 1 == 1)
        value = jnp.where(chosen, (begin + t)[:, None], value)
        state = jnp.where(active, next_state, state)
        depth = jnp.where(active, deeper, depth)
        trace = jax.lax.dynamic_update_slice(trace, state.astype(jnp.uint8)[None], (t, 0))
        return t + 1, state, depth, bits, value, trace

    zeros = jnp.zeros(lanes, jnp.int32)
    carry = (
        jnp.int32(0),
        zeros + STATE["START"],
        zeros,
        zeros,
        jnp.full((lanes, fields), -1, jnp.int32),
        jnp.zeros((m, lanes), jnp.uint8),
    )
    _, state, _, _, value, trace = jax.lax.while_loop(lambda c: c[0] < steps, step, carry)
    return Parse(state == STATE["END"], value, trace)


def loose_keys(
    group: UInt8[Array, "n m"], trace: UInt8[Array, "m n"], well_formed: Bool[Array, "n"]
) -> Int[Array, "n m"]:
    """Key bits of the lenient parse of a group aligned to position 0, for use with `parse`.

    Bit 0: the first key that contains "bbox" in any case; bits 1 and 2: the first two different keys that contain
    "points". Keys with escapes are not recognised. Every key equal to a chosen one carries its bit, because
    the last duplicate's value replaces the first one's.
    """
    state = trace.T.astype(jnp.int32)
    previous = shift(state, -1)
    position = positions(group)
    quote = (state == STATE["KEY"]) & ((previous == STATE["FIRST_KEY"]) | (previous == STATE["NEXT_KEY"]))
    quote &= well_formed[:, None]
    closing = (state == STATE["COLON"]) & (previous == STATE["KEY"])
    opened = jax.lax.cummax(jnp.where(quote, position, -1), axis=1)
    shut = jax.lax.cummin(jnp.where(closing, position, position.size), axis=1, reverse=True)
    escapes = jnp.cumsum(state == STATE["KEY_ESCAPE"], axis=1, dtype=jnp.int32)
    # Letters only, so that a hit which begins within a key also ends there.
    in_key = (state == STATE["KEY"]) & ~quote & well_formed[:, None]
    gather = lambda x, p: jnp.take_along_axis(x, jnp.clip(p, 0, position.size - 1), axis=1)
    clean = in_key & (gather(escapes, shut) == gather(escapes, opened))

    def holder(literal: bytes, allowed: Bool[Array, "n m"]) -> Int[Array, "n"]:
        hit = occurs(group, literal, ignore_case=True) & clean & allowed
        return jnp.min(jnp.where(hit, opened, position.size), axis=1)

    def equal(reference: Int[Array, "n"]) -> Bool[Array, "n m"]:
        """Opening quotes of all keys spelled as the one that opens at `reference`, quotes included."""
        has_reference = reference < position.size
        stop = jnp.where(has_reference, gather(shut, reference[:, None])[:, 0] - reference + 1, 0)

        def step(carry):
            i, alive = carry
            shifted = jnp.take(group, jnp.minimum(position + i, position.size - 1), axis=1)
            letter = gather(group, (reference + i)[:, None])
            return i + 1, alive & ((shifted == letter) | (i >= stop[:, None]))

        longest = jnp.max(stop)
        _, alive = jax.lax.while_loop(lambda c: c[0] < longest, step, (jnp.int32(0), quote & has_reference[:, None]))
        return alive

    everywhere = jnp.ones_like(quote)
    bbox = equal(holder(b"bbox", everywhere))
    points_1 = equal(holder(b"points", everywhere))
    first_points_keys = gather(points_1, opened) & (opened >= 0)
    points_2 = equal(holder(b"points", ~first_points_keys))
    return bbox.astype(jnp.int32) | points_1.astype(jnp.int32) << 1 | points_2.astype(jnp.int32) << 2


def string_end(quotes: Bool[Array, "n m"], begin: Int[Array, "n k"]) -> Int[Array, "n k"]:
    """The closing quote of the string that opens at `begin`: the next one that is not escaped."""
    m = quotes.shape[1]
    following = jax.lax.cummin(jnp.where(quotes, positions(quotes), m), axis=1, reverse=True)
    return jnp.take_along_axis(jnp.pad(following, ((0, 0), (0, 1)), constant_values=m), begin + 1, axis=1)


def escapes(text: UInt8[Array, "n m"]) -> Bool[Array, "n m"]:
    """Backslashes that introduce an escape: an even number of backslashes stands directly before."""
    position = positions(text)
    slash = among(text, b"\\")
    other = shift(jax.lax.cummax(jnp.where(slash, -1, position), axis=1) + 1, -1)
    return slash & ((position - other) % 2 == 0)
