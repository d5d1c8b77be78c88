"""Byte tables and detokenising against `tokenizer.decode`, and the refusal of other families."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen2Tokenizer

from omnir1_jax.errors import InputError
from omnir1_jax.text import bpe, vocab
from omnir1_jax.text.vocab import ByteVocab
from tests.text import trained

TOKENS, BYTES, BATCH = 40, 300, 500
read = jax.jit(vocab.detokenise, static_argnums=2)


def check(tokenizer, tables, rows):
    ids = np.full((BATCH, TOKENS), -1, np.int32)
    for row, tokens in zip(ids, rows):
        row[: len(tokens)] = tokens
    text, owner = jax.tree.map(np.asarray, read(tables, jnp.asarray(ids), BYTES))
    pieces = [bytes(tables.flat[a:b]) for a, b in zip(tables.offset, tables.offset[1:])] if len(rows) < 50 else None
    for i, tokens in enumerate(rows):
        want = tokenizer.decode([int(t) for t in tokens], skip_special_tokens=True).encode()
        assert bool(text.too_long[i]) == (len(want) > BYTES)
        if text.too_long[i]:
            assert text.length[i] == 0 and not text.bytes[i].any()
            continue
        assert bytes(text.bytes[i, : text.length[i]]) == want, tokens
        assert not text.bytes[i, text.length[i] :].any() and (owner[i, text.length[i] :] == -1).all()
        if pieces and b"\xef\xbf\xbd" not in want:
            told = [pieces[t] for t in tokens]
            assert owner[i, : text.length[i]].tolist() == [k for k, p in enumerate(told) for _ in p]


@pytest.fixture(scope="module")
def odd():
    """A tokenizer with ids left out and added tokens outside the byte alphabet, long ones included."""
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(trained.tokenizer(1000)._tokenizer.to_str())
    )
    extra = ("two words", "ünïcode", "日本", "x" * 150)
    tokenizer.add_tokens([AddedToken(t, normalized=False) for t in extra])
    return tokenizer


def test_decode(odd):
    tables = vocab.byte_vocab(odd)
    r = np.random.default_rng(0)
    size = len(odd)
    rows = [r.integers(0, size + 5, r.integers(0, TOKENS + 1)) for _ in range(300)]
    # Single bytes give UTF-8 broken in every way.
    rows += [r.integers(0, 256, r.integers(0, TOKENS + 1)) for _ in range(200)]
    check(odd, tables, rows)
    text = [odd(line)["input_ids"][:TOKENS] for line in trained.CORPUS]
    check(odd, tables, [*text, list(range(size - 12, size - 1)), [size - 1, size - 1], [size - 1, 0]])


def test_broken_utf8_exhaustive():
    """All of the second bytes behind every lead, then third and fourth at the edges, each between two letters."""
    edges = (0x00, 0x41, 0x7F, 0x80, 0x8F, 0x90, 0x9F, 0xA0, 0xBF, 0xC0, 0xC2, 0xE0, 0xED, 0xF0, 0xF4, 0xF5, 0xFF)
    words = [bytes((a, b)) for a in range(0x7F, 256) for b in range(256)]
    words += [bytes((a, b, c)) for a in range(0xE0, 0xF6) for b in edges for c in edges]
    words += [bytes((a, b, c, d)) for a in range(0xF0, 0xF6) for b in edges for c in edges for d in edges]
    line = b"\n".join(words)
    tables = ByteVocab(jnp.arange(256, dtype=jnp.uint8), jnp.arange(257, dtype=jnp.int32))
    room = 3 * len(line)
    text, _ = read(tables, jnp.asarray(list(line), jnp.int32)[None], room)
    assert bytes(np.asarray(text.bytes[0, : text.length[0]])) == line.decode("utf-8", "replace").encode()


@settings(max_examples=30)
@given(st.lists(st.binary(max_size=TOKENS), min_size=1, max_size=BATCH))
def test_bytes_property(rows):
    tables = ByteVocab(jnp.arange(256, dtype=jnp.uint8), jnp.arange(257, dtype=jnp.int32))
    ids = np.full((BATCH, TOKENS), 256, np.int32)
    for row, tokens in zip(ids, rows):
        row[: len(tokens)] = list(tokens)
    text, _ = jax.tree.map(np.asarray, read(tables, jnp.asarray(ids), BYTES))
    for i, row in enumerate(rows):
        assert bytes(text.bytes[i, : text.length[i]]) == row.decode("utf-8", "replace").encode()


def test_pad_is_special(odd):
    """Padding with the end-of-text token changes nothing, as it is dropped."""
    tables = vocab.byte_vocab(odd)
    ids = jnp.asarray([odd("the red circle")["input_ids"] + [odd.convert_tokens_to_ids("<|endoftext|>")] * 4])
    text, _ = read(tables, ids, BYTES)
    assert bytes(np.asarray(text.bytes[0, : text.length[0]])) == b"the red circle"


def alphabet():
    return {c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}


def test_qwen2_class_is_read():
    tokenizer = Qwen2Tokenizer(vocab=alphabet(), merges=[])
    check(tokenizer, vocab.byte_vocab(tokenizer), [list(range(i, i + 20)) for i in range(0, 256, 20)])


def qwen2(**changes):
    inner = Tokenizer(models.BPE(vocab=changes.pop("vocab", alphabet()), merges=[], **changes.pop("model", {})))
    inner.normalizer = changes.pop("normalizer", normalizers.NFC())
    inner.pre_tokenizer = changes.pop("pre_tokenizer", trained.pre_tokenizer())
    inner.decoder = changes.pop("decoder", decoders.ByteLevel())
    return PreTrainedTokenizerFast(tokenizer_object=inner, name_or_path="some/model")


@pytest.mark.parametrize(
    ("tokenizer", "reason"),
    [
        (qwen2(normalizer=normalizers.NFKC()), "normaliser is 'NFKC'"),
        (qwen2(pre_tokenizer=pre_tokenizers.Whitespace()), "pre-tokeniser is"),
        (qwen2(pre_tokenizer=pre_tokenizers.ByteLevel()), "pre-tokeniser is"),
        (qwen2(decoder=decoders.WordPiece()), "decoder is 'WordPiece'"),
        (qwen2(vocab={"a": 0}), "missing bytes"),
        (qwen2(model={"ignore_merges": True}), "ignore_merges is True"),
        (qwen2(model={"byte_fallback": True}), "byte_fallback is True"),
        (PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"a": 0}, unk_token="a"))), "model is"),
    ],
)
def test_other_families_are_refused(tokenizer, reason):
    for build in (vocab.byte_vocab, bpe.bpe_tables):
        with pytest.raises(InputError, match=reason) as error:
            build(tokenizer)
        assert "\n" not in str(error.value) and (tokenizer.name_or_path or "TokenizersBackend") in str(error.value)


def test_slow_tokenizer_is_refused():
    with pytest.raises(InputError, match="not a fast tokenizer"):
        vocab.byte_vocab(object())


def test_overlapping_added_tokens_are_refused():
    tokenizer = qwen2()
    tokenizer.add_tokens([AddedToken("<a><", normalized=False), AddedToken("<b>", normalized=False)])
    with pytest.raises(InputError, match="overlap"):
        bpe.bpe_tables(tokenizer)
    tokenizer = qwen2()
    tokenizer.add_tokens([AddedToken("<a>", lstrip=True, normalized=False)])
    with pytest.raises(InputError, match="strips or normalises"):
        bpe.bpe_tables(tokenizer)
