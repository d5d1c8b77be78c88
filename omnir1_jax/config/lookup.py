"""User-defined objects: `module:object` or `file.py:object`, wherever a registered name is accepted."""

import hashlib
import importlib
import importlib.util
import pathlib
import sys
from collections.abc import Mapping
from types import ModuleType
from typing import Any, TypeVar

import cloudpickle  # grain's, which sends readers and transforms to its workers

from omnir1_jax.errors import InputError

T = TypeVar("T")


def is_path(name: str) -> bool:
    """Whether a name is `module:object` or `file.py:object` and not one of a registry."""
    return ":" in name


def registered(name: str, registry: Mapping[str, T], setting: str) -> T:
    """The registry's entry of this name, or the object that `module:object` or `file.py:object` stands for.

    Raises:
      InputError: there is no such entry, module, file or object; names the setting.
    """
    if name in registry:
        return registry[name]
    if is_path(name):
        return load(name, setting)
    raise InputError(
        f"{setting}: {name!r} is none of {', '.join(registry)}, nor an object of your own as module:object or "
        "file.py:object"
    )


def function(name: str, registry: Mapping[str, T], setting: str) -> T:
    """As `registered`, for functions.

    Raises:
      InputError: there is no such entry or object, or it cannot be called; names the setting.
    """
    value = registered(name, registry, setting)
    if not callable(value):
        raise InputError(f"{setting}: {name} is not a function")
    return value


def load(name: str, setting: str) -> Any:
    """The object that `module:object` or `file.py:object` stands for.

    Raises:
      InputError: there is no such module, file or object, or it fails on import; names the setting.
    """
    source, _, attribute = name.rpartition(":")
    if not source or not attribute:
        raise InputError(f"{setting}: {name!r} is not of the form module:object or file.py:object")
    try:
        module = _from_file(pathlib.Path(source)) if source.endswith(".py") else importlib.import_module(source)
    except InputError:
        raise
    except Exception as error:  # the user's module may fail in any way on import
        raise InputError(f"{setting}: {source} cannot be imported ({type(error).__name__}: {error})") from error
    try:
        return getattr(module, attribute)
    except AttributeError:
        raise InputError(f"{setting}: {source} has no {attribute!r}") from None


def _from_file(path: pathlib.Path) -> ModuleType:
    """A module of a file, imported once for each path."""
    resolved = path.resolve()
    name = f"{path.stem}_{hashlib.sha256(str(resolved).encode()).hexdigest()[:8]}"
    if name in sys.modules:
        return sys.modules[name]
    if not resolved.is_file():
        raise FileNotFoundError(f"no such file: {path}")
    spec = importlib.util.spec_from_file_location(name, resolved)
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    # The pipeline's worker processes cannot import it by this name.
    cloudpickle.register_pickle_by_value(module)
    return module
