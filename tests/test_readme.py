"""Every command of the README runs, in the order in which it stands there."""

import re
import shlex
import subprocess
import sys

import pytest
from absl.testing import flagsaver

import omnir1_jax.plan  # noqa: F401  (defines the flags)
from omnir1_jax.config import settings
from tests.data import qwen_oracle
from tests.models import thinker_oracle
from tests.runs import ROOT, SMALL_TOY, environment

BLOCKS = re.findall(r"```sh\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
SHORTER = {
    "omnir1_jax.train": ["--config.steps=1", *SMALL_TOY],
    "omnir1_jax.evaluate": ["--limit=2"],
}
COMMANDS = [line for block in BLOCKS for line in block.splitlines()]


def test_the_test_command_is_what_ci_runs():
    assert COMMANDS[:2] == ["launch/quickstart.sh", "launch/test.sh"]
    assert "\nlaunch/test.sh\n" in (ROOT / ".ci/run").read_text()


def test_the_commands_run(tmp_path):
    thinker_oracle.reference(thinker_oracle.Sizes()).save_pretrained(tmp_path / "HF_DIRECTORY")
    qwen_oracle.save_tokenizer(tmp_path / "HF_DIRECTORY")
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    for command in COMMANDS[2:]:
        program, *arguments = shlex.split(command)
        assert program == "python"
        arguments += SHORTER.get(arguments[1], [])
        done = subprocess.run(
            [sys.executable, *arguments], cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=600
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    made = {path.name for path in tmp_path.iterdir()}
    assert made - {"configs"} == {
        "RUN",
        "RESULTS",
        "HF_DIRECTORY",
        "ORBAX_DIRECTORY",
        "NEW_HF_DIRECTORY",
        "DATA_DIRECTORY",
        "FIGURES",
    }


@pytest.mark.parametrize("name", ["qwen_omni", "sam2"])
def test_the_names_of_the_python_example_exist(name):
    import importlib

    module = importlib.import_module(f"omnir1_jax.models.{name}")
    used = re.findall(rf"{name}\.(\w+)\(", (ROOT / "README.md").read_text())
    assert used and all(callable(getattr(module, function)) for function in used)


@pytest.mark.parametrize("line", re.findall(r"^python -m omnir1_jax\.plan .*", (ROOT / "README.md").read_text(), re.M))
def test_plans_are_asked_for_with_flags_that_exist(line, monkeypatch):
    """They take minutes each; a config that is missing, or a flag, is told when they are read."""
    argv = shlex.split(line)[2:]
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", argv)
    with flagsaver.flagsaver():
        assert settings.parse(argv) == argv[:1]
