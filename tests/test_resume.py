"""The training command killed, stopped and started again: the same run, bit for bit. Its memory stays what it was."""

import contextlib
import json
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from tests.data import qwen_oracle
from tests.tiny import STEPS

ROOT = pathlib.Path(__file__).parent.parent
HOST_GROWTH, WARM = 8 << 20, 50  # bytes; steps before memory is expected to stand still


class Runs:
    """Runs of the command, forked from one process that has imported everything."""

    def __init__(self, tokenizer: str):
        self.tokenizer = tokenizer
        env = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}
        pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._server = subprocess.Popen([sys.executable, "-m", "tests.tiny"], cwd=ROOT, env=env, **pipes)

    def _ask(self, **order) -> int:
        print(json.dumps(order), file=self._server.stdin, flush=True)
        return int(self._server.stdout.readline())

    def start(self, workdir: pathlib.Path, *flags: str) -> int:
        flags = [f"--config=tests/tiny.py:{self.tokenizer}", f"--workdir={workdir}", *flags]
        return self._ask(flags=flags, log=f"{workdir}.log")

    def wait(self, run: int) -> int:
        return self._ask(wait=run)

    def close(self) -> None:
        self._server.stdin.close()
        self._server.wait()
        self._server.stdout.close()


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    with contextlib.closing(Runs(qwen_oracle.save_tokenizer(tmp_path_factory.mktemp("tokenizer")))) as made:
        yield made


@pytest.fixture(scope="module")
def whole(runs, tmp_path_factory) -> pathlib.Path:
    """The work directory of a run that nobody disturbed."""
    workdir = tmp_path_factory.mktemp("whole") / "run"
    assert runs.wait(runs.start(workdir)) == 0, printed(workdir)
    return workdir


def printed(workdir: pathlib.Path) -> str:
    return pathlib.Path(f"{workdir}.log").read_text()


def fresh(whole: pathlib.Path, workdir: pathlib.Path) -> pathlib.Path:
    """A work directory that has only the compiled programs of an earlier run."""
    shutil.copytree(whole / "cache", workdir / "cache")
    return workdir


def rows(workdir: pathlib.Path) -> list[dict]:
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def result(workdir: pathlib.Path):
    """All that a run leaves behind, but for times and memory: weights, last state by its checksums, every metric."""
    weights = {p.name: p.read_bytes() for p in (workdir / "weights").iterdir()}
    record = json.loads((workdir / f"checkpoints/{STEPS}/run/process_0.json").read_text())
    metrics = [
        {k: v for k, v in row.items() if k.split("/")[0] not in ("seconds", "time", "memory")} for row in rows(workdir)
    ]
    return weights, record, metrics


def until(condition, seconds: float = 120.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "the run does not get there"
        time.sleep(0.002)


def done(workdir: pathlib.Path) -> int:
    path = workdir / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def half_written(workdir: pathlib.Path) -> set[str]:
    return {p.name for p in (workdir / "checkpoints").glob("*-tmp")}


def kill(runs: Runs, workdir: pathlib.Path, moment: str, rng: random.Random) -> bool:
    """Starts the run and kills it: while it starts, between steps, or while a checkpoint is being written (True if
    one was left half-written)."""
    start, before = time.monotonic(), done(workdir)
    run = runs.start(workdir)
    if moment == "starting":
        time.sleep(rng.uniform(0.0, 2.0))
    else:
        more = rng.randint(1, 9)
        until(lambda: done(workdir) != before and done(workdir) >= min(before + more, STEPS - 1))
        if moment == "writing":
            left = half_written(workdir)
            until(lambda: half_written(workdir) - left)
            time.sleep(rng.uniform(0.0, 0.02))
        else:
            time.sleep(rng.uniform(0.0, 0.2))
    os.kill(run, signal.SIGKILL)
    assert runs.wait(run) == 128 + signal.SIGKILL, printed(workdir)
    print(
        f"{moment}: killed after {time.monotonic() - start:.2f} s, {before} -> {done(workdir)} steps",
        half_written(workdir),
    )
    return bool(half_written(workdir))


def test_killed_and_stopped_it_ends_the_same(runs, whole, tmp_path):
    workdir, rng = fresh(whole, tmp_path / "run"), random.Random(1)
    for moment in ("writing", "starting", "stepping"):
        kill(runs, workdir, moment, rng)
    run, before = runs.start(workdir), done(workdir)
    until(lambda: done(workdir) > before + 3)
    os.kill(run, signal.SIGTERM)
    assert runs.wait(run) == 0, printed(workdir)
    stopped = done(workdir)
    assert before < stopped < STEPS
    assert f"stopped after step {stopped}; the same command goes on from there" in printed(workdir)
    assert (workdir / "checkpoints" / str(stopped)).is_dir()  # not a multiple of checkpoint.every
    assert runs.wait(runs.start(workdir)) == 0, printed(workdir)
    assert result(workdir) == result(whole)


@pytest.mark.slow
def test_twenty_kills(runs, whole, tmp_path):
    workdir, rng = fresh(whole, tmp_path / "run"), random.Random(2)
    moments = ["starting"] * 5 + ["stepping"] * 5 + ["writing"] * 10
    rng.shuffle(moments)
    half = sum(kill(runs, workdir, moment, rng) for moment in moments)
    assert half >= 3
    assert runs.wait(runs.start(workdir)) == 0, printed(workdir)
    assert result(workdir) == result(whole)


def test_a_work_directory_of_another_config_is_refused(runs, whole):
    run = runs.start(whole, "--config.optimizer.learning_rate=0.5")
    assert runs.wait(run) == 2
    last = printed(whole).splitlines()[-1]
    assert last.startswith(
        f"error: {whole}/checkpoints/{STEPS}: was saved with optimizer.learning_rate = 0.01, this run has 0.5"
    )


def test_memory_stands_still_over_the_run(whole):
    measured = [(row["step"], row["memory/host"], row["memory/device"]) for row in rows(whole) if "memory/host" in row]
    steps, host, device = np.array([m for m in measured if m[0] > WARM]).T
    print(
        f"steps {steps[0]:g} to {steps[-1]:g}: host {host[0] / 2**20:.1f} to {host[-1] / 2**20:.1f} MiB, "
        f"device {set(device)} bytes"
    )
    assert steps[-1] == STEPS
    assert len(set(device)) == 1
    assert host[-1] - host[0] < HOST_GROWTH
