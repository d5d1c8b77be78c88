"""Positions in a text: tags, the answer block, the format, and the `{...}` groups."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, UInt8

from omnir1_jax.text import rules
from omnir1_jax.text.vocab import Text, shift

OPEN_THINK, CLOSE_THINK = b"<think>", b"</think>"
OPEN_ANSWER, CLOSE_ANSWER = b"<answer>", b"</answer>"


class Span(NamedTuple):
    """Half-open byte ranges, one per row; `present` is false where there is none."""

    present: Bool[Array, "n"]
    begin: Int[Array, "n"]
    end: Int[Array, "n"]


class Groups(NamedTuple):
    """The `{...}` groups of each row: byte positions of the braces, and their total number."""

    count: Int[Array, "n"]
    short: Int[Array, "n"]  # groups shorter than the minimum that are not located
    begin: Int[Array, "n k"]
    last: Int[Array, "n k"]  # position of the closing brace
    present: Bool[Array, "n k"]


def among(x: Array, values: bytes) -> Bool[Array, "*shape"]:
    """Which entries are one of these byte values."""
    hit = jnp.zeros(x.shape, bool)
    for value in values:
        hit |= x == value
    return hit


def occurs(text: UInt8[Array, "n m"], literal: bytes, ignore_case: bool = False) -> Bool[Array, "n m"]:
    """Where the literal begins. Texts are zero beyond their length, so that nothing begins inside and ends outside."""
    if ignore_case:
        text = jnp.where((text >= ord("A")) & (text <= ord("Z")), text + 0x20, text)
    hit = text == literal[0]
    for i, byte in enumerate(literal[1:], 1):
        hit &= shift(text, i) == byte
    return hit


def positions(like: Array) -> Int[Array, "m"]:
    """0, 1, ..., m-1 of a text buffer."""
    return jnp.arange(like.shape[-1], dtype=jnp.int32)


def first(mask: Bool[Array, "*lead m"]) -> Int[Array, "*lead"]:
    """Position of the first true entry, m where there is none."""
    return jnp.min(jnp.where(mask, positions(mask), mask.shape[-1]), axis=-1)


def last(mask: Bool[Array, "*lead m"]) -> Int[Array, "*lead"]:
    """Position of the last true entry, -1 where there is none."""
    return jnp.max(jnp.where(mask, positions(mask), -1), axis=-1)


def full_text(text: Text) -> Span:
    """The span of each entire text."""
    return Span(~text.too_long, jnp.zeros_like(text.length), text.length)


def answer(text: Text) -> Span:
    r"""Group 1 of the first `<answer>\s*(.*?)\s*</answer>`, dot matching newlines."""
    position = positions(text.bytes)
    opened = first(occurs(text.bytes, OPEN_ANSWER))
    body = opened + len(OPEN_ANSWER)
    closed = first(occurs(text.bytes, CLOSE_ANSWER) & (position >= body[:, None]))
    present = (opened < position.size) & (closed < position.size)
    solid = ~among(text.bytes, rules.WHITE) & (position >= body[:, None]) & (position < closed[:, None])
    begin = jnp.minimum(first(solid), closed)
    end = jnp.maximum(last(solid) + 1, begin)
    return Span(present, jnp.where(present, begin, 0), jnp.where(present, end, 0))


def formatted(text: Text) -> Bool[Array, "n"]:
    r"""Whether the whole text matches `<think>.*?</think>\s*<answer>.*?</answer>`, dot matching newlines.

    Both lazy parts may span further tags, so it matches if its ends match and `</think>`, white space, `<answer>` is
    anywhere in between.
    """
    position = positions(text.bytes)
    tail = text.length - len(CLOSE_ANSWER)
    starts = occurs(text.bytes, OPEN_THINK)[:, 0]
    ends = jnp.any(occurs(text.bytes, CLOSE_ANSWER) & (position == tail[:, None]), axis=1)
    # The last thing before p that is not white space is the ">" of "</think>".
    after_close = shift(occurs(text.bytes, CLOSE_THINK) & (position >= len(OPEN_THINK)), 1 - len(CLOSE_THINK))
    solid = ~among(text.bytes, rules.WHITE)
    latest = jax.lax.cummax(jnp.where(solid, 2 * position + after_close, -1), axis=1)
    after_think = (shift(latest, -1) % 2 == 1) & (position > 0)
    joint = occurs(text.bytes, OPEN_ANSWER) & after_think & (position + len(OPEN_ANSWER) <= tail[:, None])
    return starts & ends & jnp.any(joint, axis=1)


def groups(
    text: Text, within: Span, max_groups: int, skip_empty: bool = False, min_bytes: int = 0, max_short: int = 0
) -> Groups:
    r"""Every `{` to the next `}` within the span, scanning on after each `}`: `\{.*?\}`, dot matching newlines.

    With `skip_empty`, `{}` is not a group: `\{[^}]+\}`. All are counted. The first `max_groups` are located, of
    those with fewer than `min_bytes` bytes at most `max_short`.
    """
    position = positions(text.bytes)
    inside = (position >= within.begin[:, None]) & (position < within.end[:, None]) & within.present[:, None]
    left, right = (text.bytes == ord("{")) & inside, (text.bytes == ord("}")) & inside
    if skip_empty:
        # Outside a group, a "{" closed at once does not open one; inside, it is a byte like any other.
        hollow = left & shift(right, 1)
    else:
        hollow = jnp.zeros_like(left)
    # Within a group exactly if the last brace before is a "{".
    latest = shift(jax.lax.cummax(jnp.where(left | right, 2 * position + left, -1), axis=1), -1)
    within_group = (latest % 2 == 1) & (latest > 0) & (position > 0)
    opens = left & ~within_group & ~hollow
    closes = right & within_group & ~shift(left & ~within_group & hollow, -1)
    opened = jax.lax.cummax(jnp.where(opens, position, -1), axis=1)
    short = closes & (position - opened + 1 < min_bytes)
    located = closes & (~short | (jnp.cumsum(short, axis=1) <= max_short))
    before = jnp.cumsum(located, axis=1, dtype=jnp.int32) - located
    slot = jnp.arange(max_groups, dtype=jnp.int32)
    end = first(located[:, None] & (before[:, None] == slot[:, None]))
    begin = jnp.take_along_axis(opened, jnp.minimum(end, position.size - 1), axis=1)
    count = lambda mask: jnp.sum(mask, axis=1, dtype=jnp.int32)
    return Groups(count(closes), count(closes & ~located), begin, end, slot < count(located)[:, None])
