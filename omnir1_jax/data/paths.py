"""Where a dataset's files are: every path that comes from metadata goes through `inside`.

A root may be local or remote (`gs://`, whatever etils.epath opens). A path that metadata spells must not leave the
root. Symbolic links are followed wherever they lead: metadata cannot make one, so whoever owns the tree did (the
Hugging Face cache keeps every file as a link into `blobs/`; frames are often on another disk).
"""

import glob
import os
from collections.abc import Sequence
from typing import Any

from etils import epath

from omnir1_jax.errors import InputError
from omnir1_jax.files import regular_file


def is_remote(path: str) -> bool:
    return "://" in path


def inside(root: str, relative: Any, location: str) -> str:
    """`root`/`relative`, refused if the name leaves the root. Looks at the names alone, not at the disk.

    `location` says where the name was read ("meta.json: videos"), for the message. Raises `InputError`.
    """
    if not isinstance(relative, str) or not relative or "\0" in relative:
        raise InputError(f"{location}: expected a path within {root}, found {relative!r}")
    parts = relative.replace("\\", "/").split("/")
    # Empty parts and drive letters anywhere: an absolute path stays one to the reader when a folder is put before it.
    if is_remote(relative) or any(part in ("", "..") or (len(part) == 2 and part[1] == ":") for part in parts):
        raise InputError(f"{location}: the path {relative!r} leaves the dataset's root {root}; name a file within it")
    return f"{root.rstrip('/')}/{relative}"


def existing(root: str, relative: Any, location: str) -> str:
    """`inside`, for a file or directory that has to be there. Raises `InputError` naming what is missing where."""
    path = inside(root, relative, location)
    if not exists(path):
        raise InputError(f"{location}: {missing(path)}")
    return path


def missing(path: str) -> str:
    """Says that `path` is missing, and which link on the way to it leads nowhere: a disk that is not mounted."""
    part = path
    while not is_remote(path) and part and part != os.path.dirname(part):
        if os.path.islink(part) and not os.path.exists(part):
            return f"{path} is missing: {part} is a link to {os.readlink(part)}, which is not there"
        part = os.path.dirname(part)
    return f"{path} is missing"


def files(root: str, directory: str, names: Sequence[str], location: str) -> tuple[str, ...]:
    """The files `names` of one directory within `root`, all of them there. One directory scan, not n calls.

    Raises `InputError` naming the first file that is missing. Remote directories are not listed: a missing file
    shows when it is read.
    """
    folder = inside(root, directory, location)
    out = tuple(inside(folder, name, location) for name in names)
    if is_remote(root):
        return out
    try:
        present = set(os.listdir(folder))
    except FileNotFoundError as error:
        raise InputError(f"{location}: {missing(folder)}") from error
    except OSError as error:
        raise InputError(f"{location}: the directory {folder} cannot be read ({error.strerror})") from error
    for name, path in zip(names, out):
        if name not in present:
            raise InputError(f"{location}: {path} is missing")
    return out


def matching(root: str, *patterns: str) -> list[str]:
    """The files within a local `root` whose names match, those of each pattern sorted."""
    return [path for pattern in patterns for path in sorted(glob.glob(f"{glob.escape(root.rstrip('/'))}/{pattern}"))]


def exists(path: str) -> bool:
    return epath.Path(path).exists() if is_remote(path) else os.path.exists(path)


def read_bytes(path: str) -> bytes:
    """Raises OSError."""
    if is_remote(path):
        return epath.Path(path).read_bytes()
    with open(path, "rb", opener=regular_file.opener) as file:
        return file.read()
