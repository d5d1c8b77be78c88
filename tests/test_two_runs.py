"""The training command as two processes that are one run: killed and resumed, it leaves what one process leaves."""

import contextlib
import os
import pathlib
import shutil
import signal
import time

import pytest

from tests.data import qwen_oracle
from tests.runs import Runs, done, printed, same, until
from tests.test_processes import free_port

FLAGS = (
    "--config.steps=6",
    "--config.data.qa.batch_size=2",
    "--config.checkpoint.every=2",
    "--config.optimizer.eps=1e-4",  # so that a gradient of nothing but rounding does not become a step
)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    tokenizer = qwen_oracle.save_tokenizer(tmp_path_factory.mktemp("tokenizer"))
    with contextlib.closing(Runs(tokenizer, tmp_path_factory.mktemp("cache"))) as made:
        yield made


def pair(runs: Runs, workdir: pathlib.Path, *flags: str) -> list[int]:
    port = free_port()
    joined = lambda rank: (f"--coordinator=localhost:{port}", "--processes=2", f"--process={rank}")
    return [runs.start(workdir, *flags, *joined(rank), log=f"{workdir}.{rank}.log") for rank in (0, 1)]


def said(workdir: pathlib.Path, rank: int) -> str:
    return pathlib.Path(f"{workdir}.{rank}.log").read_text()


@pytest.mark.parametrize("objective", ["sft", pytest.param("grpo", marks=pytest.mark.slow)])
def test_two_processes_are_one_run_killed_or_not(runs, tmp_path, objective):
    flags = (*FLAGS, f"--config.objective={objective}")
    alone, both, cut = (tmp_path / name for name in ("alone", "both", "cut"))
    assert runs.wait(runs.start(alone, *flags)) == 0, printed(alone)

    first, second = pair(runs, both, *flags)
    until(lambda: done(both) >= 3 and (both / "checkpoints/2").is_dir())
    os.kill(second, signal.SIGKILL)
    begun = time.monotonic()
    assert runs.wait(second) == 128 + signal.SIGKILL
    assert runs.wait(first) not in (0, 2), said(both, 0)
    seconds = time.monotonic() - begun
    print(f"the other ended after {seconds:.1f} s: {said(both, 0).splitlines()[-1]}")
    assert seconds < 60
    assert said(both, 0).splitlines()[-1].startswith("error: process 0 of 2: ")
    assert done(both) < 6
    shutil.copytree(both, cut)

    for rank, run in enumerate(pair(runs, both, *flags)):
        assert runs.wait(run) == 0, said(both, rank)
    same(both, alone)
    # A single process goes on from the same checkpoint as well.
    assert runs.wait(runs.start(cut, *flags)) == 0, printed(cut)
    same(cut, alone)
