"""Pieces in the graph against the tokenizer's own pre-tokeniser, and what the quick NFC check may pass over."""

import jax
import jax.numpy as jnp
import numpy as np
from tokenizers import normalizers

from omnir1_jax.text import characters
from omnir1_jax.text.pretokenize import piece_ends, piece_starts
from tests.text import trained

BATCH, ROOM = 500, 160


@jax.jit
def starts(table, unit, count):
    return piece_starts(piece_ends(table, unit, count), count)


def check(strings):
    table, pieces = characters.characters(), trained.pre_tokenizer()
    for at in range(0, len(strings), BATCH):
        part = strings[at : at + BATCH]
        unit, count = np.zeros((BATCH, ROOM), np.int32), np.zeros(BATCH, np.int32)
        for i, s in enumerate(part):
            assert len(s) < ROOM
            unit[i, : len(s)], count[i] = list(map(ord, s)), len(s)
        got = np.asarray(starts(table, jnp.asarray(unit), jnp.asarray(count)))
        for i, s in enumerate(part):
            want = sorted({begin for _, (begin, _) in pieces.pre_tokenize_str(s)})
            assert np.flatnonzero(got[i]).tolist() == want, s


def test_pieces():
    check(trained.strings(3, 2000, ROOM))


def test_contractions_fold_case():
    """The pattern ignores case as Unicode does: every character in every place of a contraction."""
    every = [chr(p) for p in range(0x110000) if not 0xD800 <= p < 0xE000]
    packed = lambda probes: ["".join(probes[i : i + 30]) for i in range(0, len(probes), 30)]
    check(packed([f"'{c}b " for c in every if c.isalpha() and ord(c) < 0x20000]))
    cased = [c for c in every if c.lower() != c or c.upper() != c]
    assert "ſ" in cased and "K" in cased
    check(packed([f"'{c}{x}z" for c in cased for x in "eL"] + [f"'{x}{c}z" for c in cased for x in "RvL"]))


def test_edges():
    """White space and line ends in all short orders, between and at the ends."""
    marks = [" ", "\n", "\r", "\t", "a", "1", "!", "'", "s", "\u00a0", "\u0301"]
    check([a + b + c + d for a in marks for b in marks for c in marks for d in ("", *marks[:5])])


def test_nothing_that_changes_passes_unseen():
    """NFC alters a string only by characters that it alters alone, marks, and what stands second in a composite."""
    points = [p for p in range(0x110000) if p != 0x0A and not 0xD800 <= p < 0xE000]
    single = list(map(chr, points))
    seen = np.asarray(characters.may_change(characters.characters(), jnp.asarray(points))).tolist()
    apart = normalizers.NFD().normalize_str("\n".join(single)).split("\n")
    together = normalizers.NFC().normalize_str("\n".join(single)).split("\n")
    later = {x for c, d, t in zip(single, apart, together, strict=True) if c == t for x in d[1:]}
    marked = normalizers.NFD().normalize_str("\n".join("\u0315" + c + "\u0334" for c in single)).split("\n")
    for c, flag, alone, decomposed, moved in zip(single, seen, together, apart, marked, strict=True):
        mark = decomposed == c and moved != "\u0315" + c + "\u0334"
        assert flag == (alone != c or c in later or mark or c in "\u0334\u0315"), hex(ord(c))
