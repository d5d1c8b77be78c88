"""A command accepts its own flags and those of no other command."""

import importlib
import json
import os
import sys

import pytest
from absl import flags

from omnir1_jax.config import settings
from omnir1_jax.errors import InputError

COMMANDS = ("bench", "evaluate", "infer", "plan", "toy.__main__", "train")


def in_a_process(function, *args):
    """What `function` returns in a forked process, whose flags are those of the modules it imports."""
    read, write = os.pipe()
    if child := os.fork():
        os.close(write)
        with os.fdopen(read) as pipe:
            text = pipe.read()
        os.waitpid(child, 0)
        return json.loads(text)
    try:
        with os.fdopen(write, "w") as pipe:
            json.dump(function(*args), pipe)
    finally:
        os._exit(0)


def flags_of(command: str) -> list[str]:
    """Flags that the command's modules define, without those of absl itself and of libraries."""
    for name in list(flags.FLAGS):  # of commands that other tests of this process imported
        delattr(flags.FLAGS, name)
    for name in [name for name in sys.modules if name.removeprefix("omnir1_jax.") in COMMANDS]:
        del sys.modules[name]
    module = importlib.import_module(f"omnir1_jax.{command}")
    assert module.__name__ == f"omnir1_jax.{command}"
    return sorted(flags.FLAGS)


def accepted(command: str, names: list[str]) -> list[str]:
    """Those of `names` that the command's parser accepts."""
    flags_of(command)
    taken = []
    for name in names:
        try:
            settings.parse([command, f"--{name}=1"])
            taken.append(name)
        except InputError as error:
            if "Unknown command line flag" not in str(error):
                taken.append(name)
    return taken


@pytest.fixture(scope="module")
def own() -> dict[str, list[str]]:
    for command in COMMANDS:  # what they share is imported once, here
        importlib.import_module(f"omnir1_jax.{command}")
    return {command: in_a_process(flags_of, command) for command in COMMANDS}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_refuses_the_flags_of_every_other(command, own):
    foreign = sorted({name for names in own.values() for name in names} - set(own[command]))
    assert own[command] and foreign
    assert in_a_process(accepted, command, foreign) == []


def test_flags_are_those_that_a_command_means(own):
    """One flag that is another command's own, for each: they came in by an import."""
    assert not {"seed", "checkpoint", "workdir", "coordinator", "limit"} & set(own["toy.__main__"])
    assert own["train"] == ["config", "coordinator", "process", "processes", "workdir"]
