"""A deeper thinker that says what it said before: `python -m omnir1_jax.supervised.deepen FIRST OUT --after 1`.

The new layer of the decoder is the next one's copy, except that nothing leaves it yet; training goes on from there.
"""

import argparse
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from absl.flags import argparse_flags
from flax.traverse_util import flatten_dict, unflatten_dict

from omnir1_jax import cli
from omnir1_jax.errors import InputError
from omnir1_jax.models.qwen_omni import pretrained, store
from omnir1_jax.models.qwen_omni.config import ThinkerConfig
from omnir1_jax.models.qwen_omni.thinker import Thinker

LEAVING = ("o", "down")  # the products by which a layer adds to what passes it


def deepened(config: ThinkerConfig, params: Mapping[str, Any], after: int) -> tuple[ThinkerConfig, dict[str, Any]]:
    """Config and parameters with one layer more, which stands after the first `after` layers.

    Raises:
      InputError: there is no such place.
    """
    count = config.text.num_layers
    if not 0 <= after <= count:
        raise InputError(f"--after: the decoder has {count} layers, so 0 to {count}, not {after}")

    def wider(path: tuple[str, ...], x: jax.Array) -> jax.Array:
        new = x[min(after, count - 1)]
        new = jnp.zeros_like(new) if path[0] in LEAVING else new
        return jnp.concatenate([x[:after], new[None], x[after:]])

    layers = flatten_dict(params["text"]["layers"])
    text = params["text"] | {"layers": unflatten_dict({path: wider(path, x) for path, x in layers.items()})}
    deeper = dataclasses.replace(config, text=dataclasses.replace(config.text, num_layers=count + 1))
    return deeper, params | {"text": text}


def parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse_flags.ArgumentParser(prog="python -m omnir1_jax.supervised.deepen", description=__doc__)
    parser.add_argument("first", help="Hugging Face directory to read")
    parser.add_argument("out", help="directory to write")
    parser.add_argument("--after", type=int, default=1, help="how many layers come before the new one")
    return parser.parse_args(argv[1:])


def main(given: argparse.Namespace) -> int:
    model, params = pretrained.load(given.first)
    config, params = deepened(model.config, params, given.after)
    pretrained.save(given.out, Thinker(config), params, files=store.text_files(given.first))
    return 0


if __name__ == "__main__":
    cli.run(main, flags_parser=parse)
