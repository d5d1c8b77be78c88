"""The trained weights of a run as a directory that transformers and this package load."""

import tempfile
from typing import Any

import jax
from etils import epath
from transformers import PreTrainedTokenizerBase

from omnir1_jax.errors import InputError
from omnir1_jax.models import lora, sam2
from omnir1_jax.models.qwen_omni import hf_config, hf_processor, pretrained, store
from omnir1_jax.setup.models import Loaded, lora_config


def merged(config: Any, loaded: Loaded, trainable: Any) -> dict[str, Any]:
    """The whole thinker's parameters with what was trained in place, in the dtype of the frozen ones."""
    like = lambda new, old: jax.tree.map(lambda a, b: a.astype(b.dtype), new, old)
    if config.objective == "sft" and config.sft.towers:
        return like(trainable, loaded.params)
    if config.lora.rank:
        return loaded.params | {"text": lora.merge(loaded.params["text"], trainable, lora_config(config))}
    return loaded.params | {"text": like(trainable, loaded.params["text"])}


def save(path: epath.PathLike, config: Any, loaded: Loaded, trainable: Any, **layout: Any) -> None:
    """Writes the trained model, whole or not at all: the thinker in Hugging Face layout, or SAM 2.

    Args:
      layout: `prefix` and `max_shard_bytes` of `pretrained.save`; the thinker's only.

    Raises:
      InputError: parameters that no single process holds whole.
    """
    if not all(leaf.is_fully_addressable for leaf in jax.tree.leaves(trainable)):
        raise InputError(
            f"{path}: weights are written by one process that holds them all; convert the checkpoint there"
        )
    if config.objective == "masks":
        sam2.export(path, loaded.models.sam2, trainable)
        return
    source = epath.Path(config.thinker.path) if config.thinker.path else None
    found = text_files(source, loaded.tokenizer)
    if source is not None and config.thinker.tokenizer:
        found |= text_files(None, loaded.tokenizer)
    pretrained.save(
        path,
        loaded.models.thinker,
        merged(config, loaded, trainable),
        base=None if source is None else hf_config.read_json(source),
        files=hf_processor.with_processor(loaded.models.thinker.config, found),
        **layout,
    )


def text_files(source: epath.Path | None, words: PreTrainedTokenizerBase) -> dict[str, bytes]:
    """Small files that belong beside the weights, by name: those of their source, or the tokenizer's own."""
    if source is not None:
        return store.text_files(source)
    with tempfile.TemporaryDirectory() as scratch:
        words.save_pretrained(scratch)
        return store.text_files(scratch)
