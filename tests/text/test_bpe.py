"""BPE in the graph against the Hugging Face tokenizer, token for token."""

import jax
import numpy as np
import pytest

from omnir1_jax.text import bpe
from omnir1_jax.text.vocab import pack
from tests.text import trained

BYTES, BATCH = 160, 500
SIZES = (280, 1000, 3000)


@jax.jit
def encode(tables, text, length):
    return bpe.encode(tables, text, length, BYTES)


@pytest.fixture(scope="module")
def tables():
    return {size: bpe.bpe_tables(trained.tokenizer(size)) for size in SIZES}


def in_graph(tables, strings):
    text = pack([s.encode() for s in strings] + [b""] * (BATCH - len(strings)), BYTES)
    return jax.tree.map(np.asarray, encode(tables, text.bytes, text.length))


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
