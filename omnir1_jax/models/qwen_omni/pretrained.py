"""Loading, saving and calling the thinker the way one does with transformers."""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from etils import epath
from jax.sharding import Mesh
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from omnir1_jax.errors import InputError
from omnir1_jax.models import hf_checkpoint, narrow, quantise, safetensors_file
from omnir1_jax.models.qwen_omni import hf_config, store, weights
from omnir1_jax.models.qwen_omni import speech as speech_files
from omnir1_jax.models.qwen_omni.config import ThinkerConfig
from omnir1_jax.models.qwen_omni.hf_inputs import thinker_inputs
from omnir1_jax.models.qwen_omni.inputs import ThinkerInputs
from omnir1_jax.models.qwen_omni.speech import Speech
from omnir1_jax.models.qwen_omni.thinker import Thinker, abstract_params
from omnir1_jax.parallel import tree_shardings


def read_config(path: epath.PathLike, dtype: DTypeLike = jnp.float32) -> ThinkerConfig:
    """The config of a checkpoint directory, tied only if the checkpoint has no head of its own.

    Raises:
      InputError: see `hf_config.parse` and `safetensors_file.index`; weights that are quantised already.
    """
    path = epath.Path(path)
    raw = hf_config.read_json(path)
    for level in (raw, raw.get("thinker_config"), raw.get("text_config")):
        if isinstance(level, Mapping) and (quantization := level.get("quantization_config")):
            method = quantization.get("quant_method") if isinstance(quantization, Mapping) else None
            raise InputError(
                f"{path / 'config.json'}: the weights are quantised already ({method or 'quantization_config'}); use "
                "the unquantised ones, which thinker.frozen quantises as they are read"
            )
    config = hf_config.parse(raw, str(path / "config.json"), dtype)
    if config.text.tie_word_embeddings and not store.is_store(path):
        names = safetensors_file.index(path)
        if any(prefix + weights.HEAD in names for prefix in weights.PREFIXES):
            config = dataclasses.replace(config, text=dataclasses.replace(config.text, tie_word_embeddings=False))
    return config


def read_params(
    path: epath.PathLike,
    config: ThinkerConfig,
    *,
    dtype: DTypeLike | None = None,
    mesh: Mesh | None = None,
    form: quantise.Format | None = None,
) -> dict:
    """The parameters of a checkpoint directory; `dtype=None` keeps the stored one, `form` quantises them as they are
    read. Otherwise as `load`."""
    if store.is_store(path):
        return store.load_store(path, config, dtype=dtype, mesh=mesh, form=form)
    boxed = hf_checkpoint.abstract(abstract_params, config, path)
    stored = boxed if form is None else quantise.quantised(boxed, form)
    return hf_checkpoint.load_params(
        path,
        weights.leaves(config),
        nn.unbox(boxed),
        dtype=dtype,
        shardings=None if mesh is None else tree_shardings(mesh, stored),
        form=form,
        prefixes=weights.PREFIXES,
        ignore=weights.IGNORE,
    )


def deferred(path: epath.PathLike, config: ThinkerConfig, *, dtype: DTypeLike | None = None) -> dict:
    """As `read_params`, each parameter read on the host on demand (`hf_checkpoint.Deferred`)."""
    if store.is_store(path):
        return store.deferred(path, config, dtype=dtype)
    shapes = nn.unbox(hf_checkpoint.abstract(abstract_params, config, path))
    return hf_checkpoint.deferred(path, weights.leaves(config), shapes, dtype, weights.PREFIXES, weights.IGNORE)


def load(
    path: epath.PathLike,
    *,
    dtype: DTypeLike = jnp.float32,
    mesh: Mesh | None = None,
) -> tuple[Thinker, dict]:
    """Reads a checkpoint directory: `(model, params)` for `model.apply({"params": params}, ...)`.

    Args:
      path: a Hugging Face directory with config.json and safetensors, bare or with the prefix `thinker.` (talker and
        token2wav are skipped), or what `omnir1_jax.convert import` made of one.
      dtype: of parameters and activations.
      mesh: shards the parameters as they are read; None puts them on the default device.

    Raises:
      InputError: another model family, a broken file, or tensors unknown, missing or misshapen.
    """
    config = read_config(path, dtype)
    return Thinker(config), read_params(path, config, dtype=dtype, mesh=mesh)


def save(
    path: epath.PathLike,
    model: Thinker,
    params: Any,
    *,
    prefix: str = "",
    base: Mapping[str, Any] | None = None,
    files: Mapping[str, bytes] | None = None,
    max_shard_bytes: int = hf_checkpoint.MAX_SHARD_BYTES,
    speech: Speech | None = None,
    owner: str = "",
    flag: str = "weights",
) -> None:
    """Writes, atomically, a directory that transformers' `from_pretrained` reads.

    Args:
      path, owner, flag: as for `hf_checkpoint.save_params`.
      prefix: "" for the thinker alone; "thinker." for the whole model, its config included.
      base: the `config.json` that the weights came with; its other fields are kept.
      files: further files of the directory, by name (tokenizer, processor).
      speech: of the whole model, copied byte for byte; without it the config says that the model does not speak.
    """
    if prefix not in weights.PREFIXES:
        raise InputError(f"prefix {prefix!r} must be one of {', '.join(map(repr, weights.PREFIXES))}")
    config, files, copied = hf_config.to_json(model.config, base=base, whole_model=prefix != ""), dict(files or {}), {}
    if prefix:
        config = speech_files.whole_config(config, speech)
        files[speech_files.SPEAKERS] = speech_files.no_speakers() if speech is None else speech.speakers
        copied = {} if speech is None else speech.tensors
    dtypes = {str(leaf.dtype) for leaf in jax.tree.leaves(params)}
    if len(dtypes) == 1:  # what `from_pretrained` gives its own parameters
        for level in (config, config.get("thinker_config", config)):
            level.pop("torch_dtype", None)
            level["dtype"] = min(dtypes)
    text = json.dumps(config, indent=2, sort_keys=True) + "\n"
    hf_checkpoint.save_params(
        path,
        weights.leaves(model.config),
        params,
        prefix=prefix,
        max_shard_bytes=max_shard_bytes,
        files={**files, "config.json": text.encode()},
        copied=copied,
        owner=owner,
        flag=flag,
    )


def logits_from_hf(model: Thinker, params: Any, hf_inputs: Mapping[str, Any]) -> Float[Array, "b t vocab"]:
    """Logits, float32, of what the Hugging Face processor returns; those of padding hold nothing of meaning.

    Compiles once for each combination of shapes: `data.preprocess` pads to buckets and is what training uses.

    Raises:
      InputError: see `hf_inputs.thinker_inputs`.
    """
    return _logits(model, params, thinker_inputs(hf_inputs, model.config))


def _apply(model: Thinker, params: Any, inputs: ThinkerInputs) -> Array:
    return model.apply({"params": params}, inputs, method="logits")


_logits = narrow.jit(_apply, static_argnums=0)
