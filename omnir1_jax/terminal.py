"""Makes stdout and stderr unable to end a command: ignores a closed pipe, a hung-up terminal, a full disk."""

import io
import os
import re
import sys

from absl import logging

from omnir1_jax import errors


class _Output(io.FileIO):
    """Drops output that cannot be written: the run's files are the record, the terminal only displays it."""

    def write(self, data) -> int:
        try:
            return super().write(data)
        except OSError:
            return len(data)


def protect() -> None:
    """Replaces `sys.stdout` and `sys.stderr`, closed ones too; keeps streams that a test or a notebook installed."""
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:  # closed: otherwise the next opened file gets this descriptor, and what others print to it
            os.dup2(os.open(os.devnull, os.O_RDWR), number)
    for number, name in ((1, "stdout"), (2, "stderr")):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, _text(number, "utf-8"))
        elif type(stream) is io.TextIOWrapper and stream.fileno() == number:
            stream.flush()
            setattr(sys, name, _text(number, stream.encoding))
    logging.get_absl_handler().python_handler.setStream(sys.stderr)


class _Text(io.TextIOWrapper):
    """Escapes control sequences, so that file names and a model's text are displayed and never interpreted."""

    def write(self, text: str) -> int:
        super().write(_CONTROLS.sub(lambda match: errors.printable(match[0]), text))
        return len(text)


# Control characters except line ends, tabs and the carriage return of a progress bar; bidirectional overrides.
_CONTROLS = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")


def _text(number: int, encoding: str) -> io.TextIOWrapper:
    raw = _Output(number, "w", closefd=False)
    lines = number == 2 or raw.isatty()
    return _Text(io.BufferedWriter(raw), encoding, "backslashreplace", line_buffering=lines)
