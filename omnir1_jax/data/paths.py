"""Where a dataset's files are: every path that comes from metadata goes through `inside`.

A root may be local or remote (`gs://`, whatever etils.epath opens). Local symbolic links are followed only as long
as they stay within the root.
"""

import os
from collections.abc import Sequence
from typing import Any

from etils import epath

from omnir1_jax.errors import InputError


def is_remote(path: str) -> bool:
    return "://" in path


def join(root: str, relative: Any, what: str) -> str:
    """`root`/`relative`, refused if it reads as a way out. Looks at the names alone, not at the disk.

    `what` says where the name was read ("meta.json: videos"), for the message. Raises `InputError`.
    """
    if not isinstance(relative, str) or not relative or "\0" in relative:
        raise InputError(f"{what}: expected a path within {root}, found {relative!r}")
    parts = relative.replace("\\", "/").split("/")
    # Empty parts and drive letters anywhere: an absolute path stays one to the reader when a folder is put before it.
    if is_remote(relative) or any(part in ("", "..") or (len(part) == 2 and part[1] == ":") for part in parts):
        raise InputError(f"{what}: the path {relative!r} leaves the dataset's root {root}; name a file within it")
    return f"{root.rstrip('/')}/{relative}"


def inside(root: str, relative: Any, what: str) -> str:
    """`join`, and on a local disk also no symbolic link on the way that leads out of `root`. Raises `InputError`."""
    path = join(root, relative, what)
    if not is_remote(root):
        real_root, real = os.path.realpath(root), os.path.realpath(path)
        if real != real_root and not real.startswith(real_root.rstrip("/") + "/"):
            raise InputError(f"{what}: {path} is a link to {real}, outside the dataset's root {root}; remove the link")
    return path


def existing(root: str, relative: Any, what: str) -> str:
    """`inside`, for a file or directory that has to be there. Raises `InputError` naming what is missing where."""
    path = inside(root, relative, what)
    if not exists(path):
        raise InputError(f"{what}: {path} is missing")
    return path


def files(root: str, directory: str, names: Sequence[str], what: str) -> tuple[str, ...]:
    """The files `names` of one directory within `root`: all there, none a way out. One directory scan, not n calls.

    Raises `InputError` naming the first file that is missing. Remote directories are taken at their word: the file
    is missed when it is read.
    """
    folder = inside(root, directory, what)
    out = tuple(join(folder, name, what) for name in names)
    if is_remote(root):
        return out
    try:
        with os.scandir(folder) as entries:
            links = {entry.name: entry.is_symlink() for entry in entries}
    except OSError as error:
        raise InputError(f"{what}: the directory {folder} cannot be read ({error.strerror})") from error
    for name, path in zip(names, out):
        if name not in links:
            raise InputError(f"{what}: {path} is missing")
        if links[name]:
            inside(root, f"{directory}/{name}", what)
    return out


def exists(path: str) -> bool:
    return epath.Path(path).exists() if is_remote(path) else os.path.exists(path)


def read_bytes(path: str) -> bytes:
    """Raises OSError."""
    if is_remote(path):
        return epath.Path(path).read_bytes()
    with open(path, "rb") as file:
        return file.read()
