"""A user's files in and around every folder that a command writes, through every way in which commands end.

Each command runs fresh, is killed, resumes, and is refused, with foreign files and folders planted before each: random
names, names that look like its own, links to a folder outside. Every byte of them has to be as it was.
"""

import contextlib
import os
import pathlib
import signal
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import cv2
import numpy as np
import pytest

from tests.commands import Commands
from tests.data import qwen_oracle
from tests.foreign import Foreign, free_but
from tests.inference import small
from tests.runs import until

SCRATCH = r".*\.omnir1\.(part|old)|.*\.orbax-checkpoint-tmp|.*\.part"  # of a killed command, its own by the name


class Entry(NamedTuple):
    """A command as the drill runs it.

    Attributes:
      flags: after those that name the target.
      target: gives the flags that do, of a path.
      taken: pattern of paths below the target where foreign things are in its way.
      in_the_way: paths below a target it wrote where the next start has to refuse something foreign.
      at_work: paths below the target, or beside it, of which one is there once it writes.
      resumes: whether it accepts a target that it wrote.
    """

    module: str
    flags: Sequence[str]
    target: Callable[[pathlib.Path], Sequence[str]]
    taken: str = ".*"
    in_the_way: Sequence[str] = ()
    at_work: str = "."
    resumes: bool = True


class World(NamedTuple):
    folder: pathlib.Path
    commands: Commands


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("drill")
    qwen_oracle.save_tokenizer(folder / "tokenizer")
    small.weights(folder)
    with contextlib.closing(Commands()) as commands:
        yield World(folder, commands)


def out(path: pathlib.Path) -> list[str]:
    return [f"--out={path}"]


def entry(name: str, folder: pathlib.Path) -> Entry:
    match name:
        case "train":
            return Entry(
                "omnir1_jax.train",
                [
                    f"--config=tests/tiny.py:{folder}/tokenizer",
                    *("--config.objective=sft", "--config.steps=8", "--config.checkpoint.every=2"),
                    "--config.log.tensorboard=true",
                ],
                lambda path: [f"--workdir={path}"],
                taken=r"attempts.json|config.json|(metrics|rollouts).jsonl|pictures/\d+|checkpoints/\d+|summary.json|"
                r"report.html|weights|pictures|tensorboard|checkpoints|cache",
                in_the_way=("weights/notes.txt", "checkpoints/7", "checkpoints/9.orbax-checkpoint-tmp", "pictures/30"),
                at_work="checkpoints/4",
            )
        case "import":
            flags = ["import", str(folder / "thinker")]
            return Entry("omnir1_jax.convert", flags, lambda path: [str(path)], resumes=False)
        case "export":
            flags = ["export", str(folder / "thinker")]
            return Entry("omnir1_jax.convert", flags, lambda path: [str(path)], resumes=False)
        case "synthetic":
            flags = ["--layout=revos", "--clips=2", "--frames=3", "--size=32,48"]
            return Entry("omnir1_jax.data.synthetic.__main__", flags, out, in_the_way=("notes.txt",))
        case "toy":
            return Entry(
                "tests.stub_toy",
                [],
                out,
                taken=r"toy.json|phases|before|runs|after|cache|summary.json|table.md|curves.png|report.html",
                in_the_way=("runs/all_0/weights", "after/all_0/plan/results.jsonl"),
                at_work="phases/before.json",
            )
        case "evaluate":
            config = f"--config=tests/inference/killed.py:{folder}"
            return Entry(
                "omnir1_jax.evaluate",
                [
                    config,
                    "--checkpoint=toy",
                    "--benchmark=synthetic",
                    "--limit=3",
                    "--batch_size=1",
                    "--system2=oracle",
                ],
                out,
                taken=r"run.json|results.jsonl?|predictions|pending.json|timing.json|report.html|cache|.*\.zip",
                at_work="results.jsonl",
            )
        case "infer":
            frames = folder / "frames"
            if not frames.exists():
                frames.mkdir()
                for t in range(4):
                    cv2.imwrite(str(frames / f"{t}.png"), np.full((32, 48, 3), 60 * t, np.uint8))
            config = f"--config=tests/inference/killed.py:{folder}"
            flags = [config, "--checkpoint=toy", f"--video={frames}", "--query=the ball"]
            return Entry("omnir1_jax.infer", flags, out, in_the_way=("notes.txt", "masks"))
        case "plan":
            flags = [f"--config=tests/tiny.py:{folder}/tokenizer", "--topology=v5e:1x1", "--stages=update"]
            return Entry("omnir1_jax.plan", flags, lambda path: [f"--json={path}"])
        case "bench":
            return Entry("omnir1_jax.bench", ["--quick", "--only=thinker"], lambda path: [f"--json={path}"])


QUICK = ("train", "import", "export", "synthetic", "toy")
SLOW = ("evaluate", "infer", "plan", "bench")


class Drill:
    """One command among foreign things."""

    def __init__(self, world: World, name: str, place: pathlib.Path, count: int):
        self.world, self.entry, self.place, self.count = world, entry(name, world.folder), place, count
        place.mkdir()
        self.foreign = Foreign(7, place / "outside")
        self.log, self.planted = place / "log", 0

    def start(self, target: pathlib.Path) -> int:
        flags = [*self.entry.flags, *self.entry.target(target)]
        return self.world.commands.start(self.log, self.entry.module, *flags)

    def run(self, target: pathlib.Path, *statuses: int) -> str:
        status = self.world.commands.wait(self.start(target))
        text = self.log.read_text(errors="replace")
        assert status in statuses, text
        self.foreign.check()
        return text

    def plant(self, target: pathlib.Path) -> None:
        """Around the target, and in it where the command may find foreign things."""
        around = free_but(rf"{target.name}|log|outside|{SCRATCH}")
        self.planted += self.foreign.plant(target.parent, self.count // 2, around)
        if target.is_dir():
            self.planted += self.foreign.plant(target, self.count, free_but(f"{self.entry.taken}|{SCRATCH}"))

    def refused(self, target: pathlib.Path) -> None:
        text = self.run(target, 2).rstrip().splitlines()
        assert text[-1].startswith("error: ") and "Traceback" not in "".join(text), text


def kill(drill: Drill, target: pathlib.Path, at_work: str) -> None:
    process = drill.start(target)
    until(lambda: (target / at_work).exists() or not alive(process), 300)
    time.sleep(drill.foreign.rng.uniform(0, 0.3))
    os.kill(process, signal.SIGKILL)
    drill.world.commands.wait(process)
    drill.foreign.check()


def alive(process: int) -> bool:
    """Whether a process, whose parent has not yet asked for its end, runs."""
    return pathlib.Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"


def drill_folder(drill: Drill, again: bool = True) -> None:
    target, foreign = drill.place / "target", drill.foreign
    drill.plant(target)
    kill(drill, target, drill.entry.at_work)
    drill.plant(target)
    if drill.entry.resumes or not target.exists():
        drill.run(target, 0)
    drill.plant(target)
    if not drill.entry.resumes:
        drill.refused(target)
    elif again:
        drill.run(target, 0, 2)  # 2: what was planted is in its way
    for name in drill.entry.in_the_way if drill.entry.resumes else ():
        path = target / name
        if not os.path.lexists(path):
            path.parent.mkdir(exist_ok=True)
            foreign.put(path, "file" if path.suffix else "folder")
        drill.refused(target)
        if path in foreign.states:
            foreign.take(path)
    for number, kind in enumerate(("file", "folder", "link")):
        path = drill.place / f"refused{number}"
        foreign.put(path, kind)
        drill.refused(path)


def drill_file(drill: Drill) -> None:
    """A command that writes a single file."""
    target = drill.place / "target.json"
    drill.plant(target)
    drill.run(target, 0)
    drill.plant(target)
    for number, kind in enumerate(("file", "folder", "link")):
        path = drill.place / f"refused{number}.json"
        foreign_put = drill.foreign.put
        foreign_put(path, kind)
        drill.refused(path)


@pytest.mark.parametrize("name", QUICK)
def test_every_foreign_byte_is_as_it_was(world, tmp_path, name):
    drill = Drill(world, name, tmp_path / "place", 30)
    drill_folder(drill, again=name != "train")
    assert drill.planted >= 40


@pytest.mark.slow
@pytest.mark.parametrize("name", QUICK + SLOW)
def test_the_whole_drill(world, tmp_path, name):
    drill = Drill(world, name, tmp_path / "place", 200)
    (drill_file if name in ("plan", "bench") else drill_folder)(drill)
    print(f"{name}: {len(drill.foreign.states)} foreign files, folders and links as they were")
