"""Standard output and error that cannot end a command: a reader that went away, a hung-up terminal, a full disk."""

import io
import os
import re
import sys

from absl import logging

from omnir1_jax import errors


class _Output(io.FileIO):
    """Drops what the other side does not take: files say what a run did, its terminal only shows it."""

    def write(self, data) -> int:
        try:
            return super().write(data)
        except OSError:
            return len(data)


def protect() -> None:
    """Replaces `sys.stdout` and `sys.stderr`, closed ones too; streams that a test or a notebook put there stay."""
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:  # else the next file that is opened would get the number, and what others print with it
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
    """Escapes what a terminal would obey: names of files and a model's text are shown, never carried out."""

    def write(self, text: str) -> int:
        super().write(_OBEYED.sub(lambda match: errors.printable(match[0]), text))
        return len(text)


# Controls but for line ends, tabs and the carriage return of a progress bar; and what turns the direction of writing.
_OBEYED = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")


def _text(number: int, encoding: str) -> io.TextIOWrapper:
    raw = _Output(number, "w", closefd=False)
    lines = number == 2 or raw.isatty()
    return _Text(io.BufferedWriter(raw), encoding, "backslashreplace", line_buffering=lines)
