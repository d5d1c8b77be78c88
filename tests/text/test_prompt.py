"""System 2's prompts in the graph against the tokenizer on the whole string."""

import jax
import numpy as np
import pytest

from omnir1_jax.errors import InputError
from omnir1_jax.text import bpe, prompt, strings
from omnir1_jax.text.vocab import pack
from tests.text import fuzz, host, trained

DESCRIPTION, BATCH, MOST = 64, 200, 200
TEXTS = (
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n<|vision_start|><|image_pad|>"
    "<|image_pad|><|vision_end|>the man left of the {description}, the red circle.<|im_end|>\n<|im_start|>assistant\n",
    "<|im_start|>{description}<|im_end|>",
    "the red circle?\n{description}",
    "{description}\n\nthe dog? It's<|vision_start|>the red circle",
)


def described(seed):
    r = fuzz.Dice(seed)
    out = [trained.string(r) if r.random() < 0.5 else fuzz.prose(r, 9).title() for _ in range(BATCH - 4)]
    out = [r.choice(["", " ", "\n \t"]) + s + r.choice(["", " ", "\r\n"]) for s in out]
    return ["", " ", "\n", "s", *out]


@pytest.mark.parametrize("text", TEXTS)
def test_prompts_equal_the_tokenizer(text):
    tokenizer = trained.tokenizer(1000)
    form, tables = prompt.template(tokenizer, text), bpe.bpe_tables(tokenizer)
    cut = [host.cut(s.encode(), DESCRIPTION)[0] for s in described(len(text))]
    batch = pack(cut, DESCRIPTION)
    buffer = strings.Buffer(batch.bytes.reshape(50, 4, -1), batch.length.reshape(50, 4), batch.too_long.reshape(50, 4))
    got = jax.tree.map(np.asarray, jax.jit(prompt.fill, static_argnums=3)(tables, form, buffer, MOST))
    assert not got.too_long.any()
    for row, length, raw in zip(got.ids, got.length, cut):
        whole = text.replace(prompt.SLOT, host.lower_strip(raw).decode())
        assert row[:length].tolist() == tokenizer(whole, add_special_tokens=False)["input_ids"], raw
        assert not row[length:].any()


def test_template_needs_one_slot():
    for text in ("no slot", "{description} {description}"):
        with pytest.raises(InputError, match="must occur once"):
            prompt.template(trained.tokenizer(1000), text)
