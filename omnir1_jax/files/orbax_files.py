"""Checks of arrays that orbax writes: that the path allows it, and that they can be read back."""

from collections.abc import Iterable

import tensorstore
from etils import epath

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
    full = str(path if "://" in str(path) else path.absolute())
    if characters := sorted(set(full) & set(_REFUSED)):
        raise InputError(
            f"{flag}: {full} has {' '.join(characters)} in it, with which arrays cannot be stored; name a folder "
            f"whose full path has none of {' '.join(_REFUSED)}"
        )


def check_written(item: epath.PathLike, names: Iterable[str]) -> None:
    """Reads back the index of a tree of arrays that was just written.

    Args:
      item: the tree's folder.
      names: paths of the arrays in it, joined by ".".

    Raises:
      OSError: the index is missing, cannot be read, or lacks an array.
    """
    text = str(item)
    base = f"{text}/" if "://" in text else {"driver": "file", "path": f"{text}/"}
    try:
        index = tensorstore.KvStore.open({"driver": "ocdbt", "base": base}).result()
        keys = {key.decode() for key in index.list().result()}
    except ValueError as error:  # tensorstore's, for every failure
        raise OSError(f"{item}: cannot be read back after it was written ({error})") from error
    if lost := sorted(name for name in names if f"{name}/.zarray" not in keys):
        raise OSError(f"{item}: {len(lost)} arrays cannot be read back after they were written ({lost[0]} first)")
