"""Byte-level BPE in the graph, token for token equal to a Qwen2 tokenizer."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int, UInt8

from omnir1_jax.errors import InputError
from omnir1_jax.text import characters, hashing
from omnir1_jax.text.characters import SPECIAL, Characters
from omnir1_jax.text.family import Added, byte_alphabet, take_apart
from omnir1_jax.text.nfc import nfc
from omnir1_jax.text.pretokenize import piece_ends, piece_starts
from omnir1_jax.text.strings import utf8_byte, utf8_length
from omnir1_jax.text.vocab import shift, spread


class AddedTokens(NamedTuple):
    """Strings that become one token wherever they occur."""

    spelled: UInt8[Array, "a w"]
    length: Int[Array, "a"]
    id: Int[Array, "a"]


class Bpe(NamedTuple):
    """The arrays of a tokenizer that encoding in the graph needs."""

    byte_id: Int[Array, "256"]
    merges: hashing.PairTable  # in rank order
    merged: Int[Array, "m"]  # the token that each merge makes
    added: AddedTokens
    characters: Characters


class Tokens(NamedTuple):
    """Token ids, 0 beyond each row's length. A text that did not fit a static size has length 0 and `too_long`."""

    ids: Int[Array, "n t"]
    length: Int[Array, "n"]
    too_long: Bool[Array, "n"]


def _added_tokens(name: str, added: list[Added]) -> AddedTokens:
    """Rejects added tokens that overlap: a plain search would match differently from the tokenizer."""
    spellings = [t.content.encode() for t in added]
    for token, text in zip(added, spellings):
        if not token.plain:
            raise InputError(f"tokenizer {name}: added token {token.content!r} strips or normalises; make it plain")
        for other in spellings:
            inside = text != other and other in text
            if inside or any(text.endswith(other[:i]) for i in range(1, min(len(other), len(text)))):
                raise InputError(f"tokenizer {name}: added tokens {text.decode()!r} and {other.decode()!r} overlap")
    ids = [t.id for t in added]
    if not spellings:
        spellings, ids = [b""], [0]
    table = np.zeros((len(spellings), max(1, *map(len, spellings))), np.uint8)
    for row, text in zip(table, spellings):
        row[: len(text)] = np.frombuffer(text, np.uint8)
    return AddedTokens(
        jax.device_put(table),
        jax.device_put(np.array([len(t) for t in spellings], np.int32)),
        jax.device_put(np.array(ids, np.int32)),
    )


def bpe_tables(tokenizer: Any) -> Bpe:
    """Tables of a Hugging Face fast tokenizer; InputError names one that is not of the Qwen2 family."""
    family = take_apart(tokenizer)
    vocab = family.vocab | {t.content: t.id for t in family.added}
    byte_id = np.zeros(256, np.int32)
    for c, b in byte_alphabet().items():
        byte_id[b] = vocab[c]
    pairs = np.array([(vocab[a], vocab[b]) for a, b in family.merges], np.int64).reshape(-1, 2)
    merged = [vocab[a + b] for a, b in family.merges] or [0]
    return Bpe(
        jax.device_put(byte_id),
        hashing.pair_table(pairs[:, 0], pairs[:, 1]),
        jax.device_put(np.array(merged, np.int32)),
        _added_tokens(family.name, family.added),
        characters.characters(),
    )


def _units(
    added: AddedTokens, text: UInt8[Array, "n m"], length: Int[Array, "n"]
) -> tuple[Int[Array, "n m"], Int[Array, "n"]]:
    """Code points, with every added token as one unit SPECIAL + its number."""
    n, m = text.shape
    position = jnp.arange(m, dtype=jnp.int32)
    byte = text.astype(jnp.int32)
    real = position < length[:, None]

    def search(_):
        def step(i, hit):
            shifted = jnp.take(byte, jnp.minimum(position + i, m - 1), axis=1)
            fits = position + i < length[:, None]
            same = fits[:, None] & (shifted[:, None] == added.spelled[:, i][:, None].astype(jnp.int32))
            return hit & (same | (i >= added.length)[:, None])

        hit = jnp.ones((n, added.length.shape[0], m), bool) & (added.length > 0)[:, None]
        hit = jax.lax.fori_loop(0, added.spelled.shape[1], step, hit)
        return jnp.where(jnp.any(hit, axis=1), jnp.argmax(hit, axis=1).astype(jnp.int32), -1)

    begins = jnp.any(byte[:, None] == added.spelled[:, 0][:, None].astype(jnp.int32), axis=1) & real
    added_index = jax.lax.cond(jnp.any(begins), search, lambda _: jnp.full((n, m), -1, jnp.int32), None)
    added_index = jnp.where(real, added_index, -1)
    # Tokens do not overlap, so only the latest match can cover a position.
    until = jax.lax.cummax(jnp.where(added_index >= 0, position + added.length[added_index], 0), axis=1)
    covered = (position < until) & (added_index < 0)

    one, two, three = (shift(byte, i) & 0x3F for i in (1, 2, 3))
    point = jnp.select(
        [byte < 0x80, byte < 0xE0, byte < 0xF0],
        [byte, (byte & 0x1F) << 6 | one, (byte & 0x0F) << 12 | one << 6 | two],
        (byte & 0x07) << 18 | one << 12 | two << 6 | three,
    )
    begins = real & ~covered & ((byte & 0xC0) != 0x80)
    index = jnp.cumsum(begins, axis=1, dtype=jnp.int32) - 1
    unit = jnp.where(added_index >= 0, SPECIAL + added_index, point)
    row = jnp.arange(n)[:, None]
    out = jnp.zeros((n, m), jnp.int32).at[row, jnp.where(begins, index, m)].set(unit, mode="drop")
    return out, jnp.sum(begins, axis=1, dtype=jnp.int32)


def _merge(
    tables: Bpe, token: Int[Array, "n b"], piece: Int[Array, "n b"], real: Bool[Array, "n b"]
) -> tuple[Int[Array, "n b"], Bool[Array, "n b"]]:
    """Merge until nothing merges: in each piece and round the pair of lowest rank, the leftmost of equals."""
    n, b = token.shape
    if tables.merged.shape[0] * b >= 1 << 31:
        raise InputError(
            f"texts of {b} bytes are too long for {tables.merged.shape[0]} merges; shorten the text buffer"
        )
    never = jnp.int32((1 << 31) - 1)
    row = jnp.arange(n)[:, None]
    position = jnp.arange(b, dtype=jnp.int32)

    def step(carry):
        _, token, following, alive = carry
        next_index = jnp.minimum(following, b - 1)
        next_token = jnp.take_along_axis(token, next_index, axis=1)
        paired = alive & (following < b) & (jnp.take_along_axis(piece, next_index, axis=1) == piece)
        paired &= jnp.take_along_axis(real, next_index, axis=1)
        rank = hashing.find(tables.merges, token, next_token)
        key = jnp.where(paired & (rank >= 0), rank * b + position, never)
        best = jnp.full((n, b), never).at[row, piece].min(key)
        wins = (key < never) & (jnp.take_along_axis(best, piece, axis=1) == key)
        token = jnp.where(wins, tables.merged[jnp.maximum(rank, 0)], token)
        removed = jnp.zeros((n, b), bool).at[row, jnp.where(wins, next_index, b)].set(True, mode="drop")
        beyond = jnp.take_along_axis(following, next_index, axis=1)
        following = jnp.where(wins, beyond, following)
        return jnp.any(wins), token, following, alive & ~removed

    carry = (jnp.bool_(True), token, jnp.broadcast_to(position + 1, (n, b)), real)
    _, token, _, alive = jax.lax.while_loop(lambda c: c[0], step, carry)
    return token, alive


def encode(tables: Bpe, text: UInt8[Array, "n m"], length: Int[Array, "n"], max_tokens: int) -> Tokens:
    """`tokenizer(string, add_special_tokens=False)` of each row of valid UTF-8, up to `max_tokens` tokens.

    Added tokens in the string become tokens, as in the tokenizer. Normalised text longer than the buffer is too long.
    """
    n, m = text.shape
    unit, count = nfc(tables.characters, *_units(tables.added, text, length))
    # One position more than units, so that each has a next.
    unit = jnp.pad(unit, ((0, 0), (0, 1)))
    start = piece_starts(piece_ends(tables.characters, unit, count), count)
    piece = jnp.maximum(jnp.cumsum(start, axis=1, dtype=jnp.int32) - 1, 0)

    width = jnp.where(unit >= SPECIAL, 1, utf8_length(unit))
    owner, nth, total = spread(jnp.where(jnp.arange(unit.shape[1]) < count[:, None], width, 0), m)
    take = lambda x: jnp.take_along_axis(x, owner, axis=1)
    source_unit = take(unit)
    special = source_unit >= SPECIAL
    byte = utf8_byte(jnp.where(special, 0, source_unit), nth)
    token = jnp.where(
        special, tables.added.id[jnp.where(special, source_unit - SPECIAL, 0)], tables.byte_id[byte & 0xFF]
    )
    real = jnp.arange(m) < total[:, None]
    token, alive = _merge(tables, token, take(piece), real)

    token_count = jnp.sum(alive, axis=1, dtype=jnp.int32)
    too_long = (total > m) | (token_count > max_tokens)
    index = jnp.where(alive & ~too_long[:, None], jnp.cumsum(alive, axis=1) - 1, max_tokens)
    row = jnp.arange(n)[:, None]
    ids = jnp.zeros((n, max_tokens), jnp.int32).at[row, index].set(token, mode="drop")
    return Tokens(ids, jnp.where(too_long, 0, token_count), too_long)
