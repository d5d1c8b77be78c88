"""A run's settings as an `ml_collections` config: defaults, flags, and configs that runs have saved.

The files in `configs/` start from `defaults()` and say what they change; `sections.py` explains every setting. The
config is locked: an unknown name is refused, with the nearest one that is known.
"""

import dataclasses
import functools
import json
import operator
import re
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from absl import flags
from etils import epath
from flax.traverse_util import flatten_dict, unflatten_dict
from ml_collections import ConfigDict, config_flags

from omnir1_jax.config import schema, shipped
from omnir1_jax.config.schema import S
from omnir1_jax.config.sections import CELL as CELL
from omnir1_jax.config.sections import Settings, Task
from omnir1_jax.errors import InputError
from omnir1_jax.files import hub, json_file

# Of the names of settings; saved configs without one are of version 1. RENAMED[v - 1]: names of version v, with
# slashes, that changed in version v + 1; `*` stands for every task.
VERSION = 4
RENAMED: tuple[dict[str, str], ...] = ({}, {"sft/towers": "sft/encoders"}, {"grpo/keep": "data/*/keep"})


def defaults() -> ConfigDict:
    """The paper's settings for training System 1 where it gives them, sensible values elsewhere."""
    return _config(Settings)


def task(**changes: Any) -> ConfigDict:
    """One task of `config.data`: its datasets and how their clips are read.

    datasets: name -> dict(name=..., root=..., split=..., further options of that reader).
    """
    c = _config(Task)
    for key, value in changes.items():
        c[key] = ConfigDict(value) if key == "datasets" else value
    return c


def _config(kind: type[schema.Section]) -> ConfigDict:
    """A section's defaults, locked."""
    return ConfigDict(dataclasses.asdict(kind())).lock()


def datasets(**entries: dict[str, Any]) -> ConfigDict:
    """Datasets by name; `dict(name=...)` names the reader, by default the same name."""
    return ConfigDict({key: {"name": key, "root": "", "split": ""} | entry for key, entry in entries.items()})


def typed(config: ConfigDict) -> Settings:
    """A config as checked dataclasses.

    Raises:
      InputError: names the first setting whose value is invalid.
    """
    return schema.read(Settings, config.to_dict())


def section(kind: type[S], values: ConfigDict | S) -> S:
    """One section of a config as its checked dataclass."""
    return values if isinstance(values, kind) else schema.read(kind, values.to_dict(), kind.__name__.lower())


def plain(value: Any) -> Any:
    """A config as JSON: dicts, lists, strings, numbers."""
    if isinstance(value, ConfigDict | dict):
        return {key: plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, tuple | list) else value


def define(space: flags.FlagValues = flags.FLAGS) -> flags.FlagHolder:
    """The flag `--config FILE[:argument]` with `--config.section.key=value` for single settings."""
    holder = config_flags.DEFINE_config_file(
        "config", None, "Experiment: a file such as configs/toy.py.", space, allow_override=True
    )
    parser = space["config"].parser
    load = parser.parse
    parser.parse = lambda path: _with_fields(load(path), sys.argv)
    return holder


def _with_fields(config: ConfigDict, argv: Sequence[str]) -> ConfigDict:
    """Adds the fields set by flags to sections that hold only differences from defaults, such as `reward.terms`."""
    for argument in argv:
        flag = re.match(r"--?(?:no)?config\.([\w.]+)\.(\w+)(?:=|$)", argument)
        rule = schema.flat(Settings).get(flag[1]) if flag else None
        if isinstance(rule, schema.Fields) and rule.kind is not None:
            field_defaults, (name, key) = dataclasses.asdict(rule.kind()), flag.groups()
            if key not in field_defaults:
                raise InputError(f"--config.{name}.{key}: no such setting; there are {', '.join(field_defaults)}")
            fields = functools.reduce(operator.getitem, name.split("."), config)
            with fields.unlocked():
                fields[key] = fields.get(key, field_defaults[key])
    return config


def parse(argv: Sequence[str]) -> Sequence[str]:
    """absl's flags parser; an invalid file, key or value gives an error of one line."""
    named = [argument for argument in argv[1:] if re.fullmatch("--?config(=.*)?", argument, re.DOTALL)]
    if len(named) > 1:
        raise InputError(
            f"--config: given {len(named)} times; name one file, and change settings by --config.SETTING=VALUE"
        )
    try:
        rest = flags.FLAGS(shipped.resolve(argv))
        if "config" in flags.FLAGS and flags.FLAGS.config is not None:
            flags.FLAGS.config.keys()  # an error of loading shows only when the config is used
            _find_models(flags.FLAGS.config)
        return rest
    except flags.UnrecognizedFlagError as error:
        if error.flagname.startswith("config.") and "config" in flags.FLAGS:
            raise InputError(f"--{error.flagname}: changes a setting of a config; name its --config=FILE too") from None
        raise InputError(_line(error)) from error
    except flags.Error as error:
        raise InputError(_line(error)) from error
    except (AttributeError, KeyError, TypeError, ValueError, OSError) as error:
        raise InputError(f"--config: {_line(error)}") from error


def _find_models(config: ConfigDict) -> None:
    """Replaces each `org/name` that names a directory of weights by its folder in the hub's cache."""
    for name in ("thinker", "grounder", "sam2"):
        for key in ("path", "tokenizer"):
            if name in config and isinstance(config[name], ConfigDict) and isinstance(config[name].get(key), str):
                config[name][key] = hub.located(config[name][key], f"{name}.{key}")


def _line(error: Exception) -> str:
    while isinstance(error, AttributeError | KeyError) and error.args and isinstance(error.args[0], Exception):
        error = error.args[0]
    text = error.args[0] if isinstance(error, KeyError) and error.args else error
    return " ".join(str(text).split())[:400]


def saved_form(config: ConfigDict) -> dict[str, Any]:
    """A config as a run saves it: plain, with the version of its names."""
    return {"version": VERSION} | plain(config)


def upgraded(saved: Mapping[str, Any], source: str) -> dict[str, Any]:
    """Saved settings under today's names: missing ones get their defaults, unknown ones are ignored.

    Args:
      source: where they are from, for the line on stderr that names ignored settings.

    Raises:
      InputError: a section is not a mapping of settings.
    """
    values = {key: value for key, value in saved.items() if key != "version"}
    version = saved.get("version", 1)
    if type(version) is not int:
        raise InputError(f"{source}: version is {version!r}, not a whole number")
    flat = flatten_dict(values, keep_empty_nodes=True, sep="/")
    tasks = sorted({name.split("/")[1] for name in flat if name.startswith("data/")})
    for names in RENAMED[version - 1 :] if version > 0 else RENAMED:
        flat = {new: value for name, value in flat.items() for new in _renamed(names.get(name, name), tasks)}
    values, unknown = unflatten_dict(flat, sep="/"), []
    data = _section(values.pop("data", {}), "data", source)
    new = _filled(plain(defaults()), values, "", source, unknown)
    new["data"] = {name: _filled(plain(task()), entry, f"data.{name}", source, unknown) for name, entry in data.items()}
    if unknown:
        print(f"note: {source}: ignores {', '.join(unknown)}, which this version does not know", file=sys.stderr)
    return new


def _renamed(name: str, tasks: Sequence[str]) -> list[str]:
    """A new name of `RENAMED`, or those of all tasks that it stands for."""
    return [name.replace("*", task) for task in tasks] if "/*/" in name else [name]


def _filled(default: dict[str, Any], saved: Any, name: str, source: str, unknown: list[str]) -> dict[str, Any]:
    """`default` with the saved values; sections without known settings take all saved values."""
    if not default:
        return _section(saved, name, source)
    new = dict(default)
    for key, value in _section(saved, name, source).items():
        full_name = f"{name}.{key}" if name else key
        if key not in default:
            unknown.append(full_name)
        elif isinstance(default[key], dict):
            new[key] = _filled(default[key], value, full_name, source, unknown)
        else:
            new[key] = value
    return new


def _section(value: Any, name: str, source: str) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise InputError(f"{source}: {name} is {json.dumps(value)}, not a section of settings")
    return dict(value)


def read(path: epath.PathLike) -> ConfigDict:
    """A config that a run wrote (`config.json` of its work directory), under today's names.

    Raises:
      InputError: the file is not a config.
    """
    new = upgraded(json_file.read_object(path), str(path))
    c = defaults()
    try:
        with c.unlocked():
            c.update({key: value for key, value in new.items() if key != "data"})
            c.data = ConfigDict({name: task(**entry) for name, entry in new["data"].items()})
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path}: not a config that a run wrote ({type(error).__name__}: {_line(error)})") from error
    return c
