"""Character properties of the tokenizers library, measured from the library: its Unicode version is not Python's.

Classes of the pre-tokeniser's pattern and all that NFC needs, as tables for the graph.
"""

import functools
import pathlib
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tokenizers
from jaxtyping import Array, Int
from tokenizers import Regex, normalizers

from omnir1_jax.text.hashing import PairTable, find, pair_table

STORED = pathlib.Path(__file__).parent / "characters.npz"
SPECIAL = 0x110000  # units from here on are added tokens, not characters
OTHER, LETTER, NUMBER, SPACE, ADDED = range(5)
# A property word: class, whether NFC may change it, order among marks, row of its decomposition.
_CLASS, _CHANGES, _ORDER_AT, _ROW_AT = 3, 4, 3, 11
_HANGUL, _L, _V, _T = 0xAC00, 0x1100, 0x1161, 0x11A7
_SYLLABLES, _VOWELS, _TAILS = 11172, 21, 28


class Characters(NamedTuple):
    """Property words by page, canonical decompositions and compositions."""

    pages: Int[Array, "pages"]
    words: Int[Array, "w"]
    decomposed: Int[Array, "d 4"]  # code points, -1 past the end
    pairs: PairTable
    composed: Int[Array, "c"]


def _normalised(form, strings: list[str]) -> list[str]:
    """Each string on its own: a line feed neither composes nor lets marks past."""
    return form.normalize_str("\n".join(strings)).split("\n")


@functools.cache
def host_tables() -> dict[str, np.ndarray]:
    """The result of `work_out`, stored per version of the tokenizers library: computing it takes seconds."""
    with np.load(STORED, allow_pickle=False) as stored:
        if str(stored["version"]) != tokenizers.__version__:
            return work_out()
        word = stored["pages"][stored["index"]].reshape(-1)
        return dict(word=word, decomposed=stored["decomposed"], pairs=stored["pairs"])


def store() -> None:
    """Writes the file that `host_tables` reads."""
    tables = work_out()
    pages, index = np.unique(tables.pop("word").reshape(-1, 256), axis=0, return_inverse=True)
    np.savez_compressed(STORED, version=tokenizers.__version__, pages=pages, index=index.reshape(-1), **tables)


def work_out() -> dict[str, np.ndarray]:
    """Property words of all code points, the decompositions and the composing pairs."""
    points = [p for p in range(SPECIAL) if p != 0x0A and not 0xD800 <= p < 0xE000]
    all_text = "".join(map(chr, points))
    word = np.zeros(SPECIAL, np.int32)
    code_points = np.array(points)
    word[0x0A] = SPACE
    for kind, pattern in ((LETTER, r"\p{L}"), (NUMBER, r"\p{N}"), (SPACE, r"\s")):
        # Replaces the class by a private character: only its members change.
        replaced = normalizers.Replace(Regex(pattern), "\ue000").normalize_str(all_text)
        in_class = np.array([a != b for a, b in zip(replaced, all_text, strict=True)])
        word[code_points[in_class]] = kind

    nfd, nfc = normalizers.NFD(), normalizers.NFC()
    single = list(map(chr, points))
    nfd_forms = _normalised(nfd, single)
    split = {p: d for p, c, d in zip(points, single, nfd_forms, strict=True) if c != d}

    # Marks are those that U+0315 (class 232) or U+0334 (class 1) swap with. Only their relative order
    # matters, so it is tested against one mark of each known order.
    solid = [p for p in points if p not in split]
    swapped = np.zeros(SPECIAL, bool)
    for before, after in (("", "\u0334"), ("\u0315", "")):
        probes = [before + chr(p) + after for p in solid]
        swapped[[p for p, s, t in zip(solid, probes, _normalised(nfd, probes), strict=True) if s != t]] = True
    marks = sorted({0x0334, 0x0315} | set(np.flatnonzero(swapped).tolist()))
    higher = np.zeros(len(marks), np.int32)
    representatives: list[str] = []
    for mark in marks:
        c = chr(mark)
        pair_forms = _normalised(nfd, [c + k for k in representatives] + [k + c for k in representatives])
        twins = [
            k
            for j, k in enumerate(representatives)
            if pair_forms[j] == c + k and pair_forms[len(representatives) + j] == k + c
        ]
        if not twins:
            representatives.append(c)
            probes = [chr(m) + c for m in marks]
            higher += np.array([s != t for s, t in zip(probes, _normalised(nfd, probes), strict=True)])
    order = dict(zip(marks, (higher + 1).tolist()))
    for mark, rank in order.items():
        word[mark] |= rank << _ORDER_AT | _CHANGES

    decomposed = np.full((len(split) + 1, 4), -1, np.int64)
    pairs = []
    together = dict(zip(split, _normalised(nfc, list(split.values())), strict=True))
    row = 0
    for point, parts in split.items():
        if _HANGUL <= point < _HANGUL + _SYLLABLES:
            continue
        row += 1
        decomposed[row, : len(parts)] = [ord(c) for c in parts]
        word[point] |= row << _ROW_AT
        if together[point] != chr(point):
            word[point] |= _CHANGES
        elif len(parts) > 1:
            base = nfc.normalize_str(parts[:-1])
            if len(base) != 1:
                raise AssertionError(f"U+{point:04X} does not compose from two characters")
            pairs.append((ord(base), ord(parts[-1]), point))
            word[ord(parts[-1])] |= _CHANGES
    word[_V : _V + _VOWELS] |= _CHANGES
    word[_T + 1 : _T + _TAILS] |= _CHANGES
    return dict(word=word, decomposed=decomposed[: row + 1], pairs=np.array(pairs))


def characters() -> Characters:
    """The tables on the device."""
    host = host_tables()
    on_device = lambda table: jax.device_put(table.astype(np.int32))
    pages, index = np.unique(host["word"].reshape(-1, 256), axis=0, return_inverse=True)
    left, right, composed = host["pairs"].T
    return Characters(
        on_device(index.reshape(-1)),
        on_device(pages.reshape(-1)),
        on_device(host["decomposed"]),
        pair_table(left, right),
        on_device(composed),
    )


def words(table: Characters, unit: Int[Array, "*s"]) -> Int[Array, "*s"]:
    """Property word of each unit, 0 for an added token."""
    point = jnp.where(unit < SPECIAL, unit, 0x10FFFF)
    return table.words[table.pages[point >> 8] * 256 + (point & 0xFF)]


def kinds(table: Characters, unit: Int[Array, "*s"]) -> Int[Array, "*s"]:
    """OTHER, LETTER, NUMBER, SPACE or ADDED."""
    return jnp.where(unit >= SPECIAL, ADDED, words(table, unit) & _CLASS)


def orders(word: Int[Array, "*s"]) -> Int[Array, "*s"]:
    """Canonical order of a mark, 0 of a starter."""
    return (word >> _ORDER_AT) & 0xFF


def parts(table: Characters, unit: Int[Array, "*s"]) -> Int[Array, "*s 4"]:
    """Full canonical decomposition, -1 past its end."""
    decomposed = table.decomposed[words(table, unit) >> _ROW_AT]
    absent = jnp.full_like(unit, -1)
    syllable = unit - _HANGUL
    hangul = (syllable >= 0) & (syllable < _SYLLABLES)
    tail = syllable % _TAILS
    jamo = jnp.stack(
        [
            _L + syllable // (_VOWELS * _TAILS),
            _V + syllable // _TAILS % _VOWELS,
            jnp.where(tail > 0, _T + tail, -1),
            absent,
        ],
        axis=-1,
    )
    itself = jnp.stack([unit, absent, absent, absent], axis=-1)
    return jnp.where(hangul[..., None], jamo, jnp.where(decomposed[..., :1] >= 0, decomposed, itself))


def compose(table: Characters, left: Int[Array, "*s"], right: Int[Array, "*s"]) -> Int[Array, "*s"]:
    """The primary composite of two characters, -1 if there is none."""
    index = find(table.pairs, left, right)
    composite = jnp.where(index >= 0, table.composed[jnp.maximum(index, 0)], -1)
    lead, vowel = left - _L, right - _V
    lv = (lead >= 0) & (lead < 19) & (vowel >= 0) & (vowel < _VOWELS)
    composite = jnp.where(lv, _HANGUL + (lead * _VOWELS + vowel) * _TAILS, composite)
    syllable, tail = left - _HANGUL, right - _T
    lvt = (syllable >= 0) & (syllable < _SYLLABLES) & (syllable % _TAILS == 0) & (tail > 0) & (tail < _TAILS)
    return jnp.where(lvt, left + tail, composite)


def may_change(table: Characters, unit: Int[Array, "*s"]) -> Array:
    """Units that NFC could change, alone or after another: a string without any is in NFC."""
    return words(table, unit) & _CHANGES != 0
