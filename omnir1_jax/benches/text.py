"""In-graph text against the host: table building, memory, reading completions, encoding prompts.

The vocabulary is as large as Qwen2.5's, made of invented words, so that tokens are about as long as in prose. Both
sides run in this process; times are medians.
"""

import json
import statistics
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from omnir1_jax.text import bpe, characters, host, prompt, readers, strings, vocab
from omnir1_jax.text.family import QWEN2_PATTERN, byte_alphabet
from omnir1_jax.text.rules import DEFAULT

VOCABULARY, COMPLETIONS, TOKENS, FRAMES = 151_643, 32, 800, 240
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>")
PROMPT = (
    "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>Locate the {description} and give its box in JSON."
    "<|im_end|>\n<|im_start|>assistant\n"
)


def invented_tokenizer(size: int, seed: int = 0) -> tuple[PreTrainedTokenizerFast, list[str]]:
    """A Qwen2 tokenizer of `size` tokens whose merges spell invented words letter by letter; and the words."""
    r = np.random.default_rng(seed)
    alphabet = {b: c for c, b in byte_alphabet().items()}
    tokens = {c: i for i, c in enumerate(sorted(byte_alphabet()))}
    merges = []
    letters = np.array(list("etaoinshrdlucmfwypvbgkjqxz"))
    odds = 1 / np.arange(3, 3 + len(letters))
    words: list[str] = []
    while len(tokens) < size:
        word = " " + "".join(r.choice(letters, r.integers(3, 11), p=odds / odds.sum()))
        words.append(word)
        spelled = "".join(alphabet[b] for b in word.encode())
        for end in range(2, len(spelled) + 1):
            if spelled[:end] not in tokens and len(tokens) < size:
                tokens[spelled[:end]] = len(tokens)
                merges.append((spelled[: end - 1], spelled[end - 1]))
    inner = Tokenizer(models.BPE(vocab=tokens, merges=merges))
    inner.normalizer, inner.decoder = normalizers.NFC(), decoders.ByteLevel()
    inner.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(QWEN2_PATTERN), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    inner.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in SPECIAL])
    return PreTrainedTokenizerFast(tokenizer_object=inner, name_or_path=f"invented-{size}"), words


def completions(tokenizer: PreTrainedTokenizerFast, words: list[str]) -> np.ndarray:
    """int32 [COMPLETIONS, TOKENS]: reasoning of many words, then a plan of four pieces."""
    r = np.random.default_rng(1)
    out = np.zeros((COMPLETIONS, TOKENS), np.int32)
    for row in out:
        piece = lambda k: json.dumps(
            dict(
                start_time=f"00:{10 * k:02d}.00",
                end_time=f"00:{10 * k + 5:02d}.50",
                description="the" + "".join(r.choice(words, 6)),
            )
        )
        answer = "</think>\n<answer>\n" + "\n".join(piece(k) for k in range(4)) + "\n</answer>"
        ids = tokenizer("<think>" + "".join(r.choice(words, TOKENS)))["input_ids"]
        tail = tokenizer(answer)["input_ids"]
        row[:] = ids[: TOKENS - len(tail)] + tail
    return out


def median_ms(function: Callable[[], object], repeats: int) -> float:
    """Median wall time of a call, in milliseconds."""
    times = []
    for _ in range(repeats):
        begin = time.perf_counter()
        function()
        times.append(time.perf_counter() - begin)
    return 1e3 * statistics.median(times)


def run(quick: bool) -> dict:
    """Figures by name; times in the unit their name ends with, memory in bytes."""
    repeats = 5 if quick else 50
    figures: dict = {}

    def timed(name: str, function: Callable[[], object]):
        begin = time.perf_counter()
        out = jax.block_until_ready(function())
        figures[name] = time.perf_counter() - begin
        return out

    tokenizer, words = invented_tokenizer(VOCABULARY)
    figures["vocabulary"] = len(tokenizer)
    timed("character_tables_seconds", characters.characters)
    tables = timed("byte_tables_seconds", lambda: vocab.byte_vocab(tokenizer))
    encoder = timed("bpe_tables_seconds", lambda: bpe.bpe_tables(tokenizer))
    figures["byte_tables_bytes"] = bpe.nbytes(tables)
    figures["bpe_tables_bytes"] = bpe.nbytes(encoder)

    ids = completions(tokenizer, words)
    said = tokenizer.batch_decode(ids, skip_special_tokens=True)
    figures["completion_bytes"] = float(np.mean([len(s.encode()) for s in said]))
    room = 8 * TOKENS
    frames = jnp.full(COMPLETIONS, FRAMES, jnp.int32)

    read = jax.jit(lambda ids: readers.read_plan(vocab.detokenise(tables, ids, room)[0], frames))
    locate = jax.jit(lambda ids: readers.read_boxes(vocab.detokenise(tables, ids, room)[0], 3))
    on_device = jnp.asarray(ids)
    plan = timed("read_plan_compile_seconds", lambda: read(on_device))
    jax.block_until_ready(locate(on_device))
    if int(plan.valid.sum()) != 4 * COMPLETIONS:
        raise AssertionError("the plans were not read")
    read_host = lambda: [
        host.read_plan(s, FRAMES, max_bytes=room) for s in tokenizer.batch_decode(ids, skip_special_tokens=True)
    ]
    figures["read_plan_ms"] = median_ms(lambda: jax.block_until_ready(read(on_device)), repeats)
    figures["read_plan_host_ms"] = median_ms(read_host, repeats)
    figures["read_plan_ratio"] = figures["read_plan_host_ms"] / figures["read_plan_ms"]
    figures["read_boxes_ms"] = median_ms(lambda: jax.block_until_ready(locate(on_device)), repeats)

    # The worst there is: one group from end to end of every text.
    worst = vocab.pack([(b'<answer>{"' + b"a" * room)[: room - 10] + b"}</answer>"] * COMPLETIONS, room)
    read_text = jax.jit(readers.read_plan)
    jax.block_until_ready(read_text(worst, frames))
    figures["read_plan_worst_ms"] = median_ms(lambda: jax.block_until_ready(read_text(worst, frames)), repeats)

    most = 192
    form = prompt.template(tokenizer, PROMPT)
    fill = jax.jit(lambda description: prompt.fill(encoder, form, description, most))
    described = strings.Buffer(*(x[:, :4] for x in plan.description))
    tokens = timed("prompts_compile_seconds", lambda: fill(described))
    texts = [
        PROMPT.replace(prompt.SLOT, host.lower_strip(piece.description).decode())
        for one in read_host()
        for piece in one.pieces[:4]
    ]
    ask_host = lambda: tokenizer(texts, add_special_tokens=False)["input_ids"]
    wanted = ask_host()
    if any(row[:n].tolist() != w for row, n, w in zip(np.asarray(tokens.ids), np.asarray(tokens.length), wanted)):
        raise AssertionError("the prompts differ from the tokenizer's")
    figures["prompts"] = len(texts)
    figures["prompts_ms"] = median_ms(lambda: jax.block_until_ready(fill(described)), repeats)
    figures["prompts_host_ms"] = median_ms(ask_host, repeats)
    figures["prompts_ratio"] = figures["prompts_host_ms"] / figures["prompts_ms"]
    figures["description_bytes"] = DEFAULT.description
    return figures
