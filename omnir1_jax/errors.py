"""Errors that end a command with one line and an exit status; text that is safe to print."""

import contextlib
import errno
import importlib
import os
import re
import shutil
import types
import unicodedata
from collections.abc import Iterator
from typing import NamedTuple

# Exit statuses. 1, Python's own, is left for unexpected errors, whose traceback helps.
DONE, INVALID, AGAIN = 0, 2, 42
_MAX_LINE = 2000  # characters of an error


class InputError(ValueError):
    """Bad input: the message is one clear line that names the file, key or dimension and what to do.

    Commands print it without a traceback and exit with status 2 (`omnir1_jax.cli`). Names of files and keys in it
    are escaped if they hold line ends or control characters; the middle of a very long line is left out.
    """

    def __str__(self) -> str:
        text = printable(super().__str__())
        return text if len(text) <= _MAX_LINE else f"{text[: _MAX_LINE - 500]} ... {text[-480:]}"


def optional(module: str, extra: str) -> types.ModuleType:
    """Imports a module of a package that an extra installs. Raises InputError, naming the extra, if it is missing."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name != module.partition(".")[0]:
            raise
        raise InputError(f"{error.name} is not installed; pip install 'omnir1_jax[{extra}]'") from None


class Interrupted(KeyboardInterrupt):
    """A command was interrupted for a transient reason: it exits with status 42, and a rerun resumes.

    The message is one line. Like KeyboardInterrupt it passes through `except Exception`.
    """


class Ending(NamedTuple):
    """The exit status of a command and the line that it prints."""

    status: int
    text: str


def ending(error: BaseException) -> Ending | None:
    """The exit status and line for `error`; None for an unexpected error, whose traceback is shown."""
    if isinstance(error, InputError):
        return Ending(INVALID, printable(error))
    if isinstance(error, KeyboardInterrupt):
        reason = str(error) or "interrupted by SIGINT; run the same command again to resume"
        return Ending(AGAIN, printable(reason))
    failure = storage_failure(error)
    return Ending(INVALID, printable(describe(failure))) if failure else None


# Write errors that a rerun does not fix. tensorstore and safetensors give their numbers in the message only.
_FULL = {errno.ENOSPC, errno.EDQUOT}
_STORAGE = _FULL | {errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM}
_NUMBER = re.compile(r"(?:os_error_code='|\(os error |OS error |\[Errno )(\d+)")
_PATH = re.compile(r"""["'](/[^"']+)["']""")


def storage_failure(error: BaseException) -> OSError | None:
    """The storage error (disk full, no permission) that caused `error`, or None; its `filename` may be None."""
    for cause in _causes(error):
        if isinstance(cause, InputError):
            return None  # its message is clearer
        if isinstance(cause, OSError):
            if cause.errno in _STORAGE:
                return cause
        elif (number := _NUMBER.search(str(cause))) and int(number[1]) in _STORAGE:
            path = _PATH.search(str(cause))
            name = path and path[1].split(".orbax-checkpoint-tmp")[0]  # the checkpoint that was being written
            return OSError(int(number[1]), os.strerror(int(number[1])), name)
    return None


@contextlib.contextmanager
def named(target: str | os.PathLike, scratch: str | os.PathLike = "") -> Iterator[None]:
    """Raises storage errors of the body as OSError that names `target` instead of `scratch` or of no file."""
    try:
        yield
    except Exception as error:
        failure = storage_failure(error)
        if failure is None:
            raise
        other = failure.filename and not (str(scratch) and str(failure.filename).startswith(str(scratch)))
        path = failure.filename if other else os.fspath(target)
        raise OSError(failure.errno, os.strerror(failure.errno), path) from error


def describe(failure: OSError) -> str:
    """One line: the file, the error, the free space, and what to do."""
    location = f"{failure.filename}: " if failure.filename else ""
    reason = os.strerror(failure.errno).lower()
    if failure.errno in _FULL:
        return f"{location}{reason}{_free(failure.filename)}; free some space, then run the same command again"
    if failure.errno == errno.EFBIG:
        return f"{location}{reason}; raise the limit on file sizes (ulimit -f), then run the same command again"
    return f"{location}{reason}; give this user permission, or name another path"


def _free(path: str | None) -> str:
    folder = os.path.abspath(path) if path and "://" not in str(path) else ""
    while folder and not os.path.exists(folder):
        folder = os.path.dirname(folder)
    if not folder:
        return ""
    usage = shutil.disk_usage(folder)
    return f" ({usage.free / 1e6:,.1f} of {usage.total / 1e6:,.1f} MB free)"


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def first_line(error: Exception, max_length: int = 300) -> str:
    """The first line of a library's error, at most `max_length` characters."""
    return (str(error).splitlines() or [type(error).__name__])[0][:max_length]


def printable(text: object) -> str:
    """`text` on one line, safe to print: control, format and bidi characters and bytes that are not UTF-8 are escaped.

    Unescaped, a name or a model's text could move the cursor, colour the terminal, forge a log line, or fail to print.
    """
    # No-break and ideographic spaces (Zs) are not control characters.
    return "".join(
        char
        if char.isprintable() or unicodedata.category(char) == "Zs"
        else char.encode("unicode_escape").decode("ascii")
        for char in str(text)
    )
