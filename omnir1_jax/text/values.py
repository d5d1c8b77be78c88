"""Times and lists of numbers, parsed by small automata that run over all lanes at once.

Every reader starts where `automaton.parse` found a value, in a group that is good JSON, so it only distinguishes
values and never guards against broken ones.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, UInt8

from omnir1_jax.text import rules
from omnir1_jax.text.scan import among

_NUMBER = b"+-.0123456789eE"
_LIMB = 10**9
_EXPONENT_CAP = 100_000  # beyond any text, so that a digit's exponent is out of range either way


class Times(NamedTuple):
    """Centiseconds of `mm:ss.ff` strings, saturated as the rules say."""

    good: Bool[Array, "l"]
    cs: Int[Array, "l"]


class Numbers(NamedTuple):
    """Lists of k numbers, k the same in every lane."""

    good: Bool[Array, "l"]  # a list of exactly that many numbers
    in_range: Bool[Array, "l"]  # good, and no magnitude above MAX_COORDINATE
    value: Float[Array, "l k"]
    integer: Int[Array, "l k"]  # truncated towards zero


def _byte_at(text: UInt8[Array, "n m"], row: Int[Array, "l"], index: Int[Array, "l"]) -> Int[Array, "l"]:
    m = text.shape[1]
    return text.reshape(-1)[row * m + jnp.clip(index, 0, m - 1)].astype(jnp.int32)


def times(text: UInt8[Array, "n m"], row: Int[Array, "l"], begin: Int[Array, "l"], present: Bool[Array, "l"]) -> Times:
    """`digits:digits.digits` at the start of the string that opens at `begin`; anything but an escape may follow."""
    caps = jnp.array([rules.MAX_MINUTES, rules.MAX_SECONDS, rules.MAX_FRACTION], jnp.int32)
    lanes = begin.shape[0]
    part_of = jnp.arange(4, dtype=jnp.int32)
    present = present & (_byte_at(text, row, begin) == ord('"'))

    def step(carry):
        t, part, has_digit, bad, live, total = carry
        byte = _byte_at(text, row, begin + t)
        digit = (byte >= ord("0")) & (byte <= ord("9"))
        end = byte == ord('"')
        escape = byte == ord("\\")
        in_part = live & digit & (part < 3)
        grown = jnp.minimum(total * 10 + (byte - ord("0"))[:, None], caps)
        total = jnp.where(in_part[:, None] & (part[:, None] == part_of[:3]), grown, total)
        turn = jnp.where(part == 0, byte == ord(":"), byte == ord("."))
        onward = live & has_digit & ~digit & (((part < 2) & turn) | (part == 2))
        broken = live & (part < 3) & ~digit & ~onward
        bad |= broken | (live & escape)
        # The third run of digits is closed by any byte; what closes it may be the end.
        finished = live & end & ((part == 3) | ((part == 2) & has_digit))
        bad |= live & end & ~finished
        live &= ~(end | bad)
        has_digit = jnp.where(onward, False, has_digit | in_part)
        return t + 1, part + onward, has_digit, bad, live, total

    zeros = jnp.zeros(lanes, jnp.int32)
    no = jnp.zeros(lanes, bool)
    carry = (jnp.int32(1), zeros, no, ~present, present, jnp.zeros((lanes, 3), jnp.int32))
    carry = jax.lax.while_loop(lambda c: jnp.any(c[4]) & (c[0] < text.shape[1]), step, carry)
    bad, total = carry[3], carry[5]
    cs = (total[:, 0] * 60 + total[:, 1]) * 100 + total[:, 2]
    return Times(~bad, jnp.where(bad, 0, cs))


def _items(
    text: UInt8[Array, "n m"], row: Int[Array, "l"], begin: Int[Array, "l"], present: Bool[Array, "l"], k: int
) -> tuple[Bool[Array, "l"], Int[Array, "l k"]]:
    """Whether the value is a list of k numbers, and where each begins."""
    lanes = begin.shape[0]
    slot = jnp.arange(k, dtype=jnp.int32)
    present = present & (_byte_at(text, row, begin) == ord("["))

    def step(carry):
        t, count, inside, bad, live, begins = carry
        byte = _byte_at(text, row, begin + t)
        number = among(byte, _NUMBER)
        fresh = live & number & ~inside
        begins = jnp.where(fresh[:, None] & (slot == count[:, None]), (begin + t)[:, None], begins)
        count = count + fresh
        # A later letter of "true" would count as an exponent's, but its first letter does not.
        bad |= live & (~(number | among(byte, b" \t\n\r,]")) | (count > k))
        live &= ~(bad | (byte == ord("]")))
        return t + 1, count, number, bad, live, begins

    carry = (
        jnp.int32(1),
        jnp.zeros(lanes, jnp.int32),
        jnp.zeros(lanes, bool),
        ~present,
        present,
        jnp.zeros((lanes, k), jnp.int32),
    )
    _, count, _, bad, _, begins = jax.lax.while_loop(lambda c: jnp.any(c[4]) & (c[0] < text.shape[1]), step, carry)
    return ~bad & (count == k), begins


class _Shape(NamedTuple):
    """Parts of a number's text: sign, digits before the point, exponent."""

    negative: Bool[Array, "l"]
    before_point: Int[Array, "l"]
    exponent: Int[Array, "l"]


def _shape(text: UInt8[Array, "n m"], row: Int[Array, "l"], begin: Int[Array, "l"], live: Bool[Array, "l"]) -> _Shape:
    zeros, no = jnp.zeros_like(begin), jnp.zeros_like(live)

    def step(carry):
        t, live, point, tail, minus, before, exponent = carry
        byte = _byte_at(text, row, begin + t)
        live &= among(byte, _NUMBER)
        digit = live & (byte >= ord("0")) & (byte <= ord("9"))
        point |= live & (byte == ord("."))
        minus |= live & tail & (byte == ord("-"))
        before += digit & ~point & ~tail
        exponent = jnp.where(digit & tail, jnp.minimum(exponent * 10 + byte - ord("0"), _EXPONENT_CAP), exponent)
        tail |= live & among(byte, b"eE")
        return t + 1, live, point, tail, minus, before, exponent

    negative = _byte_at(text, row, begin) == ord("-")
    carry = (jnp.int32(0), live, no, no, no, zeros, zeros)
    _, _, _, _, minus, before, exponent = jax.lax.while_loop(
        lambda c: jnp.any(c[1]) & (c[0] < text.shape[1]), step, carry
    )
    return _Shape(negative, before, jnp.where(minus, -exponent, exponent))


def decimals(
    text: UInt8[Array, "n m"], row: Int[Array, "l"], begin: Int[Array, "l"], live: Bool[Array, "l"]
) -> tuple[Float[Array, "l"], Int[Array, "l"], Bool[Array, "l"]]:
    """The number whose text begins at `begin`: value, part before the point, and whether it is in range.

    Decimal fixed point: 7 digits before the point, DECIMALS behind in two limbs of 9.
    """
    shape = _shape(text, row, begin, live)
    power = jnp.array([10**i for i in range(9)], jnp.int32)
    zeros = jnp.zeros_like(begin)

    def step(carry):
        t, live, seen, big, above, upper, lower = carry
        byte = _byte_at(text, row, begin + t)
        live &= among(byte, b"-.0123456789")
        digit = live & (byte >= ord("0")) & (byte <= ord("9"))
        figure = jnp.where(digit, byte - ord("0"), 0)
        power_of_ten = shape.before_point - 1 - seen + shape.exponent
        part = lambda low, high: jnp.where(
            (power_of_ten >= low) & (power_of_ten < high), figure * power[jnp.clip(power_of_ten - low, 0, 8)], 0
        )
        big |= (figure > 0) & (power_of_ten > 6)
        return t + 1, live, seen + digit, big, above + part(0, 7), upper + part(-9, 0), lower + part(-18, -9)

    carry = (jnp.int32(0), live, zeros, jnp.zeros_like(live), zeros, zeros, zeros)
    _, _, _, big, above, upper, lower = jax.lax.while_loop(
        lambda c: jnp.any(c[1]) & (c[0] < text.shape[1]), step, carry
    )
    limit = rules.MAX_COORDINATE
    in_range = ~big & ((above < limit) | ((above == limit) & (upper == 0) & (lower == 0)))
    above, upper, lower = (jnp.where(in_range, x, 0) for x in (above, upper, lower))
    value = _round(above, upper, lower)
    return jnp.where(shape.negative, -value, value), jnp.where(shape.negative, -above, above), in_range


def _round(above: Int[Array, "l"], upper: Int[Array, "l"], lower: Int[Array, "l"]) -> Float[Array, "l"]:
    """float32 nearest to above + upper/1e9 + lower/1e18, ties to even; above < 2**24.

    Doubling a decimal fraction carries its next binary digit out, so bits are drawn until there are 25.
    """

    def draw(_, carry):
        mantissa, scale, upper, lower = carry
        unfilled = mantissa < 1 << 24
        low = lower * 2
        carried = low >= _LIMB
        high = upper * 2 + carried
        bit = (high >= _LIMB).astype(jnp.int32)
        return (
            jnp.where(unfilled, mantissa * 2 + bit, mantissa),
            scale - unfilled,
            jnp.where(unfilled, high - bit * _LIMB, upper),
            jnp.where(unfilled, low - carried * _LIMB, lower),
        )

    # 1e-18 has 59 zeros behind the binary point before its first digit.
    mantissa, scale, upper, lower = jax.lax.fori_loop(0, 60 + 25, draw, (above, jnp.zeros_like(above), upper, lower))
    rest = (upper > 0) | (lower > 0)
    rounded = mantissa >> 1
    rounded += (mantissa & 1) & (rest | (rounded & 1 == 1))
    # A power of two written into the exponent bits: exact everywhere.
    unit = jax.lax.bitcast_convert_type((scale + 1 + 127) << 23, jnp.float32)
    return rounded.astype(jnp.float32) * unit


def numbers(
    text: UInt8[Array, "n m"], row: Int[Array, "l"], begin: Int[Array, "l"], present: Bool[Array, "l"], k: int
) -> Numbers:
    """The list of k numbers that opens at `begin`; zeros where it is not one or a coordinate is out of range."""
    is_list, begins = _items(text, row, begin, present, k)
    value, integer, fits = decimals(
        text, jnp.repeat(row, k), jnp.where(is_list[:, None], begins, 0).reshape(-1), jnp.repeat(is_list, k)
    )
    in_range = is_list & jnp.all(fits.reshape(-1, k), axis=1)
    keep = lambda x: jnp.where(in_range[:, None], x.reshape(-1, k), 0)
    return Numbers(is_list, in_range, keep(value), keep(integer))
