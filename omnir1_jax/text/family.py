"""Reads the parts of a tokenizer that the tables need; rejects any that is not a Qwen2 byte-level BPE."""

import functools
import json
from typing import Any, NamedTuple

from omnir1_jax.errors import InputError

# The pre-tokeniser of the Qwen2 family, as its tokenizer.json states it.
QWEN2_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


class Added(NamedTuple):
    """A token that the tokenizer splits off the text before any other step."""

    id: int
    content: str
    special: bool  # dropped by decode(skip_special_tokens=True)
    plain: bool  # no stripping, no word boundary, matched before normalisation


class Family(NamedTuple):
    """The parts of a Qwen2 tokenizer."""

    name: str
    vocab: dict[str, int]  # byte-level spelling -> id, without the added tokens
    merges: list[tuple[str, str]]  # in rank order
    added: list[Added]


@functools.cache
def byte_alphabet() -> dict[str, int]:
    """Character -> byte of the byte-level spelling: printable Latin-1 maps to itself, the rest from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    unprintable = [b for b in range(256) if b not in set(printable)]
    return {chr(b): b for b in printable} | {chr(0x100 + i): b for i, b in enumerate(unprintable)}


def spelled_bytes(token: str) -> bytes:
    """The bytes that a byte-level decoder gives a token: its UTF-8 if a character is outside the alphabet."""
    alphabet = byte_alphabet()
    if all(c in alphabet for c in token):
        return bytes(alphabet[c] for c in token)
    return token.encode()


def take_apart(tokenizer: Any) -> Family:
    """Read a Hugging Face fast tokenizer (or a bare `tokenizers.Tokenizer`).

    Raises InputError, naming the tokenizer and what differs, unless it is byte-level BPE with the Qwen2 pre-tokeniser
    and NFC, which is what the tables and the graph reproduce.
    """
    name = getattr(tokenizer, "name_or_path", "") or type(tokenizer).__name__
    backend = getattr(tokenizer, "backend_tokenizer", tokenizer)
    if not hasattr(backend, "to_str"):
        raise InputError(f"tokenizer {name}: not a fast tokenizer; load the Qwen2 family's tokenizer.json")
    spec = json.loads(backend.to_str())
    model, normalizer, decoder = spec["model"], spec["normalizer"] or {}, spec["decoder"] or {}
    steps = (spec["pre_tokenizer"] or {}).get("pretokenizers", [spec["pre_tokenizer"] or {}])

    def need(part: str, actual: Any, expected: Any) -> None:
        if actual != expected:
            raise InputError(f"tokenizer {name} is not of the Qwen2 family: its {part} is {actual!r}, not {expected!r}")

    need("model", model.get("type"), "BPE")
    need("normaliser", normalizer.get("type"), "NFC")
    need("pre-tokeniser", [step.get("type") for step in steps], ["Split", "ByteLevel"])
    need("pre-tokeniser's pattern", steps[0]["pattern"].get("Regex"), QWEN2_PATTERN)
    need("pre-tokeniser's behaviour", (steps[0]["behavior"], steps[0]["invert"]), ("Isolated", False))
    need("prefix space", steps[1]["add_prefix_space"], False)
    need("second regex", steps[1]["use_regex"], False)
    need("decoder", decoder.get("type"), "ByteLevel")
    for key in ("dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix"):
        need(key, model.get(key) or None, None)
    for key in ("byte_fallback", "ignore_merges"):
        need(key, bool(model.get(key)), False)
    missing = [b for c, b in byte_alphabet().items() if c not in model["vocab"]]
    need("vocabulary's missing bytes", missing, [])

    merges = [tuple(m.split(" ")) if isinstance(m, str) else tuple(m) for m in model["merges"]]
    added = [
        Added(
            t["id"],
            t["content"],
            t["special"],
            not (t["single_word"] or t["lstrip"] or t["rstrip"] or t["normalized"]),
        )
        for t in spec["added_tokens"]
    ]
    outside = {t.content for t in added}
    vocab = {token: i for token, i in model["vocab"].items() if token not in outside}
    return Family(name, vocab, merges, added)
