"""Small tokenizers of the Qwen2 family, trained on the spot, and strings to encode."""

import functools

import numpy as np
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from omnir1_jax.text.family import QWEN2_PATTERN, byte_alphabet
from tests.text import fuzz

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|image_pad|>", "<|vision_end|>")
VISIBLE = ("<tool_call>", "</tool_call>")
CORPUS = (
    "The quick brown fox jumps over the lazy dog, doesn't it? I'll say they've gone; we're HERE, it's 12:30 or 3.14.",
    "Locate the red circle that moves to the left of the tall man and output its bounding box in JSON format.",
    "Le garçon déjà là-bas mange une crème brûlée; señora, ¿dónde está el niño? Größe, Straße, øl, žluťoučký kůň.",
    "Съешь ещё этих мягких французских булок, да выпей чаю. Девушка в красном пальто стоит слева.",
    "穿红色外套的人站在左边,狗在追球。視頻中的物體。日本語のテキストも少し、カタカナ。한국어 문장도 있습니다 각각.",
    "🎸 🐕‍🦺 👩‍👩‍👧 🇩🇪 ❤️ 👍🏽 the dog 🐕 barks! ¯\\_(ツ)_/¯ ... --- ***   \n\n  def f(x):\n\treturn x ** 2\r\n",
    "नमस्ते दुनिया, สวัสดีชาวโลก, مرحبا بالعالم, שלום עולם, Việt Nam đẹp quá, Ελληνικά ά έ ή.",
)


def pre_tokenizer():
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(QWEN2_PATTERN), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


@functools.cache
def tokenizer(size):
    """A tokenizer of `size` tokens before the added ones."""
    inner = Tokenizer(models.BPE())
    inner.normalizer = normalizers.NFC()
    inner.pre_tokenizer = pre_tokenizer()
    inner.decoder = decoders.ByteLevel()
    dice = fuzz.Dice(size)
    text = [line for line in CORPUS for _ in range(3)] + [fuzz.prose(dice, 40) for _ in range(300)]
    text += ["".join(map(chr, range(at, at + 64))) for at in range(0xC0, 0x600, 16)]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    inner.train_from_iterator(
        text, trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, show_progress=False)
    )
    inner.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in SPECIAL])
    inner.add_tokens([AddedToken(t, normalized=False) for t in VISIBLE])
    return PreTrainedTokenizerFast(tokenizer_object=inner)


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
    inner.pre_tokenizer = pre_tokenizer()
    inner.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in SPECIAL])
    return PreTrainedTokenizerFast(tokenizer_object=inner, name_or_path=f"invented-{size}"), words


RANGES = (
    *((0x20, 0x7F), (0x20, 0x7F), (0x20, 0x7F), (0xA0, 0x250), (0x300, 0x370), (0x370, 0x530), (0x5D0, 0x700)),
    *((0x900, 0xD00), (0xE00, 0x1200), (0x1E00, 0x2000), (0x2000, 0x2100), (0x2100, 0x2600), (0x3000, 0x3100)),
    *((0x3300, 0x3400), (0x4E00, 0x9FFF), (0xA000, 0xAC00), (0xAC00, 0xD7A4), (0xF900, 0xFFFE), (0x1D100, 0x1D200)),
    *((0x1F300, 0x1FA00), (0x10000, 0x20000), (0x2F800, 0x2FA20), (0x1, 0x20), (0xE000, 0x110000)),
)
BITS = (
    *("'s", "'T", "'re", "'VE", "'ll", "'\u017f", "'d", "'m", "  ", "\n", "\r\n", " \n ", "\t", "\u3000", "\u0345"),
    *(
        *SPECIAL,
        *VISIBLE,
        "<|im_",
        "end|>",
        "<",
        "|>",
        "e\u0301\u0323",
        "\u1100\u1161\u11a8",
        "\uac00\u11a8",
        "a\u0334",
    ),
    *("12345", "½", "٣", "_", "...", "!?\n\n", "\x85", "\u200d", "\ufe0f", "ﬁ", "ß", "Å", "\u0344", "\u0958", "\u2126"),
)


def string(r):
    """A string that no one would write, or nearly one that someone would."""
    out = []
    style = r.randrange(4)
    for _ in range(r.randrange(1, 24)):
        kind = r.randrange(10)
        if style == 0 or kind < 3:
            line = r.choice(CORPUS)
            at = r.randrange(len(line))
            out.append(line[at : at + r.randrange(1, 30)])
        elif kind < 6 and style < 3:
            out.append(r.choice(BITS))
        else:
            low, high = r.choice(RANGES)
            out += [
                chr(c) for c in (r.randrange(low, high) for _ in range(r.randrange(1, 6))) if not 0xD800 <= c < 0xE000
            ]
    return "".join(out)


def strings(seed, count, most):
    """Strings of at most `most` bytes."""
    r = fuzz.Dice(seed)
    return [string(r).encode()[:most].decode(errors="ignore") for _ in range(count)]
