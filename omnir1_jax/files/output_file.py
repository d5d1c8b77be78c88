"""A single output file named by a flag: written atomically, never over a file that the command did not write."""

import json
from collections.abc import Callable
from typing import Any

from etils import epath

from omnir1_jax import cli
from omnir1_jax.errors import InputError
from omnir1_jax.files import folders, json_file


def check(path: str, flag: str, is_ours: Callable[[Any], bool]) -> None:
    """Checks that a command may write the JSON file `path`; called before anything is computed. Changes nothing.

    Args:
      flag: name of the file in messages, such as "--json".
      is_ours: function that returns whether the content of an existing file is what the command writes.

    Raises:
      InputError: names the file and what is there.
    """
    file = epath.Path(path)
    if folders.is_link(file):
        raise InputError(f"{flag}: {path} is a symbolic link; name the file itself, or a new one")
    if not folders.exists(file, flag):
        return
    if file.is_dir():
        raise InputError(f"{flag}: {path} is a folder; name a file")
    try:
        recognised = is_ours(json_file.read(file, flag))
    except InputError as error:
        raise InputError(f"{flag}: {path} was not written by this command ({error}); name another file") from error
    if not recognised:
        raise InputError(f"{flag}: {path} was not written by this command; name another file")


def write(path: str, flag: str, value: Any, is_ours: Callable[[Any], bool]) -> None:
    """Writes `value` atomically. Raises InputError as `check`."""
    check(path, flag, is_ours)
    with cli.atomic_path(path) as scratch:
        scratch.write_text(json.dumps(value, indent=2) + "\n")
