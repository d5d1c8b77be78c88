"""Token ids to text in the graph: device tables of every token's bytes, and decoding with UTF-8 repair."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int, UInt8

from omnir1_jax.text.family import spelled_bytes, take_apart


class ByteVocab(NamedTuple):
    """Each token's bytes, one after the other. Tokens that decoding drops have none."""

    flat: UInt8[Array, "bytes"]
    offset: Int[Array, "v_plus_1"]


class Text(NamedTuple):
    """UTF-8 texts of a batch, zero beyond their length. One that does not fit has length 0 and `too_long` set."""

    bytes: UInt8[Array, "n m"]
    length: Int[Array, "n"]
    too_long: Bool[Array, "n"]


def byte_vocab(tokenizer: Any) -> ByteVocab:
    """Tables of a Qwen2 tokenizer: special tokens empty (as skip_special_tokens=True), ids without a token empty.

    Raises InputError for a tokenizer of another family.
    """
    family = take_apart(tokenizer)
    tokens = family.vocab | {t.content: t.id for t in family.added}
    special = {t.content for t in family.added if t.special}
    spellings = {i: b"" if token in special else spelled_bytes(token) for token, i in tokens.items()}
    pieces = [spellings.get(i, b"") for i in range(max(spellings) + 1)]
    offset = np.concatenate([[0], np.cumsum([len(p) for p in pieces])]).astype(np.int32)
    # One byte at least, so that a gather from the buffer is always in bounds.
    flat = np.frombuffer(b"".join(pieces) + b"\0", np.uint8)
    return ByteVocab(jax.device_put(flat), jax.device_put(offset))


def shift(x: Array, by: int) -> Array:
    """x[:, p + by] at p, zero outside; `by` static, of either sign."""
    m = x.shape[1]
    by = max(-m, min(m, by))
    if by >= 0:
        return jnp.pad(x[:, by:], ((0, 0), (0, by)))
    return jnp.pad(x[:, : m + by], ((0, 0), (-by, 0)))


def spread(count: Int[Array, "n s"], m: int) -> tuple[Int[Array, "n m"], Int[Array, "n m"], Int[Array, "n"]]:
    """Concatenates `count[i]` items of each source i: the source, and the number within it, of outputs 0..m-1.

    Also returns the total, which may exceed m. Outputs past the total belong to the last source.
    """
    n, s = count.shape
    end = jnp.cumsum(count, axis=1, dtype=jnp.int32)
    start = end - count
    row = jnp.arange(n)[:, None]
    source = jnp.arange(s, dtype=jnp.int32)
    first = jnp.zeros((n, m), jnp.int32).at[row, jnp.where(count > 0, start, m)].max(source, mode="drop")
    owner = jax.lax.cummax(first, axis=1)
    offset = jnp.arange(m, dtype=jnp.int32) - jnp.take_along_axis(start, owner, axis=1)
    return owner, offset, end[:, -1]


def _repair(raw: Int[Array, "n m"]) -> tuple[Int[Array, "n m"], Bool[Array, "n m"]]:
    """How many bytes each byte of possibly invalid UTF-8 becomes, and where a replacement character begins.

    The maximal-subpart practice of the Unicode standard (3.9), which Rust's from_utf8_lossy and Python's
    errors="replace" share: a truncated sequence becomes one U+FFFD, any other stray byte one each.
    """
    next_1, next_2 = shift(raw, 1), shift(raw, 2)
    next_3 = shift(raw, 3)
    tail = lambda b: (b & 0xC0) == 0x80
    lead2 = (raw >= 0xC2) & (raw <= 0xDF)
    lead3 = (raw >= 0xE0) & (raw <= 0xEF)
    lead4 = (raw >= 0xF0) & (raw <= 0xF4)
    low = jnp.select([raw == 0xE0, raw == 0xF0], [0xA0, 0x90], 0x80)
    high = jnp.select([raw == 0xED, raw == 0xF4], [0x9F, 0x8F], 0xBF)
    second = jnp.where(lead2 | lead3 | lead4, (next_1 >= low) & (next_1 <= high), False)
    third = second & (lead3 | lead4) & tail(next_2)
    fourth = third & lead4 & tail(next_3)
    complete = (raw < 0x80) | (lead2 & second) | (lead3 & third) | fourth
    extent = 1 + second + third + fourth  # bytes of the longest valid prefix
    extent = jnp.where(tail(raw), 0, extent)
    covered = (shift(extent, -1) > 1) | (shift(extent, -2) > 2) | (shift(extent, -3) > 3)
    complete_from = lambda by: shift(complete, -by) & (shift(extent, -by) > by)
    valid = complete | complete_from(1) | complete_from(2) | complete_from(3)
    bad = ~valid & ~covered
    return jnp.where(valid, 1, jnp.where(bad, 3, 0)), bad


def detokenise(vocab: ByteVocab, ids: Int[Array, "n c"], max_bytes: int) -> tuple[Text, Int[Array, "n m"]]:
    """`tokenizer.decode(ids, skip_special_tokens=True).encode()` of each row, and the token each byte came from.

    Ids outside the vocabulary (negative ones pad) give nothing. Each byte of a U+FFFD counts to the token of the
    first byte it replaces. Bytes beyond a text's length have token -1.
    """
    v = vocab.offset.shape[0] - 1
    in_vocab = (ids >= 0) & (ids < v)
    begin = vocab.offset[jnp.where(in_vocab, ids, 0)]
    count = jnp.where(in_vocab, vocab.offset[jnp.where(in_vocab, ids, 0) + 1] - begin, 0)
    token, offset, total = spread(count, max_bytes)
    position = jnp.arange(max_bytes, dtype=jnp.int32)
    index = jnp.clip(jnp.take_along_axis(begin, token, axis=1) + offset, 0, vocab.flat.shape[0] - 1)
    inside = position < total[:, None]
    # A zero byte past the end completes no sequence, so one truncated by the end is repaired as such.
    raw = jnp.where(inside, vocab.flat[index].astype(jnp.int32), 0)

    width, bad = _repair(raw)
    source, nth, length = spread(jnp.where(inside, width, 0), max_bytes)
    replacement = jnp.select([nth == 0, nth == 1], [0xEF, 0xBF], 0xBD)
    out = jnp.where(jnp.take_along_axis(bad, source, axis=1), replacement, jnp.take_along_axis(raw, source, axis=1))
    too_long = (total > max_bytes) | (length > max_bytes)
    length = jnp.where(too_long, 0, length)
    inside = position < length[:, None]
    text = Text(jnp.where(inside, out, 0).astype(jnp.uint8), length, too_long)
    return text, jnp.where(inside, jnp.take_along_axis(token, source, axis=1), -1)


def pack(texts: list[bytes], max_bytes: int) -> Text:
    """Host texts as a batch of `Text`."""
    out = np.zeros((len(texts), max_bytes), np.uint8)
    fits = [t if len(t) <= max_bytes else b"" for t in texts]
    for row, t in zip(out, fits):
        row[: len(t)] = np.frombuffer(t, np.uint8)
    length = np.array([len(t) for t in fits], np.int32)
    return Text(jnp.asarray(out), jnp.asarray(length), jnp.asarray([len(t) > max_bytes for t in texts]))
