"""BPE in the graph against the Hugging Face tokenizer, token for token."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from omnir1_jax.text import bpe, characters, hashing
from omnir1_jax.text.vocab import pack
from tests.text import trained

BYTES, BATCH = 160, 500
ROWS = 64  # of the compiled program, whose time grows with them
SIZES = (280, 1000, 3000)


@jax.jit
def encode(tables, text, length):
    return bpe.encode(tables, text, length, BYTES)


@pytest.fixture(scope="module")
def tables():
    return {size: bpe.bpe_tables(trained.tokenizer(size)) for size in SIZES}


def in_graph(tables, strings):
    text = pack([s.encode() for s in strings] + [b""] * (-len(strings) % ROWS), BYTES)
    rows, lengths = np.asarray(text.bytes), np.asarray(text.length)
    found = [encode(tables, rows[at : at + ROWS], lengths[at : at + ROWS]) for at in range(0, len(rows), ROWS)]
    return jax.tree.map(lambda *parts: np.concatenate(parts), *found)


def check(tables, tokenizer, strings):
    got = in_graph(tables, strings)
    want = tokenizer(strings, add_special_tokens=False)["input_ids"]
    long = 0
    for i, (s, ids) in enumerate(zip(strings, want)):
        if got.too_long[i]:
            normal = tokenizer.backend_tokenizer.normalizer.normalize_str(s)
            assert len(normal.encode()) > BYTES
            long += 1
        else:
            assert got.ids[i, : got.length[i]].tolist() == ids, (s, [hex(ord(c)) for c in s])
    return long


def fuzzed(tables, size, seed, count):
    long = 0
    for at in range(0, count, BATCH):
        strings = trained.strings(seed * 1_000_003 + at, BATCH, BYTES - 20)
        long += check(tables[size], trained.tokenizer(size), strings)
    assert long < count // 50


@pytest.mark.parametrize("size", SIZES)
def test_fuzz(tables, size):
    fuzzed(tables, size, size, 2000)


@pytest.mark.slow
def test_fuzz_long(tables):
    for size, count in zip(SIZES, (30_000, 30_000, 40_000)):
        fuzzed(tables, size, size + 1, count)


def chunks(pieces, glue=""):
    """Pieces packed into strings that fit the buffer."""
    out, line = [], ""
    for piece in pieces:
        if len((line + glue + piece).encode()) > BYTES - 60:
            out.append(line)
            line = ""
        line += glue + piece
    return [*out, line]


def every_character():
    return [chr(p) for p in range(0x110000) if not 0xD800 <= p < 0xE000]


def test_every_class(tables):
    """The class of every code point equals that of the tokenizer's own regex engine."""
    table = tables[280].characters
    points = np.array([p for p in range(0x110000) if not 0xD800 <= p < 0xE000], np.int32)
    kinds = np.asarray(characters.kinds(table, jnp.asarray(points)))
    text = "".join(map(chr, points))
    patterns = {"[^\\s\\p{L}\\p{N}]": characters.OTHER, "\\p{L}": characters.LETTER}
    patterns |= {"\\p{N}": characters.NUMBER, "\\s": characters.SPACE}
    for pattern, kind in patterns.items():
        cut = pre_tokenizers.Split(Regex(f"{pattern}+"), "removed").pre_tokenize_str(text)
        outside = np.zeros(len(points), bool)
        for _, (begin, end) in cut:
            outside[begin:end] = True
        assert ((kinds == kind) == ~outside).all()


def test_contractions_and_case_folding(tables):
    """The pattern ignores case as Unicode has it: every character in every place of a contraction, where it matters."""
    letters = [c for c in every_character() if c.lower() != c or c.upper() != c or c in "ſK"]
    probes = [f"a'{c}b" for c in letters] + [f"'{c}{x}z" for c in letters if ord(c) < 0x250 for x in "eElL"]
    probes += [f"'{x}{c}z" for c in letters for x in "rvl"]
    strings = chunks(probes, " ")
    for at in range(0, len(strings), BATCH):
        check(tables[280], trained.tokenizer(280), strings[at : at + BATCH])


def test_normalisation_of_every_character(tables):
    """Each character that NFC touches, alone, decomposed, and after a mark of another order."""
    nfd, nfc = normalizers.NFD(), normalizers.NFC()
    touched = [c for c in every_character() if c != "\n" and not "가" <= c <= "힣"]
    apart = nfd.normalize_str("\n".join(touched)).split("\n")
    together = nfc.normalize_str("\n".join(touched)).split("\n")
    moved = [(c, a) for c, a, t in zip(touched, apart, together) if (a, t) != (c, c)]
    syllables = [chr(0xAC00 + i) for i in range(0, 11172, 97)]
    jamo = [s for c in syllables for s in (nfd.normalize_str(c), c + "\u11a8", "\u1100" + c)]
    marks = "\u0301", "\u0323", "\u0338", "\u0345", "\u3099", "\u05b0"
    probes = [c for c, _ in moved] + [a for _, a in moved] + jamo
    probes += [a[0] + m + a[1:] for _, a in moved for m in marks] + [a + m for _, a in moved for m in marks]
    strings = chunks(probes, "x")
    assert len(strings) > BATCH
    for at in range(0, len(strings), BATCH):
        long = check(tables[1000], trained.tokenizer(1000), strings[at : at + BATCH])
        assert long < BATCH // 10


def test_marks_in_every_order(tables):
    """Marks of any kind behind a letter, in any order."""
    every = every_character()
    swapped = normalizers.NFD().normalize_str("\n".join(c + "\u0334" for c in every if c != "\n")).split("\n")
    marks = [s[1] for s in swapped if len(s) == 2 and s[0] == "\u0334" and s[1] != "\u0334"]
    assert len(marks) > 750
    r = np.random.default_rng(5)
    probes = ["a" + "".join(r.choice(marks, r.integers(1, 5))) for _ in range(6000)]
    strings = chunks(probes)
    for at in range(0, len(strings), BATCH):
        check(tables[280], trained.tokenizer(280), strings[at : at + BATCH])


def test_merges_follow_rank_then_place():
    """Merge lists that no training makes: two ways to a token, and later merges that undercut earlier ones."""
    byte = sorted(pre_tokenizers.ByteLevel.alphabet())
    r = np.random.default_rng(3)
    for _ in range(2):
        vocab = {c: i for i, c in enumerate(byte)}
        merges = []
        names = list("abc")
        for _ in range(60):
            pair = tuple(r.choice(names, 2).tolist())
            if pair not in merges and len("".join(pair)) < 9:
                merges.append(pair)
                vocab.setdefault("".join(pair), len(vocab))
                names.append("".join(pair))
        order = r.permutation(len(merges))
        inner = Tokenizer(models.BPE(vocab=vocab, merges=[merges[i] for i in order]))
        inner.normalizer, inner.pre_tokenizer = normalizers.NFC(), trained.pre_tokenizer()
        inner.decoder = decoders.ByteLevel()
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner)
        strings = ["".join(r.choice(list("abc"), r.integers(1, 60))) for _ in range(BATCH)]
        check(bpe.bpe_tables(tokenizer), tokenizer, strings)


def test_too_long_is_said(tables):
    """More tokens than asked for, or NFC beyond the buffer: no tokens and the flag."""
    short = jax.jit(lambda t, x, n: bpe.encode(t, x, n, 3))
    text = pack([b"a", b"1234", b"123", "\u0958".encode() * 50], 150)
    got = short(tables[280], text.bytes, text.length)
    assert got.too_long.tolist() == [False, True, False, True] and got.length.tolist() == [1, 0, 3, 0]


@settings(max_examples=25)
@given(st.lists(st.text(max_size=35), min_size=1, max_size=BATCH))
def test_text_property(tables, strings):
    check(tables[3000], trained.tokenizer(3000), strings)


def test_large_vocabulary():
    """151,643 tokens: the tables build and encode as the tokenizer does."""
    tokenizer, words = trained.invented_tokenizer(151_643)
    tables = bpe.bpe_tables(tokenizer)
    assert sum(x.nbytes for x in jax.tree.leaves(tables)) < 8 << 20
    r = np.random.default_rng(0)
    strings = ["".join(r.choice(words, 12)).upper() if i % 9 == 0 else "".join(r.choice(words, 12)) for i in range(400)]
    strings += trained.strings(11, 100, BYTES - 20)
    check(tables, tokenizer, strings)


@settings(max_examples=30)
@given(st.lists(st.tuples(st.integers(0, 60), st.integers(0, 60)), unique=True, max_size=300))
def test_pair_table(pairs):
    left, right = np.array(pairs, np.int32).reshape(-1, 2).T
    table = hashing.pair_table(left, right)
    every = np.indices((61, 61), np.int32).reshape(2, -1)
    found = np.asarray(hashing.find(table, jnp.asarray(every[0]), jnp.asarray(every[1])))
    index = {p: i for i, p in enumerate(pairs)}
    assert found.tolist() == [index.get(p, -1) for p in map(tuple, every.T.tolist())]
