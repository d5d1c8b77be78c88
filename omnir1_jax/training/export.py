"""The trained weights of a run as a directory that transformers and this package load."""

import functools
import json
import tempfile
from typing import Any

import jax
import numpy as np
from etils import epath
from jax.experimental import multihost_utils
from transformers import PreTrainedTokenizerBase

from omnir1_jax.build.models import LoadedModels, lora_config, originals
from omnir1_jax.errors import InputError
from omnir1_jax.models import lora, sam2
from omnir1_jax.models.hf_checkpoint import Deferred
from omnir1_jax.models.qwen_omni import hf_adapter, hf_config, hf_processor, pretrained, store


def merged(config: Any, loaded: LoadedModels, trainable: Any) -> dict[str, Any]:
    """The full thinker's parameters with the trained ones in place, in the dtype of the frozen ones."""
    like = lambda new, old: jax.tree.map(lambda a, b: a.astype(b.dtype), new, old)
    if config.objective == "sft" and config.sft.encoders:
        return like(trainable, loaded.params)
    if config.lora.rank:
        return loaded.params | {"text": lora.merge(loaded.params["text"], trainable, lora_config(config.lora))}
    return loaded.params | {"text": like(trainable, loaded.params["text"])}


def written(config: Any, loaded: LoadedModels, trainable: Any) -> dict[str, Any]:
    """The parameters to be written: `merged`, or with quantised weights their originals with the adapter merged, each
    computed on demand."""
    adapter_config = lora_config(config.lora)
    if config.thinker.frozen == "float" or adapter_config is None:
        return merged(config, loaded, trainable)
    params = originals(config, loaded)
    layers = dict(params["text"]["layers"])
    for name, pair in gathered(trainable)["layers"].items():
        kernel = layers[name]["kernel"]
        make = functools.partial(lora.merged_on_host, kernel, pair, adapter_config)
        layers[name] = layers[name] | {"kernel": Deferred(tuple(kernel.shape), np.dtype(kernel.dtype), make)}
    return params | {"text": params["text"] | {"layers": layers}}


STEP = "training.json"  # beside the weights: {"step": 200}


def save(
    path: epath.PathLike, config: Any, loaded: LoadedModels, trainable: Any, *, step: int | None = None, **layout: Any
) -> None:
    """Writes the trained model atomically: the thinker in Hugging Face layout, or SAM 2.

    Called by every process of the run; the first one writes, and needs host memory for the full model.

    Args:
      step: of the run, recorded in `STEP`.
      layout: of `pretrained.save`; a segmenter takes `owner` and `flag` only.
    """
    masks = config.objective == "masks"
    params = gathered(trainable if masks else written(config, loaded, trainable))
    step_file = {} if step is None else {STEP: json.dumps({"step": step}).encode() + b"\n"}
    if jax.process_index():
        return
    if masks:
        sam2.export(path, loaded.models.segmenter.model, params, files=step_file, **layout)
        return
    source = epath.Path(config.thinker.path) if config.thinker.path else None
    files = text_files(source, loaded.tokenizer)
    if source is not None and config.thinker.tokenizer:
        files |= text_files(None, loaded.tokenizer)
    pretrained.save(
        path,
        loaded.models.thinker,
        params,
        base=None if source is None else hf_config.read_json(source),
        files=hf_processor.with_processor(loaded.models.thinker.config, files) | step_file,
        **layout,
    )


def save_adapter(path: epath.PathLike, config: Any, trainable: Any, flag: str) -> int:
    """Writes a run's LoRA adapter in PEFT's layout; returns the number of its parameters.

    Raises:
      InputError: the run trained no adapter, or it is merged.
    """
    if config.objective == "masks" or (config.objective == "sft" and config.sft.encoders) or not config.lora.rank:
        raise InputError("--layout peft: no LoRA adapter was trained here, or it is merged; export --layout thinker")
    if not config.thinker.path:
        raise InputError(
            "--layout peft: the adapter's base, random weights, is in no directory; export --layout thinker"
        )
    return hf_adapter.save(path, gathered(trainable), lora_config(config.lora), config.thinker.path, flag)


def gathered(tree: Any) -> Any:
    """The arrays; those sharded over processes are gathered on the host of the first one and None in the others."""

    def on_first_host(x: Any) -> Any:
        if not isinstance(x, jax.Array) or x.is_fully_addressable:
            return x
        # One at a time: each is replicated on all devices while it is gathered.
        array = multihost_utils.process_allgather(x, tiled=True)
        return array if jax.process_index() == 0 else None

    return jax.tree.map(on_first_host, tree)


def text_files(source: epath.Path | None, tokenizer: PreTrainedTokenizerBase) -> dict[str, bytes]:
    """Small files to write beside the weights, by name: those of their source, or the tokenizer's."""
    if source is not None:
        return store.text_files(source)
    with tempfile.TemporaryDirectory() as scratch:
        tokenizer.save_pretrained(scratch)
        return store.text_files(scratch)
