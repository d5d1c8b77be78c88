"""The configs that come with the package: `configs/` of a checkout, `omnir1_jax/configs/` of an installed one."""

import pathlib
import re
import runpy
from collections.abc import Sequence

from ml_collections import ConfigDict

from omnir1_jax.errors import InputError

_PACKAGE = pathlib.Path(__file__).parents[1]
_PLACES = (_PACKAGE / "configs", _PACKAGE.parent / "configs")
FOLDER = next((path for path in _PLACES if (path / "toy.py").is_file()), None)
_FLAG = re.compile(r"(--?config=)?configs/(\w+\.py)((?::.*)?)", re.DOTALL)


def config(name: str, flag: str) -> ConfigDict:
    """That of `configs/NAME.py`. InputError without the folder; names what asked for it."""
    if FOLDER is None:
        raise InputError(f"{flag}: the folder configs is neither in the package nor beside it")
    return runpy.run_path(str(FOLDER / f"{name}.py"))["get_config"]()


def resolve(argv: Sequence[str]) -> list[str]:
    """Arguments of a command; `configs/NAME.py` becomes the shipped file if there is none in the working directory."""
    return [_resolve(argument) for argument in argv]


def _resolve(argument: str) -> str:
    match = _FLAG.fullmatch(argument)
    if FOLDER is None or match is None:
        return argument
    flag, name, rest = match.groups("")
    shipped = FOLDER / name
    local = pathlib.Path("configs", name)
    return f"{flag}{shipped}{rest}" if shipped.is_file() and not local.exists() else argument
