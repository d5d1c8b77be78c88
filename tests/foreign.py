"""Files and folders of a user, planted in and around the folders that commands write, and found as they were."""

import os
import pathlib
import random
import re
from collections.abc import Callable

# Names that look like those of commands, of orbax, and of their temporary files.
LOOKALIKES = (
    *("10", "10.backup", "10.orbax-checkpoint-tmp.kept", ".x.part", ".weights.1234.abcd1234.part", "..omnir1.part"),
    *(".weights.omnir1.part.kept", ".omnir1.json.backup", "weights", "weights.old", "pictures", "checkpoints", "cache"),
    *("config.json", "report.html", "summary.json", "metrics.jsonl.1", "results.jsonl", "predictions", "plan.json"),
    *("answer.json", "model.safetensors", "_METADATA", "manifest.ocdbt", "tensorboard", "run.json", "phases", "0"),
    *("00_clip.png", "masks", "overlay.mp4", "a b[1]*", "ünï", "-rf", "d"),
)


class Foreign:
    """What was planted, by path."""

    def __init__(self, seed: int, outside: pathlib.Path):
        """`outside` gets files that links lead to."""
        self.rng, self.outside, self.states = random.Random(seed), outside, {}
        outside.mkdir(parents=True)
        for name in LOOKALIKES[:12]:
            self.put(outside / name, "folder" if self.rng.random() < 0.3 else "file")

    def put(self, path: pathlib.Path, kind: str) -> None:
        """A file, a folder with a file in it, an empty folder, or a link to the folder outside."""
        if kind == "link":
            path.symlink_to(self.outside)
        elif kind == "file":
            path.write_bytes(self.rng.randbytes(40))
        else:
            path.mkdir()
        self.states[path] = state(path)
        if kind == "folder":
            self.put(path / f"{self.rng.getrandbits(32):08x}.txt", "file")

    def plant(self, root: pathlib.Path, count: int, free: Callable[[str], bool] = lambda name: True) -> int:
        """`count` things in `root` and in all folders below it, where `free(path below root)` holds."""
        own = lambda path: path not in self.states and not path.is_symlink()
        places = [root, *(path for path in sorted(root.rglob("*")) if path.is_dir() and own(path))]
        planted = 0
        for attempt in range(20 * count):
            place = places[attempt % len(places)] if attempt < 2 * len(places) else self.rng.choice(places)
            name = self.rng.choice(LOOKALIKES) if self.rng.random() < 0.6 else f"{self.rng.getrandbits(40):010x}"
            path = place / name
            if os.path.lexists(path) or not free(str(path.relative_to(root))):
                continue
            self.put(path, self.rng.choice(("file", "file", "folder", "empty", "link")))
            planted += 1
            if planted == count:
                break
        return planted

    def take(self, path: pathlib.Path) -> None:
        """Takes away what was planted at `path`."""
        for below in sorted((p for p in self.states if p == path or path in p.parents), reverse=True):
            below.rmdir() if below.is_dir() and not below.is_symlink() else below.unlink()
            del self.states[below]

    def check(self) -> None:
        lost = [str(path) for path, before in self.states.items() if state(path) != before]
        assert not lost, f"{len(lost)} of {len(self.states)} are not as they were: {lost[:5]}"


def state(path: pathlib.Path) -> tuple[str, bytes]:
    if path.is_symlink():
        return "link", os.readlink(path).encode()
    if not path.exists():
        return "missing", b""
    return ("folder", b"") if path.is_dir() else ("file", path.read_bytes())


def free_but(pattern: str) -> Callable[[str], bool]:
    """`free` of `Foreign.plant`: paths of which no part of the way down matches."""
    taken = re.compile(pattern)
    return lambda path: not any(taken.fullmatch(path[: m.start()]) for m in re.finditer(r"/|$", path))
