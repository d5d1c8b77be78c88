"""launch/*.ipynb: the toy part runs end to end on the CPU, the rest asks for what there is."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

from omnir1_jax.config import shipped
from tests.launch import notebook
from tests.launch.machine import ROOT
from tests.runs import SMALL_TOY, environment


def run(tag: str, cwd, name="colab", **values) -> list[str]:
    """What the cells printed."""
    command = [sys.executable, "-m", "tests.launch.notebook", name, tag, json.dumps({"INSTALL": False, **values})]
    done = subprocess.run(command, cwd=cwd, env=environment(), capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout.splitlines()


def marked(lines: list[str], mark: str) -> list:
    return [json.loads(line.removeprefix(mark)) for line in lines if line.startswith(mark)]


@pytest.fixture
def checkout(tmp_path):
    """A folder that looks like the checkout, so that nothing is written there."""
    for name in ("setup.py", "configs"):
        (tmp_path / name).symlink_to(ROOT / name)
    return tmp_path


def test_the_toy_part_runs(checkout):
    said = run("toy", checkout, OUT="out", STEPS=1, TOY=SMALL_TOY)
    assert json.loads((checkout / "out/toy_1/summary.json").read_text())["steps"] == 1
    assert any(line.startswith("step 1/1") for line in said)
    shown = marked(said, ">>> ")
    kinds = [kind for kind, _ in shown]
    assert kinds[:2] == ["image", "html"] and kinds[2] == "image"
    pictures = [of["path"] for kind, of in shown if kind == "image"]
    assert pictures[0].startswith("out/toy_1/pictures/1/") and pictures[1] == "out/toy_answer/contact_sheet.png"
    assert all(of["bytes"] > 1000 for _, of in shown)
    assert shown[1][1]["text"].startswith('<iframe srcdoc="&lt;!')


def test_toy_and_setup_are_the_same_on_kaggle():
    for tag in ("setup", "toy"):
        assert notebook.cells("kaggle", tag) == notebook.cells("colab", tag)


@pytest.mark.parametrize(
    ("name", "values", "config"),
    [
        ("colab", {}, "colab"),
        ("colab", {"MODEL": "7B"}, "colab_7b"),
        ("kaggle", {"SCRATCH": "scratch"}, "kaggle"),
    ],
)
def test_the_rest_asks_for_what_there_is(checkout, name, values, config):
    (checkout / "data/ReVOS/JPEGImages/a/clip").mkdir(parents=True)
    videos = {"videos": {"a/clip": {"expressions": {"0": {"exp": "the one that jumps"}}}}}
    (checkout / "data/ReVOS/meta_expressions_valid_.json").write_text(json.dumps(videos))
    said = run("real", checkout, name, **values)
    downloads = [of for kind, of in marked(said, ">>> ") if kind == "download"]
    wanted = shipped.config(config, "this test")
    assert [of["local_dir"] for of in downloads] == [wanted.thinker.path, wanted.sam2.path]
    commands = marked(said, "$$$ ")
    assert [command[0] for command in commands] == ["plan", "train", "convert", "infer"]
    assert all(f"--config=configs/{config}.py" in command for command in commands[:2])
    assert "--video=data/ReVOS/JPEGImages/a/clip" in commands[-1] and "--query=the one that jumps" in commands[-1]


def test_without_the_dataset_the_synthetic_world_stands_in(checkout, monkeypatch):
    monkeypatch.chdir(checkout)
    made = []
    names = {"python": lambda *command: made.append(command), "pathlib": pathlib, "WEIGHTS": {}, "REVOS": ""}
    exec(notebook.cells("colab", "real")[1], names)
    assert made == [("data.synthetic", "--out=data/ReVOS", "--layout=revos", "--clips=40")]


def test_it_clones_and_installs(tmp_path):
    (tmp_path / "origin").mkdir()
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b", "-C", tmp_path / "origin"]
    (tmp_path / "origin/setup.py").write_text("")
    for command in (["init", "-q"], ["add", "."], ["commit", "-qm", "all"]):
        subprocess.run([*git, *command], check=True)
    fake = tmp_path / "python"
    fake.write_text('#!/bin/sh\necho "$PWD $*" >>"$0.log"\n')
    fake.chmod(0o755)
    (tmp_path / "content").mkdir()
    values = {"REPOSITORY": str(tmp_path / "origin"), "INSTALL": True}
    code = (
        "import sys; from tests.launch import notebook as n; n.sys.executable = sys.argv.pop(); "
        "n.main('colab', *sys.argv[1:])"
    )
    for _ in range(2):  # again is no second clone
        subprocess.run(
            [sys.executable, "-c", code, "none", json.dumps(values), str(fake)],
            cwd=tmp_path / "content", env=os.environ | {"PYTHONPATH": str(ROOT)}, check=True,
        )  # fmt: skip
    installed = (tmp_path / "python.log").read_text().splitlines()
    wanted = "-m pip install -q -e .[tpu,train,eval] -c launch/constraints.txt"
    assert installed == [f"{tmp_path}/content/omnir1_jax {wanted}"] * 2


@pytest.mark.parametrize("name", ["colab", "kaggle"])
def test_it_is_a_clean_notebook(name):
    book = notebook.read(name)
    assert (book["nbformat"], book["nbformat_minor"]) == (4, 5)
    ids = [cell["id"] for cell in book["cells"]]
    assert len(set(ids)) == len(ids)
    for cell in book["cells"]:
        assert cell["cell_type"] == "markdown" or (cell["outputs"] == [] and cell["execution_count"] is None)
