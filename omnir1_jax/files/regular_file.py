"""Input files: opened only if they are regular, because opening a FIFO or a device can block for ever."""

import errno
import os
import stat

from etils import epath

from omnir1_jax.errors import InputError

_KINDS = (
    (stat.S_ISDIR, "directory"),
    (stat.S_ISFIFO, "FIFO (named pipe)"),
    (stat.S_ISSOCK, "socket"),
    (stat.S_ISCHR, "device"),
    (stat.S_ISBLK, "device"),
)


def problem(path: epath.PathLike) -> str | None:
    """Why `path` cannot be read as a file; None if it can. Links are followed, `gs://` is looked up."""
    text = os.fspath(path)
    try:
        if "://" in text:
            remote = epath.Path(text)
            return None if remote.exists() and not remote.is_dir() else f"{text} is missing, or is a directory"
        mode = os.stat(text).st_mode
    except FileNotFoundError:
        return f"{text}: no such file; it is missing, or is a link to nothing"
    except (OSError, ValueError) as error:  # ValueError: a null character in the path
        return f"{text} cannot be read ({getattr(error, 'strerror', None) or error})"
    kind = _kind(mode)
    return f"{text} is a {kind}, not a regular file; name a file, or copy what it gives into one" if kind else None


def _kind(mode: int) -> str | None:
    if stat.S_ISREG(mode):
        return None
    return next((name for test, name in _KINDS if test(mode)), "special file")


def opener(path: str, flags: int) -> int:
    """An opener for `open(..., opener=)` that raises OSError, without blocking, if the file is not regular."""
    descriptor = os.open(path, flags | os.O_NONBLOCK)
    if kind := _kind(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, f"a {kind}, not a regular file")
    return descriptor


def require(path: epath.PathLike, label: str = "") -> epath.Path:
    """The path, which is a regular file (or a link to one).

    Args:
      path: local or remote.
      label: flag or dataset that names the file, for the message ("--boxes").

    Raises:
      InputError: it is missing, a directory, a FIFO, a device, or unreachable.
    """
    if reason := problem(path):
        raise InputError(f"{label}: {reason}" if label else reason)
    return epath.Path(path)


def read_bytes(path: epath.PathLike, label: str = "") -> bytes:
    """All bytes of a regular file; arguments and errors as in `require`."""
    file = require(path, label)
    try:
        return file.read_bytes()
    except OSError as error:
        raise InputError(f"{label + ': ' if label else ''}{path} cannot be read ({error.strerror or error})") from error
