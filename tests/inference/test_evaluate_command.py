"""The command with real models of random weights: killed and taken up again, bad flags."""

import json
import subprocess
import sys

import pytest

from omnir1_jax.data.synthetic import writers
from omnir1_jax.data.synthetic.world import PRESETS
from tests.inference import small
from tests.runs import ROOT, environment


@pytest.fixture(scope="module")
def command(tmp_path_factory):
    """A function that runs the command with flags: (exit status, what it printed)."""
    folder = tmp_path_factory.mktemp("command")
    small.config(folder)
    writers.mevis(folder / "mevis", PRESETS["toy"], 10, 0)
    server = subprocess.Popen(
        [sys.executable, "-m", "tests.inference.killed"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env=environment(), cwd=ROOT,
    )  # fmt: skip

    def ask(out, *flags, after=None):
        config = f"--config={ROOT}/tests/inference/killed.py:{folder}"
        log = folder / "log"
        order = {"flags": [config, f"--out={out}", *flags], "after": after, "log": str(log)}
        server.stdin.write(json.dumps(order) + "\n")
        server.stdin.flush()
        return int(server.stdout.readline()), log.read_text()

    ask.folder = folder
    yield ask
    server.stdin.close()
    server.wait()


def files(folder):
    """Contents of all files but the mark, which has an id of its own."""
    found = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != ".omnir1.json"]
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}


def test_killed_and_taken_up_again_gives_the_same_files(command, tmp_path):
    root = f"--root={command.folder}/mevis"
    flags = ["--checkpoint=toy", "--benchmark=mevis", root, "--system2=oracle", "--keyframes=uniform"]
    flags += ["--batch_size=3", "--limit=10", "--objects=2"]
    status, said = command(tmp_path / "whole", *flags)
    assert status == 0, said
    assert "J&F" in said and "unreadable" in said
    status, _ = command(tmp_path / "killed", *flags, after=5)
    assert status == -9
    assert len((tmp_path / "killed" / "results.jsonl").read_text().splitlines()) == 5
    assert not (tmp_path / "killed" / "results.json").exists()
    status, said = command(tmp_path / "killed", *flags)
    assert status == 0, said
    assert json.loads((tmp_path / "killed" / "timing.json").read_text())["items"] == 5

    whole, killed = files(tmp_path / "whole"), files(tmp_path / "killed")
    del whole["timing.json"], killed["timing.json"]
    assert whole.keys() == killed.keys() and len([name for name in whole if name.endswith(".png")]) == 80
    assert [name for name in whole if whole[name] != killed[name]] == []
    assert json.loads(whole["results.json"])["table"]["J&F"] > 0
    masks = [name for name in whole if name.endswith(".png")]
    assert len({whole[name] for name in masks}) > 10  # the segmenter had something to say

    status, said = command(tmp_path / "whole", *flags, "--seed=1")
    assert status == 2 and "--seed 0, this one has 1" in said and len(said.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["--benchmark=mevis"], "--checkpoint"),
        (["--checkpoint=nowhere", "--benchmark=mevis"], "--checkpoint: nowhere"),
        (["--checkpoint=toy", "--benchmark=mevis", "--root=nowhere"], "nowhere"),
        (["--checkpoint=toy", "--benchmark=coco"], "--benchmark"),
        (["--checkpoint=toy", "--benchmark=synthetic", "--keyframes=worst"], "--keyframes"),
    ],
)
def test_bad_flags_are_one_line(command, tmp_path, flags, named):
    status, said = command(tmp_path / "out", *flags)
    assert status == 2 and named in said and len(said.strip().splitlines()) == 1, said
    assert not list(tmp_path.rglob("*.json"))
