"""A small tokenizer of the Qwen2 family for toy models: `python -m omnir1_jax.toy.tokenizer DIRECTORY [words]`.

Trained on what such models are to say. Byte-level BPE with Qwen2's own pre-tokeniser and the added tokens of
Qwen2.5-Omni in their real spelling. The fixed parts of answers are further added tokens, so that a plan of four
moments takes about seventy tokens; digits stay tokens of their own, as in the real one.

With `words`, what timelines consist of is added too: a shape's looks and the seconds of its stay, one token each.
To look one up is then to find a token and to read the next, which a small model learns much sooner.
"""

import itertools
import json
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AddedToken, PreTrainedTokenizerBase, Qwen2Tokenizer

from omnir1_jax import cli
from omnir1_jax.data.preprocess.tokens import SPELLING
from omnir1_jax.data.synthetic import scenes
from omnir1_jax.data.synthetic.world import COLOURS, KINDS, PRESETS, TONES, WorldConfig
from omnir1_jax.errors import InputError
from omnir1_jax.files import folders
from omnir1_jax.systems import prompts
from omnir1_jax.text.family import QWEN2_PATTERN

SPECIAL = ("<|im_start|>", "<|im_end|>")
NAMED = {
    "image_token": "<|IMAGE|>",
    "audio_token": "<|AUDIO|>",
    "video_token": "<|VIDEO|>",
    "vision_bos_token": "<|vision_bos|>",
    "vision_eos_token": "<|vision_eos|>",
    "audio_bos_token": "<|audio_bos|>",
    "audio_eos_token": "<|audio_eos|>",
}
# None of them may begin as another ends: `text.bpe` finds added tokens by plain search.
FORMS = (
    "<think>",
    "</think>",
    "<answer>",
    "</answer>",
    '{"start_time": "00:0',
    '", "end_time": "00:0',
    '", "description": ',
    '{"bbox_2d": [',
)

SECONDS = 8  # of a clip that has a timeline
WORDS = (
    *(f" {colour} {kind}" for colour, kind in itertools.product(COLOURS, KINDS)),
    *(f" {first}-{last}" for first in range(SECONDS) for last in range(first, SECONDS)),
)


def sentences(world: WorldConfig, clips: int, seed: int) -> Iterator[str]:
    """What is said in such a world: every sentence of some clips, looks, words of templates and of answers."""
    for number in range(clips):
        for expression in scenes.make_clip(world, 10**9 + seed * 10**6 + number).expressions:
            yield f" {expression.text}"
    for colour, kind in itertools.product(COLOURS, KINDS):
        yield from (f"{colour} {kind}", f'"{colour} {kind}"}}', f"{kind} {colour}", f'"{kind}', f"all the {kind}s")
    yield from (f"{tone} {name}" for tone in TONES for name in ("tone", "sound"))
    for file in sorted(prompts.FOLDER.glob("toy_*.txt")):
        yield from [file.read_text()] * 20
    for at in range(60):
        yield from (f'00:{at:02d}.50"}}', f"[{at}, {at + 1},{at}]}}]", f'"label": "{at}", "points_1": [{at}]}}')
    for word in ("system\n", "user\n", "assistant\n", "What:", "When:", "Which:", "Hear:", "Box:", "nothing"):
        yield from [word] * 100


def build(size: int = 622, seed: int = 0, clips: int = 200, words: Sequence[str] = ()) -> PreTrainedTokenizerBase:
    """The tokenizer of the toy world; `size` tokens before the added ones, 640 with them, and `words` after all.

    Words begin with a space, so that a form before one gives up its own.
    """
    text = list(sentences(PRESETS["toy"], clips, seed))
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(QWEN2_PATTERN), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    trained.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trained.train_from_iterator(
        text, trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, show_progress=False)
    )
    model = json.loads(trained.to_str())["model"]
    built = Qwen2Tokenizer(
        vocab=model["vocab"],
        merges=[tuple(pair) for pair in model["merges"]],
        pad_token=SPELLING["pad"],
        eos_token=SPELLING["end"],
        extra_special_tokens=NAMED,
    )
    built.add_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    forms = [form.rstrip() for form in FORMS] + list(words) if words else FORMS
    built.add_tokens([AddedToken(token, special=False, normalized=False) for token in forms])
    return built


def save(path: pathlib.Path, **options: Any) -> PreTrainedTokenizerBase:
    """Builds and writes the tokenizer's files."""
    built = build(**options)
    built.save_pretrained(str(path))
    return built


def main(argv: Sequence[str]) -> None:
    if len(argv) not in (2, 3) or argv[2:] not in ([], ["words"]):
        raise InputError("name the directory to write; see the first line of this module")
    with folders.replace(argv[1], "tokenizer", "DIRECTORY") as scratch:
        save(pathlib.Path(scratch), words=WORDS if argv[2:] else ())


if __name__ == "__main__":
    cli.run(main)
