"""The training command killed, stopped and started again: the same run, bit for bit. Its memory stays what it was."""

import contextlib
import json
import os
import pathlib
import random
import signal
import time

import pytest

from tests.data import qwen_oracle
from tests.runs import Runs, done, printed, rows, until

STEPS = 40
FLAGS = (
    "--config.validate.every=10",
    "--config.validate.limit=2",
    "--config.validate.batch_size=2",
    "--config.loader.rest_after=1",
)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    tokenizer = qwen_oracle.save_tokenizer(tmp_path_factory.mktemp("tokenizer"))
    with contextlib.closing(Runs(tokenizer, tmp_path_factory.mktemp("cache"))) as made:
        yield made


@pytest.fixture(scope="module")
def whole(runs, tmp_path_factory) -> pathlib.Path:
    """The work directory of a run that nobody disturbed."""
    workdir = tmp_path_factory.mktemp("whole") / "run"
    finish(runs, workdir, STEPS)
    return workdir


def start(runs: Runs, workdir: pathlib.Path, steps: int) -> int:
    return runs.start(workdir, f"--config.steps={steps}", *FLAGS)


def finish(runs: Runs, workdir: pathlib.Path, steps: int, log: str = "") -> None:
    assert runs.wait(runs.start(workdir, f"--config.steps={steps}", *FLAGS, log=log)) == 0, log or printed(workdir)


def result(workdir: pathlib.Path, steps: int):
    """All that a run leaves behind, but for times and memory: weights, last state by its checksums, every metric."""
    # The mark has an id of each run's own.
    weights = {p.name: p.read_bytes() for p in (workdir / "weights").iterdir() if p.name != ".omnir1.json"}
    record = json.loads((workdir / f"checkpoints/{steps}/run/process_0.json").read_text())
    other = ("seconds", "time", "memory")
    metrics = [{k: v for k, v in row.items() if k.split("/")[0] not in other} for row in rows(workdir)]
    return weights, record, metrics


def kept(workdir: pathlib.Path) -> set[str]:
    return {p.name for p in (workdir / "checkpoints").iterdir() if p.name.isdecimal()}


def half_written(workdir: pathlib.Path) -> set[str]:
    return {p.name for p in (workdir / "checkpoints").glob("*-tmp")}


def kill(runs: Runs, workdir: pathlib.Path, steps: int, moment: str, rng: random.Random) -> bool:
    """Starts the run and kills it: while it starts, between steps, or while a checkpoint is being written.

    Returns whether one was left half-written.
    """
    begun, before, left = time.monotonic(), done(workdir), half_written(workdir)
    run = start(runs, workdir, steps)
    if moment == "starting":
        time.sleep(rng.uniform(0.0, 3.0))
    else:
        # The log is cut back to the checkpoint first, so that its length tells new steps.
        until(lambda: done(workdir) != before)
        more = done(workdir) + rng.randint(1, 5)
        until(lambda: done(workdir) >= more)
    if moment == "stepping":
        time.sleep(rng.uniform(0.0, 0.1))
    if moment == "writing":
        until(lambda: half_written(workdir) - left)
        time.sleep(rng.uniform(0.0, 0.02))
    os.kill(run, signal.SIGKILL)
    assert runs.wait(run) == 128 + signal.SIGKILL, printed(workdir)
    cut = half_written(workdir) - left
    print(f"{moment}: killed after {time.monotonic() - begun:.2f} s, {before} -> {done(workdir)} steps", *cut)
    return bool(cut)


def test_killed_and_stopped_it_ends_the_same(runs, whole, tmp_path):
    workdir, rng = tmp_path / "run", random.Random(1)
    for moment in ("writing", "starting", "stepping"):
        kill(runs, workdir, STEPS, moment, rng)
    before = done(workdir)
    run = start(runs, workdir, STEPS)
    until(lambda: done(workdir) > before + 3)
    os.kill(run, signal.SIGHUP)  # as SIGTERM: the terminal went away
    assert runs.wait(run) == 42, printed(workdir)
    stopped = done(workdir)
    assert before < stopped < STEPS
    assert f"stopped after step {stopped}; run the same command again to resume" in printed(workdir)
    assert (workdir / "checkpoints" / str(stopped)).is_dir()
    finish(runs, workdir, STEPS, log="/dev/full")
    found, wanted = result(workdir, STEPS), result(whole, STEPS)
    if not stopped % 10:  # a stop leaves the validation of its step out
        validated = wanted[2][stopped].pop("validate/qa/accuracy")
        assert 0 <= validated <= 100
    assert found == wanted and [row["step"] for row in rows(whole) if "validate/qa/accuracy" in row] == [
        0,
        10,
        20,
        30,
        40,
    ]
    assert kept(workdir) == kept(whole)
    assert not (workdir / "attempts.json").exists()
    assert len(list(runs.cache.glob("jit_train_step-*-cache"))) == 1  # none of them compiled it anew


def test_a_work_directory_of_another_config_is_refused(runs, whole):
    run = runs.start(whole, f"--config.steps={STEPS}", "--config.optimizer.learning_rate=0.5")
    assert runs.wait(run) == 2
    want = f"error: {whole}/checkpoints/{STEPS}: was saved with optimizer.learning_rate = 0.01, this run has 0.5"
    assert printed(whole).splitlines()[-1].startswith(want)


def test_a_disk_that_takes_no_more_ends_the_run_with_one_line(runs, whole, tmp_path):
    """A limit on the size of files stands for the disk: the first checkpoint meets it, in the background."""
    workdir = tmp_path / "run"
    assert runs.wait(runs.start(workdir, f"--config.steps={STEPS}", file_bytes=20000)) == 2, printed(workdir)
    steps = [line for line in printed(workdir).splitlines() if not line.startswith("step ")]
    assert len(steps) == 1, steps
    assert steps[0].startswith(f"error: {workdir}/checkpoints/5: file too large; raise the limit")
    assert steps[0].endswith("; there is no checkpoint yet")
    assert 5 <= done(workdir) < STEPS and len(rows(workdir)) == done(workdir)


def test_a_crash_that_comes_again_is_not_restarted(runs, whole, tmp_path):
    workdir = tmp_path / "run"
    run = lambda: runs.wait(runs.start(workdir, f"--config.steps={STEPS}", crash=7))
    assert run() == 42, printed(workdir)
    assert printed(workdir).splitlines()[-1].startswith("error: step 7 crashed (ZeroDivisionError: planted); run the")
    assert run() == 2, printed(workdir)
    assert printed(workdir).splitlines()[-1].startswith("error: step 7 crashed again, as a rerun would")
    assert printed(workdir).count("Traceback") == 1


@pytest.mark.slow
def test_twenty_kills(runs, tmp_path):
    steps, rng = 200, random.Random(2)
    finish(runs, tmp_path / "whole", steps)
    workdir = tmp_path / "run"
    moments = ["starting"] * 5 + ["stepping"] * 5 + ["writing"] * 10
    rng.shuffle(moments)
    cut = sum(kill(runs, workdir, steps, moment, rng) for moment in moments)
    print(f"{len(moments)} kills, {cut} of them in the middle of a checkpoint")
    assert cut >= 3
    finish(runs, workdir, steps)
    assert result(workdir, steps) == result(tmp_path / "whole", steps)
