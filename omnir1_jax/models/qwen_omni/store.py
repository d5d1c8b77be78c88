"""The thinker as an orbax directory: `params/`, the `config.json` that it came with, and `files/` (the tokenizer's).

Parameters lie there as the modules hold them, in pieces that every host of a mesh can read for itself.
"""

import json
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import Mesh
from jax.typing import DTypeLike

from omnir1_jax.cli import absolute
from omnir1_jax.errors import InputError
from omnir1_jax.files import folders, orbax_files, regular_file
from omnir1_jax.models import quantise
from omnir1_jax.models.hf_checkpoint import Deferred
from omnir1_jax.models.qwen_omni import hf_config
from omnir1_jax.models.qwen_omni.config import ThinkerConfig
from omnir1_jax.models.qwen_omni.thinker import abstract_params
from omnir1_jax.parallel import tree_shardings

STORE = "store"  # its kind, in its mark
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
    """Writes the directory; it appears whole or not at all, and once its index was read back.

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
        with ocp.StandardCheckpointer() as checkpointer:
            checkpointer.save(scratch / "params", params)
        orbax_files.check_written(scratch / "params", [".".join(key) for key in flatten_dict(params)])


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
    boxed = abstract_params(config)
    shapes = flatten_dict(nn.unbox(boxed))
    if mesh is None:
        shardings = dict.fromkeys(shapes, jax.sharding.SingleDeviceSharding(jax.devices()[0]))
    else:
        shardings = flatten_dict(tree_shardings(mesh, boxed))
    target = {
        key: jax.ShapeDtypeStruct(one.shape, dtype or one.dtype, sharding=shardings[key])
        for key, one in _stored(path, shapes).items()
    }
    if form is None:
        with ocp.StandardCheckpointer() as checkpointer:
            return checkpointer.restore(absolute(path) / "params", unflatten_dict(target))
    held = quantise.quantised(boxed, form)
    placed = None if mesh is None else flatten_dict(tree_shardings(mesh, held))
    params: dict[tuple[str, ...], Any] = {}
    for key, wanted in target.items():
        into = None if placed is None else {name: placed[name] for name in quantise.paths(key, wanted.shape, form)}
        params |= jax.jit(_quantised, static_argnums=1, out_shardings=into)(_restored(path, key, wanted), form)
    return unflatten_dict(params)


def deferred(path: epath.PathLike, config: ThinkerConfig, *, dtype: DTypeLike | None = None) -> dict:
    """As `load_store`, each parameter read on the host when it is asked for."""
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])

    def one(key: tuple[str, ...], stored: Any) -> Deferred:
        wanted = jax.ShapeDtypeStruct(stored.shape, dtype or stored.dtype, sharding=device)
        make = lambda: np.asarray(flatten_dict(_restored(path, key, wanted))[key])
        return Deferred(tuple(stored.shape), np.dtype(wanted.dtype), make)

    found = _stored(path, flatten_dict(nn.unbox(abstract_params(config))))
    return unflatten_dict({key: one(key, stored) for key, stored in found.items()})


def _stored(path: epath.PathLike, shapes: Mapping[tuple[str, ...], Any]) -> dict[tuple[str, ...], Any]:
    """What lies there of each parameter: shape and dtype."""
    folder = absolute(path) / "params"
    with ocp.StandardCheckpointer() as checkpointer:
        metadata = checkpointer.metadata(folder).item_metadata
    if metadata is None:
        raise InputError(f"{folder}: not an orbax checkpoint, or one cut short; import it again")
    stored = flatten_dict(metadata.tree)
    odd = sorted(
        "/".join(key)
        for key in stored.keys() | shapes.keys()
        if key not in stored or key not in shapes or tuple(stored[key].shape) != shapes[key].shape
    )
    if odd:
        raise InputError(f"{folder}: does not fit its config.json in {', '.join(odd[:8])}; import it again")
    return {key: stored[key] for key in shapes}


def _restored(path: epath.PathLike, key: tuple[str, ...], wanted: jax.ShapeDtypeStruct) -> dict:
    """The tree with one parameter alone."""
    one = unflatten_dict({key: wanted})
    how = ocp.args.PyTreeRestore(one, ocp.checkpoint_utils.construct_restore_args(one), partial_restore=True)
    with ocp.PyTreeCheckpointer() as checkpointer:
        return checkpointer.restore(absolute(path) / "params", how)


def _quantised(tree: Any, form: quantise.Format) -> dict[tuple[str, ...], Any]:
    return flatten_dict(quantise.quantised(tree, form))
