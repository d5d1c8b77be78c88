"""The wheel: what it holds is enough for the toy, away from any checkout; its programs are the commands."""

import os
import subprocess
import sys
import tomllib
import zipfile

import pytest

from omnir1_jax import errors, scripts
from tests.runs import ROOT
from tests.test_rooms import COMMANDS, tracked

LOOKS = """
import sys
from omnir1_jax.config import settings
from omnir1_jax.inference import from_checkpoint
settings.define()
sys.argv = ["train", "--config=configs/toy.py", "--config.steps=3"]
settings.parse(sys.argv)
from absl import flags
assert flags.FLAGS.config.steps == 3
print(from_checkpoint.config_of("toy").thinker.path)
import omnir1_jax.infer, omnir1_jax.train, omnir1_jax.evaluate
for heavy in ("tensorflow_datasets", "pycocotools", "librosa", "rouge_score"):
    assert heavy not in sys.modules, heavy
"""


def test_a_wheel_has_the_toy_and_the_configs(tmp_path):
    source, away = tmp_path / "source", tmp_path / "away"
    for path in tracked():
        if path.relative_to(ROOT).parts[0] in ("omnir1_jax", "configs") or path.parent == ROOT:
            copy = source / path.relative_to(ROOT)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(path.read_bytes())
    build = "from setuptools import build_meta; build_meta.build_wheel('.')"
    done = subprocess.run([sys.executable, "-c", build], cwd=source, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (wheel,) = source.glob("*.whl")
    with zipfile.ZipFile(wheel) as file:
        file.extractall(away / "site")
    assert (away / "site/omnir1_jax/py.typed").is_file()
    done = subprocess.run(
        [sys.executable, "-c", LOOKS], cwd=away, env=os.environ | {"PYTHONPATH": str(away / "site")},
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(away / "site/omnir1_jax/configs/toy_weights/thinker")


def test_every_command_is_a_program():
    programs = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    assert programs == {f"omnir1-{name}": f"omnir1_jax.scripts:{name}" for name in COMMANDS}


def test_a_program_runs_its_command(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["omnir1-convert", "nonsense"])
    with pytest.raises(SystemExit) as end:
        scripts.convert()
    assert end.value.code == errors.INVALID and "error: " in capsys.readouterr().err


def test_a_package_that_is_missing_is_named_with_its_extra():
    with pytest.raises(errors.InputError, match=r"no_such is not installed; pip install 'omnir1_jax\[eval\]'"):
        errors.optional("no_such.part", "eval")
