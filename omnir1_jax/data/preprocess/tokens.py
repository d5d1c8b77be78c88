"""Messages to text and ids: the chat format, and placeholders expanded to one token per cell or piece of sound."""

import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from omnir1_jax.errors import InputError, first_line
from omnir1_jax.files import json_file, regular_file
from omnir1_jax.models.qwen_omni.layout import TokenIds

SPELLING = {
    "audio": "<|AUDIO|>",
    "image": "<|IMAGE|>",
    "video": "<|VIDEO|>",
    "audio_start": "<|audio_bos|>",
    "audio_end": "<|audio_eos|>",
    "vision_start": "<|vision_bos|>",
    "vision_end": "<|vision_eos|>",
    "pad": "<|endoftext|>",
    "end": "<|im_end|>",
}
_FILES = (  # that transformers opens
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "config.json"),
    *("vocab.json", "merges.txt", "chat_template.json", "chat_template.jinja"),
)
MEDIA = ("image", "video", "audio")
DEFAULT_SYSTEM = "You are a helpful assistant."

Item = Mapping[str, Any]
Message = Mapping[str, Any]


def load_tokenizer(path: str | pathlib.Path) -> PreTrainedTokenizerBase:
    """The tokenizer in a local directory. Raises InputError if there is none, or one without the media tokens."""
    if not pathlib.Path(path).is_dir():
        raise InputError(f"{path} is not a directory with a tokenizer")
    for file in (pathlib.Path(path) / name for name in _FILES):
        if file.is_symlink() or file.exists():
            json_file.read(file) if file.suffix == ".json" else regular_file.require(file)
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(path), local_files_only=True, trust_remote_code=False)
    except Exception as error:  # tokenizers raises the bare class, transformers whatever a damaged file leads to
        raise InputError(f"{path}: no readable tokenizer ({first_line(error)})") from error
    token_ids(tokenizer)
    return tokenizer


def token_ids(tokenizer: PreTrainedTokenizerBase) -> TokenIds:
    """Where the tokenizer keeps the special tokens of Qwen2.5-Omni.

    Raises:
      InputError: it lacks one.
    """
    vocab = tokenizer.get_added_vocab()
    missing = [text for text in SPELLING.values() if text not in vocab]
    if missing:
        raise InputError(
            f"the tokenizer of {tokenizer.name_or_path or 'this model'} lacks {', '.join(missing)}: "
            "it is not one of Qwen2.5-Omni"
        )
    ids = {name: vocab[text] for name, text in SPELLING.items()}
    pad, end = ids.pop("pad"), ids.pop("end")
    return TokenIds(**ids, pad=pad, eos=(end,))


def items(messages: Sequence[Message]) -> Iterator[tuple[str, Item]]:
    """All content items in order, each with a name for errors; a string content is one text item.

    Raises:
      InputError: no messages, wrong or missing keys, unknown types, empty texts.
    """
    if isinstance(messages, Mapping | str) or not messages:
        raise InputError("messages must be a list of at least one {'role': ..., 'content': ...}")
    for m, message in enumerate(messages):
        if not isinstance(message, Mapping) or set(message) != {"role", "content"}:
            keys = sorted(map(str, message)) if isinstance(message, Mapping) else type(message).__name__
            raise InputError(f"message {m} must have the keys role and content, got {keys}")
        if not isinstance(message["role"], str) or not message["role"]:
            raise InputError(f"message {m}: role must be a string such as 'user', got {message['role']!r}")
        content = message["content"]
        if not isinstance(content, str | list | tuple) or not content:
            raise InputError(f"message {m}: content must be a text or a list of items, and not empty")
        for i, item in enumerate([{"type": "text", "text": content}] if isinstance(content, str) else content):
            name = f"message {m}, item {i}"
            kind = item.get("type") if isinstance(item, Mapping) else None
            if kind not in _KEYS:
                raise InputError(f"{name}: type must be one of {', '.join(_KEYS)}, got {kind!r}")
            unknown = sorted(set(item) - {"type", kind} - _KEYS[kind])
            if unknown or kind not in item:
                problem = f"unknown key {unknown[0]}" if unknown else f"no key {kind}"
                raise InputError(f"{name} ({kind}): {problem}; known are {', '.join(sorted({kind} | _KEYS[kind]))}")
            if kind == "text":
                _check_text(item["text"], name)
            yield name, item


_KEYS: dict[str, set[str]] = {
    "text": set(),
    "image": {"min_pixels", "max_pixels"},
    "video": {"fps", "min_pixels", "max_pixels", "total_pixels", "audio", "sample_rate"},
    "audio": {"sample_rate"},
}


def check_unicode(text: str, name: str) -> None:
    """InputError for a text that is not Unicode: bytes of a command line that are not UTF-8, halves of a pair."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InputError(f"{name}: the text is not UTF-8 at character {error.start + 1}; write it in UTF-8") from error


def _check_text(text: Any, name: str) -> None:
    if not isinstance(text, str) or not text.strip():
        raise InputError(f"{name}: the text is empty" if isinstance(text, str) else f"{name}: text must be a string")
    check_unicode(text, name)
    for kind in MEDIA:
        if SPELLING[kind] in text:
            raise InputError(f"{name}: the text holds {SPELLING[kind]}; give the {kind} as an item of its own")


def chat_text(
    messages: Sequence[Message], *, template: PreTrainedTokenizerBase | None = None, add_generation_prompt: bool = True
) -> str:
    """The conversation as text with one placeholder for each medium.

    Args:
      messages: `{"role": ..., "content": text or items}`; only the types of media items matter here.
      template: a tokenizer whose own chat template is used, if it has one. Without, Qwen2.5-Omni's format: a default
        system message goes before a conversation that has none.
      add_generation_prompt: whether the assistant's turn is opened at the end.
    """
    if template is not None and template.chat_template:
        plain = [
            {"role": message["role"], "content": message["content"]}
            if isinstance(message["content"], str)
            else {"role": message["role"], "content": [_without_data(item) for item in message["content"]]}
            for message in messages
        ]
        return template.apply_chat_template(plain, tokenize=False, add_generation_prompt=add_generation_prompt)
    if messages[0]["role"] != "system":
        messages = [{"role": "system", "content": DEFAULT_SYSTEM}, *messages]
    turns = [f"<|im_start|>{message['role']}\n{_content(message['content'])}<|im_end|>\n" for message in messages]
    return "".join(turns) + ("<|im_start|>assistant\n" if add_generation_prompt else "")


def _without_data(item: Item) -> Item:
    return item if item["type"] == "text" else {"type": item["type"], item["type"]: ""}


def _content(content: str | Sequence[Item]) -> str:
    if isinstance(content, str):
        return content
    spell = lambda start, kind, end: SPELLING[start] + SPELLING[kind] + SPELLING[end]
    placeholders = {
        "image": spell("vision_start", "image", "vision_end"),
        "video": spell("vision_start", "video", "vision_end"),
        "audio": spell("audio_start", "audio", "audio_end"),
    }
    return "".join(item["text"] if item["type"] == "text" else placeholders[item["type"]] for item in content)


def expand(
    token_ids: Sequence[int], ids: TokenIds, runs: Mapping[str, Sequence[Int[np.ndarray, "_"]]]
) -> Int[np.ndarray, " s"]:
    """Replaces each placeholder by the token ids of its medium, in order.

    Args:
      token_ids: with one placeholder for each medium.
      ids: where the placeholders are.
      runs: for "image", "video" and "audio" the ids of each medium.

    Raises:
      InputError: the chat template placed another number of placeholders than there are media.
    """
    token_ids = np.asarray(token_ids, np.int32)
    positioned = [
        (int(position), run)
        for kind in MEDIA
        for position, run in _pair(token_ids, kind, getattr(ids, kind), runs.get(kind, ()))
    ]
    pieces, start = [], 0
    for position, run in sorted(positioned, key=lambda pair: pair[0]):
        pieces += [token_ids[start:position], run]
        start = position + 1
    return np.concatenate([*pieces, token_ids[start:]]).astype(np.int32)


def _pair(token_ids, kind, token, runs):
    places = np.flatnonzero(token_ids == token)
    if len(places) != len(runs):
        raise InputError(
            f"the chat template placed {len(places)} {SPELLING[kind]} for {len(runs)} {kind} items: "
            "it is not one for these media"
        )
    return zip(places, runs)
