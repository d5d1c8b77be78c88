"""The one error a user can cause, and text that is safe to print."""

import unicodedata


class InputError(ValueError):
    """Bad input: the message is one clear line that names the file, key or dimension and what to do.

    Commands print it without a traceback and exit with status 2 (`omnir1_jax.cli`).
    """


def printable(text: object) -> str:
    """`text` on one line, safe to print: control, format and bidi characters and bytes that are not UTF-8 are escaped.

    A name or a model's text could else move the cursor, colour the terminal, forge a line of a log, or fail to print.
    """
    return "".join(char if char.isprintable() or _is_space(char) else _escaped(char) for char in str(text))


def _is_space(char: str) -> bool:
    return unicodedata.category(char) == "Zs"  # no-break and ideographic spaces: no control characters


def _escaped(char: str) -> str:
    return char.encode("unicode_escape").decode("ascii")
