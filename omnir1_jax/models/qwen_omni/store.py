"""The thinker as an orbax directory: `params/`, the `config.json` that it came with, and `files/` (the tokenizer's).

Parameters are stored as the modules hold them, in chunks, so that each host of a mesh reads only its own shards.
"""

import json
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import numpy as np
import orbax.checkpoint as ocp
import tensorstore
from etils import epath
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import Mesh
from jax.typing import DTypeLike

from omnir1_jax.cli import absolute
from omnir1_jax.errors import InputError
from omnir1_jax.files import folders, orbax_files, regular_file
from omnir1_jax.models import hf_checkpoint, quantise
from omnir1_jax.models.hf_checkpoint import Deferred, aligned
from omnir1_jax.models.qwen_omni import hf_config
from omnir1_jax.models.qwen_omni.config import ThinkerConfig
from omnir1_jax.models.qwen_omni.thinker import abstract_params
from omnir1_jax.parallel import tree_shardings

STORE = "store"  # kind recorded in the mark of a written directory
PIECE_BYTES = 1 << 26
TEXT_FILES = (".json", ".txt", ".jinja", ".model")  # tokenizer, processor, generation settings; never pickles


def is_store(path: epath.PathLike) -> bool:
    return (epath.Path(path) / "params").is_dir()


def text_files(path: epath.PathLike) -> dict[str, bytes]:
    """Small files that a store or a Hugging Face directory has beside weights and config."""
    folder = epath.Path(path) / "files" if is_store(path) else epath.Path(path)
    return {
        file.name: file.read_bytes()
        for file in sorted(folder.iterdir())
        if file.suffix in TEXT_FILES
        and file.name != "config.json"
        and not file.name.endswith(".index.json")
        and not file.name.startswith(".")
        and regular_file.problem(file) is None
    }


def save_store(
    path: epath.PathLike,
    config: ThinkerConfig,
    params: Any,
    *,
    base: Mapping[str, Any] | None = None,
    files: Mapping[str, bytes] | None = None,
    flag: str = "target",
) -> None:
    """Writes the directory atomically, after reading back its index.

    Args:
      base, files: as for `pretrained.save`.
      flag: names the directory in messages.

    Raises:
      InputError: `path` is something else, or one in which orbax cannot store arrays.
      OSError: what was written cannot be read back.
    """
    orbax_files.check_path(path, flag)
    text = json.dumps(hf_config.to_json(config, base=base), indent=2, sort_keys=True) + "\n"
    with folders.replace(absolute(path), STORE, flag) as scratch:
        (scratch / "files").mkdir(parents=True)
        (scratch / "config.json").write_text(text)
        for name, content in (files or {}).items():
            (scratch / "files" / name).write_bytes(content)
        arrays = flatten_dict(params)
        orbax_files.save(scratch / "params", arrays, {key: _pieces(key) for key in arrays})
        orbax_files.check_written(scratch / "params", [".".join(key) for key in arrays])


def _pieces(key: tuple[str, ...]) -> ocp.SaveArgs:
    """A parameter is stored layer by layer, in chunks of at most `PIECE_BYTES`."""
    return ocp.SaveArgs(chunk_byte_size=PIECE_BYTES, shard_axes=(0,) if {*key} & {*quantise.STACKS} else ())


def load_store(
    path: epath.PathLike,
    config: ThinkerConfig,
    *,
    dtype: DTypeLike | None = None,
    mesh: Mesh | None = None,
    form: quantise.Format | None = None,
) -> dict:
    """Reads the parameters.

    Args:
      dtype: None keeps the stored one.
      mesh: as for `pretrained.load`.
      form: quantises each parameter before the next one is read.

    Raises:
      InputError: not such a directory, a truncated one, or parameters that do not fit its config.
    """
    if mesh is None:
        return hf_checkpoint.placed(deferred(path, config, dtype=dtype), form=form)
    boxed = abstract_params(config)
    shapes, shardings = flatten_dict(nn.unbox(boxed)), flatten_dict(tree_shardings(mesh, boxed))
    quantised_shardings = None if form is None else flatten_dict(tree_shardings(mesh, quantise.quantised(boxed, form)))
    params: dict[tuple[str, ...], Any] = {}
    for key, stored in _stored(path, shapes).items():
        kept_dtype, array = np.dtype(dtype or stored.dtype), orbax_files.open_array(absolute(path) / "params", key)
        read = lambda index, array=array, kept_dtype=kept_dtype: _read(array[index], kept_dtype)
        parameter = jax.make_array_from_callback(stored.shape, shardings[key], read)
        if form is None:
            params[key] = parameter
            continue
        target_shardings = {name: quantised_shardings[name] for name in quantise.paths(key, stored.shape, form)}
        params |= jax.jit(_quantised, static_argnums=(1, 2), out_shardings=target_shardings)(parameter, key, form)
    return unflatten_dict(params)


def deferred(path: epath.PathLike, config: ThinkerConfig, *, dtype: DTypeLike | None = None) -> dict:
    """As `load_store`, each parameter read on the host on demand."""

    def parameter(key: tuple[str, ...], stored: Any) -> Deferred:
        kept_dtype = np.dtype(dtype or stored.dtype)
        array = lambda: orbax_files.open_array(absolute(path) / "params", key)
        stacked = {*key} & {*quantise.STACKS}
        indices = range(stored.shape[0]) if stacked else (...,)
        layers = lambda: ((index, _read(array()[index], kept_dtype)) for index in indices)
        return Deferred(tuple(stored.shape), kept_dtype, lambda: _read(array(), kept_dtype), layers)

    parameters = _stored(path, flatten_dict(nn.unbox(abstract_params(config))))
    return unflatten_dict({key: parameter(key, stored) for key, stored in parameters.items()})


def _read(array: tensorstore.TensorStore, dtype: np.dtype) -> np.ndarray:
    host = aligned(array.shape, dtype)
    tensorstore.array(host).write(tensorstore.cast(array, dtype)).result()
    return host


def _stored(path: epath.PathLike, shapes: Mapping[tuple[str, ...], Any]) -> dict[tuple[str, ...], Any]:
    """The stored shape and dtype of each parameter."""
    folder = absolute(path) / "params"
    with ocp.StandardCheckpointer() as checkpointer:
        metadata = checkpointer.metadata(folder).item_metadata
    if metadata is None:
        raise InputError(f"{folder}: not an orbax checkpoint, or a truncated one; import it again")
    stored = flatten_dict(metadata.tree)
    mismatched = sorted(
        "/".join(key)
        for key in stored.keys() | shapes.keys()
        if key not in stored or key not in shapes or tuple(stored[key].shape) != shapes[key].shape
    )
    if mismatched:
        raise InputError(f"{folder}: does not fit its config.json in {', '.join(mismatched[:8])}; import it again")
    return {key: stored[key] for key in shapes}


def _quantised(array: jax.Array, key: tuple[str, ...], form: quantise.Format) -> dict[tuple[str, ...], Any]:
    return flatten_dict(quantise.quantised(unflatten_dict({key: array}), form))
