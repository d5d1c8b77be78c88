"""A work directory of older code (tests/old_run/README.md) resumes, evaluates and reports today."""

import json
import pathlib
import shutil

import numpy as np
import pytest

from omnir1_jax.config import settings
from omnir1_jax.reporting.train_report import write_report
from tests.runs import ROOT, rows

OLD = ROOT / "tests/old_run/run"
RESUMED = ROOT / "tests/old_run/resumed.jsonl"  # steps 4 to 6; tokens are drawn in another order than then
IDLE = ("seconds", "time", "data")


@pytest.fixture
def old(tmp_path):
    """A copy of the run after its third step."""
    run = pathlib.Path(shutil.copytree(OLD, tmp_path / "run"))
    shutil.rmtree(run / "checkpoints/6")
    return run


@pytest.fixture
def train(commands):
    """The command as it was run when the old run was made."""
    return lambda run, *flags: commands.run(
        "omnir1_jax.train", "--config=tests/old_run/resume.py", f"--workdir={run}", *flags
    )


def numbers(row: dict) -> dict[str, float]:
    """A step's metrics without times, under the names of its first version."""
    task = f"/{row.get('task')}/"
    numbers = {name.replace(task, "/"): value for name, value in row.items() if name != "task"}
    return {name: value for name, value in numbers.items() if name.split("/")[0] not in IDLE}


def close(found: list[dict], wanted: list[dict]) -> None:
    for a, b in zip(map(numbers, found), map(numbers, wanted), strict=True):
        assert {"learn/loss", "reward/total", "learn/grad_norm"} <= a.keys() & b.keys()
        for name in a.keys() & b.keys():
            np.testing.assert_allclose(a[name], b[name], rtol=2e-4, atol=2e-4, err_msg=name)


def wanted() -> list[dict]:
    """The old run's first three steps, and the others as they are after it has resumed."""
    return rows(OLD)[:3] + [json.loads(line) for line in RESUMED.read_text().splitlines()]


def test_it_resumes(train, old):
    """Step 4, of `qa`; the slow test has those of the other tasks, whose programs are larger."""
    train(old, "--config.steps=4")
    close(rows(old), wanted()[:4])
    assert rows(old)[-1]["learn/grad_norm"] > 0.1
    assert json.loads((old / "config.json").read_text())["version"] == settings.VERSION
    assert (old / "report.html").exists()


def test_it_evaluates(commands, old, tmp_path):
    flags = ("--benchmark=synthetic", "--tasks=refavs", "--limit=1", "--batch_size=1", f"--out={tmp_path / 'out'}")
    commands.run("omnir1_jax.evaluate", f"--checkpoint={old}", *flags)
    assert len((tmp_path / "out/results.jsonl").read_text().splitlines()) == 1


def test_its_metrics_without_tasks_are_reported(old):
    page = write_report(old).read_text()
    assert "reward/total" in page and "reward/segmentation" in page


@pytest.mark.slow
def test_it_ends_as_where_it_is_interrupted_again(train, old, tmp_path):
    again = pathlib.Path(shutil.copytree(old, tmp_path / "again"))
    train(old)
    train(again, "--config.steps=5")
    train(again, "--config.steps=6")
    close(rows(old), wanted())
    close(rows(again), wanted())
