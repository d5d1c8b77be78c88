"""Shared by every command: flags, exit status, and atomically written files."""

import contextlib
import functools
import logging as std_logging
import os
import sys
import types
import uuid
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from absl import app, flags, logging
from etils import epath

from omnir1_jax import errors, signals, terminal
from omnir1_jax.errors import InputError

# Definers of a command's flags, by kind. Two commands in one process may each define a flag of the same name.
flag = types.SimpleNamespace(
    **{
        kind: functools.partial(getattr(flags, f"DEFINE_{kind}"), allow_override=True)
        for kind in ("bool", "enum", "float", "integer", "list", "multi_string", "string")
    }
)


def run(main: Callable, flags_parser: Callable[[Sequence[str]], object] | None = None) -> None:
    """Runs `main` under absl. Errors known to `errors.ending` become one line on stderr and an exit status.

    The status is 0 (done), 2 (bad input, full disk: a rerun fails the same way) or 42 (interrupted: rerun to resume).
    Failing writes to stdout or stderr do not end the command.
    """
    terminal.protect()
    logging.get_absl_logger().addFilter(_is_news)
    sys.unraisablehook = _unraisable

    def guarded(function):
        @functools.wraps(function)
        def inner(args):
            try:
                with signals.interruptible():
                    return function(args)
            except (Exception, KeyboardInterrupt) as error:
                end = errors.ending(error)
                if end is None:
                    raise
                print(f"error: {end.text}", file=sys.stderr)
                sys.exit(end.status)

        return inner

    app.run(guarded(main), flags_parser=guarded(flags_parser)) if flags_parser else app.run(guarded(main))


def _is_news(record: std_logging.LogRecord) -> bool:
    """False for a library's report of a storage error with a traceback: the command prints its own line."""
    error = record.exc_info[1] if record.exc_info else None
    failure = errors.storage_failure(error or Exception(record.getMessage()))
    return record.levelno < std_logging.ERROR or failure is None


def _unraisable(unraisable: Any) -> None:
    """Suppresses what tensorstore's threads print after a failed write: that nothing awaits the other writes."""
    if "Event loop is closed" not in str(unraisable.exc_value):
        sys.__unraisablehook__(unraisable)


def need(**holders: flags.FlagHolder) -> None:
    """Raises InputError if a flag is missing; absl's required flags would apply to every parser of the process."""
    for name, holder in holders.items():
        if holder.value in (None, ""):
            raise InputError(f"--{name}: is needed; see --help")


def absolute(path: epath.PathLike) -> epath.Path:
    """The absolute path, which Orbax requires; `gs://` paths are absolute already."""
    path = epath.Path(path)
    return path if "://" in str(path) else path.absolute()


@contextlib.contextmanager
def atomic_path(target: epath.PathLike) -> Iterator[epath.Path]:
    """Yields a scratch path for a file beside `target`; on a clean exit it is renamed to `target`.

    If the body raises, the scratch is removed and `target` is unchanged; storage errors are OSError naming `target`.
    """
    target = epath.Path(target)
    scratch = target.parent / f".{target.name}.{os.getpid()}.{uuid.uuid4().hex[:8]}.part"
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        with errors.named(target, scratch):
            yield scratch
        scratch.replace(target)
    except BaseException:
        scratch.unlink(missing_ok=True)
        raise
