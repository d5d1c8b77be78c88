"""Descriptions: JSON escapes decoded, slices taken into fixed buffers, lower-cased and stripped for a prompt."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, UInt8

from omnir1_jax.text import rules
from omnir1_jax.text.scan import among, first, last
from omnir1_jax.text.vocab import shift, spread


class Buffer(NamedTuple):
    """Short UTF-8 strings of static capacity, zero beyond their length."""

    bytes: UInt8[Array, "*lead d"]
    length: Int[Array, "*lead"]
    truncated: Bool[Array, "*lead"]  # longer than the buffer: truncated to the complete characters that fit


class Unescaped(NamedTuple):
    """Texts with JSON escapes decoded, and the new position of each original byte."""

    bytes: UInt8[Array, "n m"]
    position: Int[Array, "n m"]


def utf8_length(point: Int[Array, "*s"]) -> Int[Array, "*s"]:
    """Bytes of a code point."""
    return 1 + (point >= 0x80) + (point >= 0x800) + (point >= 0x10000).astype(jnp.int32)


def utf8_byte(point: Int[Array, "*s"], nth: Int[Array, "*s"]) -> Int[Array, "*s"]:
    """The nth byte of a code point's UTF-8."""
    size = utf8_length(point)
    lead = jnp.select([size == 1, size == 2, size == 3], [0, 0xC0, 0xE0], 0xF0)
    bits = point >> (6 * jnp.maximum(size - 1 - nth, 0))
    return jnp.where(nth == 0, lead | bits, 0x80 | (bits & 0x3F))


def unescape(text: UInt8[Array, "n m"], intro: Bool[Array, "n m"]) -> Unescaped:
    """Decode every escape that `intro` (automaton.escapes) marks, surrogate pairs joined, lone ones to U+FFFD.

    Correct within the strings of valid JSON; elsewhere the bytes are meaningless but still fit. Bytes outside of
    escapes are unchanged.
    """
    byte = text.astype(jnp.int32)
    kind = shift(byte, 1)
    digit = jnp.where(byte >= ord("a"), byte - 87, jnp.where(byte >= ord("A"), byte - 55, byte - 48)) & 15
    unit = (shift(digit, 2) << 12) | (shift(digit, 3) << 8) | (shift(digit, 4) << 4) | shift(digit, 5)
    long = intro & (kind == ord("u"))
    high = long & (unit >= 0xD800) & (unit < 0xDC00)
    low = long & (unit >= 0xDC00) & (unit < 0xE000)
    pair = high & shift(low, 6)
    joined = 0x10000 + ((unit - 0xD800) << 10) + (shift(unit, 6) - 0xDC00)
    point = jnp.where(pair, joined, jnp.where(high | low, 0xFFFD, unit))
    named = kind
    for letter, meaning in zip(b"bfnrt", b"\b\f\n\r\t"):
        named = jnp.where(kind == letter, meaning, named)
    point = jnp.where(long, point, named)

    inside = shift(intro, -1)
    for by in range(2, 6):
        inside |= shift(long, -by)
    second = low & shift(pair, -6)
    count = jnp.where(intro, utf8_length(point), 1)
    count = jnp.where(inside | second, 0, count)
    source, nth, _ = spread(count, text.shape[1])
    take = lambda x: jnp.take_along_axis(x, source, axis=1)
    out = jnp.where(take(intro), utf8_byte(take(point), nth), take(byte))
    return Unescaped(out.astype(jnp.uint8), jnp.cumsum(count, axis=1, dtype=jnp.int32) - count)


def slices(text: UInt8[Array, "n m"], begin: Int[Array, "n k"], length: Int[Array, "n k"], capacity: int) -> Buffer:
    """text[begin : begin + length] of each row and slot, truncated to complete characters within `capacity` bytes."""
    n, m = text.shape
    k = begin.shape[1]
    # One byte more than fits, to see whether the limit falls within a character.
    index = jnp.clip(begin[:, :, None] + jnp.arange(capacity + 1, dtype=jnp.int32), 0, m - 1)
    window = jnp.take_along_axis(text, index.reshape(n, -1), axis=1).reshape(n, k, capacity + 1)
    truncated = length > capacity
    tail = (window & 0xC0) == 0x80
    position = jnp.arange(capacity + 1, dtype=jnp.int32)
    kept_length = jnp.where(truncated, last(~tail), length)
    return Buffer(jnp.where(position < kept_length[..., None], window, 0)[..., :capacity], kept_length, truncated)


def lower_strip(text: Buffer) -> Buffer:
    """ASCII letters in lower case, ASCII white space removed from both ends."""
    position = jnp.arange(text.bytes.shape[-1], dtype=jnp.int32)
    solid = ~among(text.bytes, rules.WHITE) & (position < text.length[..., None])
    begin = jnp.where(jnp.any(solid, axis=-1), first(solid), 0)
    length = last(solid) + 1 - begin
    moved = jnp.take_along_axis(text.bytes, jnp.clip(position + begin[..., None], 0, position.size - 1), axis=-1)
    upper = (moved >= ord("A")) & (moved <= ord("Z"))
    moved = jnp.where(upper, moved + 0x20, moved)
    return Buffer(jnp.where(position < length[..., None], moved, 0), length, text.truncated)


def join(before: UInt8[Array, "b"], middle: Buffer, after: UInt8[Array, "a"]) -> Buffer:
    """before + middle + after of each row of a flat batch, in a buffer that fits all of it."""
    b, a, d = before.shape[0], after.shape[0], middle.bytes.shape[-1]
    position = jnp.arange(b + d + a, dtype=jnp.int32)
    out = jnp.where(position < b, jnp.pad(before, (0, d + a)), jnp.pad(middle.bytes, ((0, 0), (b, a))))
    if a:
        offset = position - b - middle.length[:, None]
        out = jnp.where((offset >= 0) & (offset < a), after[jnp.clip(offset, 0, a - 1)], out)
    return Buffer(out, middle.length + b + a, middle.truncated)
