"""The training command as two processes that are one run: killed and resumed, it leaves what one process leaves."""

import contextlib
import json
import os
import pathlib
import shutil
import signal
import time
from typing import NamedTuple

import pytest

from tests.data import qwen_oracle, trees
from tests.runs import Runs, done, printed, rows, same, until
from tests.training.test_processes import free_port

FLAGS = (
    "--config.steps=6",
    "--config.data.qa.batch_size=2",
    "--config.checkpoint.every=2",
    "--config.optimizer.eps=1e-4",  # so that a gradient of nothing but rounding does not become a step
)

VALIDATE = ("--config.validate.every=2", "--config.validate.limit=3", "--config.validate.batch_size=2")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    tokenizer = qwen_oracle.save_tokenizer(tmp_path_factory.mktemp("tokenizer"))
    with contextlib.closing(Runs(tokenizer, tmp_path_factory.mktemp("cache"))) as made:
        yield made


class Other(NamedTuple):
    """What process 1 has of its own."""

    flags: tuple[str, ...] = ()
    workdir: pathlib.Path | None = None
    options: dict = {}  # of Runs.start
    first: dict = {}  # of Runs.start for process 0


def pair(runs: Runs, workdir: pathlib.Path, *flags: str, other: Other | None = None) -> list[int]:
    other = other or Other()
    port = free_port()
    joined = lambda rank: (f"--coordinator=localhost:{port}", "--processes=2", f"--process={rank}")
    log = lambda rank: f"{workdir}.{rank}.log"
    first = runs.start(workdir, *flags, *joined(0), log=log(0), **other.first)
    flags = (*flags, *other.flags, *joined(1))
    return [first, runs.start(other.workdir or workdir, *flags, log=log(1), **other.options)]


def said(workdir: pathlib.Path, rank: int) -> str:
    return pathlib.Path(f"{workdir}.{rank}.log").read_text()


@pytest.mark.parametrize("objective", ["sft", pytest.param("grpo", marks=pytest.mark.slow)])
def test_two_processes_are_one_run_killed_or_not(runs, tmp_path, objective):
    flags = (*FLAGS, *VALIDATE, f"--config.objective={objective}")
    alone, both, cut = (tmp_path / name for name in ("alone", "both", "cut"))
    assert runs.wait(runs.start(alone, *flags)) == 0, printed(alone)

    first, second = pair(runs, both, *flags)
    until(lambda: done(both) >= 3 and (both / "checkpoints/2").is_dir())
    os.kill(second, signal.SIGKILL)
    begun = time.monotonic()
    assert runs.wait(second) == 128 + signal.SIGKILL
    assert runs.wait(first) == 42, said(both, 0)
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
    scores = [row["validate/qa/accuracy"] for row in rows(alone) if "validate/qa/accuracy" in row]
    assert len(scores) == 4 and len({*scores}) > 1 and min(scores) > 0  # those of both runs are the same, as seen
    best = lambda run: json.loads((run / "summary.json").read_text())["best"]
    assert best(both) == best(alone)


def test_two_processes_complete_the_difficulty_list_of_one(runs, tmp_path):
    """What each prompt earns is the same, whoever samples it, and nothing is sampled again."""
    alone, both = tmp_path / "alone", tmp_path / "both"
    flags, how = ("--config.data.qa.batch_size=2",), {"command": "difficulty"}
    assert runs.wait(runs.start(alone, *flags, **how)) == 0, printed(alone)
    wanted = alone.read_text().splitlines()
    both.write_text("\n".join([*wanted[:3], wanted[3][:20]]))  # killed in its fourth line
    for rank, run in enumerate(pair(runs, both, *flags, other=Other(options=how, first=how))):
        assert runs.wait(run) == 0, said(both, rank)
    found, wanted = ([json.loads(line) for line in path.read_text().splitlines()] for path in (both, alone))
    assert len(wanted) >= 8 and found[:3] == wanted[:3] and max(line["spread"] for line in wanted) > 0.1
    for mine, other in zip(found, wanted, strict=True):
        assert {name: mine[name] for name in ("task", "sample_id", "batch", "of")} == {
            name: other[name] for name in ("task", "sample_id", "batch", "of")
        }
        assert mine["rewards"] == pytest.approx(other["rewards"], abs=1e-5)


def omnibench(folder: pathlib.Path, rows: int, first: int = 0) -> str:
    """A dataset of `rows` rows whose numbers begin with `first`."""
    trees.omnibench(folder)
    table = next((folder / "dataset").glob("*.jsonl"))
    read = [json.loads(row) for row in table.read_text().splitlines()][:rows]
    table.write_text("\n".join(json.dumps(row | {"index": first + n}) for n, row in enumerate(read)) + "\n")
    return str(folder)


def other_tokenizer(folder: pathlib.Path) -> str:
    path = pathlib.Path(qwen_oracle.save_tokenizer(folder)) / "tokenizer.json"
    path.write_text(path.read_text().replace('"truncation": null', '"truncation": {"direction": "Right", '
        '"max_length": 9, "strategy": "LongestFirst", "stride": 0}'))  # fmt: skip
    return str(folder)


DIFFERENCES = {
    "learning rate": lambda path: (
        Other(("--config.optimizer.learning_rate=0.02",)), "optimizer.learning_rate 0.01 -> 0.02"),
    "seed": lambda path: (Other(("--config.seed=1",)), "seed 0 -> 1"),
    "batch": lambda path: (Other(("--config.data.qa.batch_size=4",)), "data.qa.batch_size 2 -> 4"),
    "reward": lambda path: (Other(("--config.reward.preset=paper",)), 'reward.preset "authors" -> "paper"'),
    "steps": lambda path: (Other(("--config.steps=7",)), "steps 6 -> 7"),
    "count": lambda path: (
        Other(options={"omnibench": omnibench(path / "b", 2)}, first={"omnibench": omnibench(path / "a", 3)}),
        "data.qa.datasets.omnibench.count 3 -> 2"),
    "ids": lambda path: (
        Other(options={"omnibench": omnibench(path / "b", 3, 7)}, first={"omnibench": omnibench(path / "a", 3)}),
        "data.qa.datasets.omnibench.ids "),
    "version": lambda path: (Other(options={"version": "9.9"}), 'package.version "0.1.0" -> "9.9"'),
    "tokenizer": lambda path: (
        Other((f"--config.thinker.tokenizer={other_tokenizer(path / 'tokenizer')}",)), "tokenizer "),
    "workdir": lambda path: (Other(workdir=path / "elsewhere"), ""),
}  # fmt: skip
IN_CI = ("learning rate", "count")


@pytest.mark.parametrize("name", [pytest.param(n, marks=[] if n in IN_CI else pytest.mark.slow) for n in DIFFERENCES])
def test_a_difference_ends_both_with_one_line(runs, tmp_path, name):
    other, difference = DIFFERENCES[name](tmp_path)
    begun = time.monotonic()
    both = pair(runs, tmp_path / "run", *FLAGS, other=other)
    assert [runs.wait(run) for run in both] == [2, 2], said(tmp_path / "run", 0) + said(tmp_path / "run", 1)
    seconds = time.monotonic() - begun
    print(f"{name}: both ended after {seconds:.1f} s: {said(tmp_path / 'run', 0)}")
    assert seconds < 60
    want = f"error: process 1 of 2 differs from process 0: {difference}"
    if name == "workdir":
        want = "error: process 1 of 2 does not see what process 0 writes: --workdir "
    for rank in (0, 1):
        lines = said(tmp_path / "run", rank).splitlines()
        assert len(lines) == 1 and lines[0].startswith(want), lines


def test_what_one_process_lacks_ends_both(runs, tmp_path):
    other = Other((f"--config.thinker.tokenizer={tmp_path / 'nothing'}",))
    both = pair(runs, tmp_path / "run", *FLAGS, other=other)
    assert [runs.wait(run) for run in both] == [2, 2], said(tmp_path / "run", 0) + said(tmp_path / "run", 1)
    for rank in (0, 1):
        lines = said(tmp_path / "run", rank).splitlines()
        assert len(lines) == 1 and lines[0].startswith("error: process 1 of 2: thinker.tokenizer: "), lines
