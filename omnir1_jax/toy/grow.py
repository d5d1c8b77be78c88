"""Makes a thinker larger that computes the same.

    python -m omnir1_jax.toy.grow SOURCE TARGET HEAD_DIM LAYERS [TOKENIZER]

A head of 24 numbers with `rope_theta` 5 has 12 frequencies, and even the slowest turns 0.23 rad a token: no head can
look for a word wherever it stands. A wider head keeps its frequencies and gets slower ones after them; new layers are
the last ones and add nothing yet. Both can be trained from the first step on.

TOKENIZER is a directory with a tokenizer that knows more words. A new token begins as the mean of those that its text
was before.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from omnir1_jax import cli
from omnir1_jax.data.preprocess import tokens
from omnir1_jax.errors import InputError
from omnir1_jax.models.qwen_omni import hf_config, pretrained, store
from omnir1_jax.models.qwen_omni.config import TextConfig
from omnir1_jax.models.qwen_omni.thinker import Thinker

Params = dict[str, Any]
SILENT = ("o", "down")  # what a new layer would add to the hidden state goes through these


def larger(config: TextConfig, head_dim: int, layers: int) -> TextConfig:
    """The sizes. With theta to the power of the ratio of widths, the first frequencies are the old ones.

    Raises:
      InputError: smaller than it is, or an odd width.
    """
    if head_dim < config.head_dim or layers < config.num_layers or head_dim % 2:
        raise InputError(
            f"HEAD_DIM LAYERS: an even width of at least {config.head_dim} and at least {config.num_layers} layers, "
            f"not {head_dim} and {layers}"
        )
    time, height, width = config.mrope_section
    return replace(
        config,
        head_dim=head_dim,
        num_layers=layers,
        rope_theta=config.rope_theta ** (head_dim / config.head_dim),
        mrope_section=(time, height, width + (head_dim - config.head_dim) // 2),
    )


def grow(text: Params, old: TextConfig, new: TextConfig, seed: int = 0) -> Params:
    """The language model's parameters for the new sizes, in float32.

    Of the new numbers of a head those of queries and values are drawn, and what they meet is zero: keys and the way
    back to the hidden state.
    """
    rng, layers = np.random.default_rng(seed), jax.tree.map(np.asarray, text["layers"])
    layers = jax.tree.map(lambda leaf: leaf.astype(np.float32), layers)
    scale = (new.head_dim / old.head_dim) ** 0.5  # attention divides by the root of the width
    drawn = lambda leaf: rng.normal(size=leaf.shape).astype(np.float32) * new.hidden_size**-0.5
    for name in ("q", "k", "v"):
        kernel, bias = layers[name]["kernel"], layers[name]["bias"]
        wide = _widened(kernel, new.head_dim, axis=-1)
        if name != "k":
            wide = np.where(_widened(np.ones_like(kernel), new.head_dim, axis=-1) > 0, wide, drawn(wide))
        factor = scale if name == "q" else 1.0
        layers[name] = {"kernel": factor * wide, "bias": factor * _widened(bias, new.head_dim, axis=-1)}
    layers["o"] = {"kernel": _widened(layers["o"]["kernel"], new.head_dim, axis=-2)}

    added = new.num_layers - old.num_layers

    def with_new(path: tuple[Any, ...], leaf: np.ndarray) -> Float[Array, "..."]:
        name, part = (key.key for key in path)
        fresh = np.zeros((added, *leaf.shape[1:]), np.float32)
        if part == "scale":
            fresh += 1
        elif part == "kernel" and name not in SILENT:
            fresh = drawn(fresh)
        return jnp.asarray(np.concatenate([leaf, fresh]))

    return {**text, "layers": jax.tree_util.tree_map_with_path(with_new, layers)}


def more_words(embedding: Array, old: Any, new: Any) -> Float[Array, "v d"]:
    """Rows for the tokens of a tokenizer that extends `old`, in float32.

    Raises:
      InputError: the tokenizer has other ids for what both know.
    """
    before, after = old.get_vocab(), new.get_vocab()
    names = {i: token for token, i in after.items()}
    known = [token for token, i in before.items() if i < len(embedding) and token in after]
    if moved := [token for token in known if after[token] != before[token]]:
        raise InputError(f"TOKENIZER has another id for {moved[0]!r} than the tokenizer of SOURCE")
    rows = np.asarray(embedding, np.float32)
    parts = [old(names[i], add_special_tokens=False)["input_ids"] for i in range(len(rows), len(new))]
    return jnp.asarray(np.concatenate([rows, *(rows[ids].mean(0, keepdims=True) for ids in parts)]))


def _widened(leaf: np.ndarray, head_dim: int, axis: int) -> np.ndarray:
    """Zeros behind each half of the axis: rotary positions turn pairs (i, i + width / 2)."""
    more = (head_dim - leaf.shape[axis]) // 2
    room = [(0, 0)] * leaf.ndim
    room[axis] = (0, more)
    return np.concatenate([np.pad(half, room) for half in np.split(leaf, 2, axis=axis)], axis=axis)


def main(argv: Sequence[str]) -> None:
    if len(argv) not in (5, 6) or not all(number.isdecimal() for number in argv[3:5]):
        raise InputError("name SOURCE TARGET HEAD_DIM LAYERS [TOKENIZER]; see the head of this module")
    source, target = argv[1:3]
    model, params = pretrained.load(source, dtype=jnp.float32)
    text = larger(model.config.text, *map(int, argv[3:5]))
    grown = Thinker(replace(model.config, text=text))
    params, files = {**params, "text": grow(params["text"], model.config.text, text)}, store.text_files(source)
    for words in argv[5:]:
        old, new = (tokens.load_tokenizer(folder) for folder in (source, words))
        rows = params["text"]["embed"]["embedding"] = more_words(params["text"]["embed"]["embedding"], old, new)
        grown = Thinker(replace(grown.config, text=replace(text, vocab_size=len(rows))))
        files |= store.text_files(words)
    hf_config.parse(hf_config.to_json(grown.config), f"{target}/config.json")  # what cannot be read is not written
    pretrained.save(target, grown, params, files=files, flag="TARGET")


if __name__ == "__main__":
    cli.run(main)
