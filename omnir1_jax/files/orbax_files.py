"""Writes arrays with orbax: one by one, to a checked path, verified by reading the index back."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import orbax.checkpoint as ocp
import tensorstore
from etils import epath
from flax.traverse_util import unflatten_dict

from omnir1_jax.errors import InputError

# Orbax joins the files of all processes by a glob over the full path, and tensorstore reads "\\" as "/": with these
# characters it writes an index without any array, or one with the arrays of another folder.
_REFUSED = "[]*?{}\\"


def check_path(path: epath.PathLike, flag: str) -> None:
    """InputError if orbax cannot write readable arrays to this path.

    Args:
      flag: name of the path in the message.
    """
    path = epath.Path(path)
    absolute = str(path if "://" in str(path) else path.absolute())
    if characters := sorted(set(absolute) & set(_REFUSED)):
        raise InputError(
            f"{flag}: {absolute} has {' '.join(characters)} in it, with which arrays cannot be stored; name a folder "
            f"whose full path has none of {' '.join(_REFUSED)}"
        )


class _OneByOne(ocp.type_handlers.NumpyHandler):
    """Orbax handler for arrays that exist only while they are written."""

    def typestr(self) -> str:
        return "jax.Array"  # the type they are restored as

    async def serialize(self, values: Any, infos: Any, args: Any = None) -> list[Any]:
        for value, info, arg in zip(values, infos, args, strict=True):
            for written in await super().serialize([np.asarray(value)], [info], [arg]):
                written.result()  # before the next one is made
        return []


def save(path: epath.PathLike, arrays: Mapping[tuple[str, ...], Any], pieces: Mapping[tuple[str, ...], Any]) -> None:
    """Writes a tree of arrays, each made when the one before is on disk; not compressed, for speed.

    Args:
      arrays: arrays by path, or objects with `shape` and `dtype` that `np.asarray` turns into arrays.
      pieces: save arguments (chunks) by path.
    """
    handlers = [(kind, _OneByOne(deepcopy_host_arrays=False)) for kind in {type(array) for array in arrays.values()}]
    registry = ocp.type_handlers.create_type_handler_registry(*handlers)
    args = ocp.args.PyTreeSave(unflatten_dict(arrays), save_args=unflatten_dict(pieces))
    with ocp.Checkpointer(
        ocp.PyTreeCheckpointHandler(type_handler_registry=registry, use_compression=False)
    ) as checkpointer:
        checkpointer.save(path, args)


def open_array(item: epath.PathLike, path: Iterable[str]) -> tensorstore.TensorStore:
    """An array of a tree, to be read entirely or in parts."""
    kvstore = _kvstore(item) | {"path": f"{'.'.join(path)}/"}
    return tensorstore.open({"driver": "zarr", "kvstore": kvstore}, open=True).result()


def _kvstore(item: epath.PathLike) -> dict[str, Any]:
    text = str(item)
    return {"driver": "ocdbt", "base": f"{text}/" if "://" in text else {"driver": "file", "path": f"{text}/"}}


def check_written(item: epath.PathLike, names: Iterable[str]) -> None:
    """Reads back the index of a tree of arrays that was just written.

    Args:
      item: the tree's folder.
      names: paths of the arrays in it, joined by ".".

    Raises:
      OSError: the index is missing, cannot be read, or lacks an array.
    """
    try:
        index = tensorstore.KvStore.open(_kvstore(item)).result()
        keys = {key.decode() for key in index.list().result()}
    except ValueError as error:  # tensorstore raises it for every failure
        raise OSError(f"{item}: cannot be read back after it was written ({error})") from error
    if unreadable := sorted(name for name in names if f"{name}/.zarray" not in keys):
        raise OSError(
            f"{item}: {len(unreadable)} arrays cannot be read back after they were written ({unreadable[0]} first)"
        )
