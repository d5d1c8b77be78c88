"""The folders of a run's checkpoints: which of them the run wrote and may remove.

The mark of `checkpoints/` lists every step before it is written; a finished step has a mark of its own that lists its
files. Other entries (`10.backup`, a copied `30`) are the user's: they are neither restored nor removed, and refused
where orbax would take them for a step or for its own temporary folder.
"""

import re
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import jax
import orbax.checkpoint as ocp
from absl import logging
from etils import epath
from jax.experimental import multihost_utils

from omnir1_jax.errors import InputError
from omnir1_jax.files import folders, json_file, orbax_files

KIND, FLAG = "checkpoints", "--workdir"
RECORD = "process_{}.json"
_TMP = ".orbax-checkpoint-tmp"
_STEP = re.compile(r"0|[1-9][0-9]*")
# All that orbax and this package write into a step; a listing made late leaves out what a user added.
_CONTENT = ("trainable", "rest", "run", "_CHECKPOINT_METADATA", "commit_success.txt", "descriptor")


class Score(NamedTuple):
    """The result of a validation.

    Attributes:
      of: identity of the validation; scores of different validations are not compared.
      value: larger is better; NaN if nothing could be scored.
    """

    of: str
    value: float


class Manager(ocp.CheckpointManager):
    """Orbax's manager, restricted to this run's steps.

    Called by every process; the first one changes the folder.
    """

    def __init__(self, folder: epath.Path, keep: int, **options: Any):
        """Opens the folder; what a killed run left half-written is named in a warning and removed.

        Args:
          keep: number of newest readable checkpoints that stay; the best validated one stays too.
          options: options of orbax's manager.

        Raises:
          InputError: something foreign is in the way of a step.
        """
        self._keep, self._good, self._stay = keep, set(), set()
        if jax.process_index() == 0:
            check(folder)
            folders.claim(folder, KIND, FLAG, adopt=adopt)
            _remove_unfinished(folder)
        _barrier("checkpoints are looked through")
        self._listed = _listed(folder)
        super().__init__(folder, options=ocp.CheckpointManagerOptions(max_to_keep=None), **options)
        if jax.process_index() == 0:
            for step in self.all_steps():
                _list_files(folder, step)
                if not _unreadable(folder / str(step)):
                    self._good.add(step)

    def all_steps(self, read: bool = False) -> Sequence[int]:
        return sorted(step for step in super().all_steps(read) if step in self._listed)

    def begin(self, step: int) -> None:
        """Lists a step that is about to be written."""
        if jax.process_index() == 0:
            folders.begin(self.directory, str(step), FLAG)
        self._listed.add(step)

    def settle(self) -> None:
        """Once a step is written: reads its index back, lists its files, and removes the oldest steps.

        Raises:
          OSError: the index cannot be read back.
        """
        if jax.process_index():
            return
        for step in self.all_steps():
            if step in self._good or _mark(self.directory / str(step)) is not None:
                continue
            _list_files(self.directory, step)
            if error := _unreadable(self.directory / str(step)):
                raise error
            self._good.add(step)
        kept = {*self._stay, best(self.directory, sorted(self._good))}
        for step in self.all_steps():
            if step not in kept and len([good for good in self._good if good > step]) >= self._keep:
                self._remove(step)
        self.reload()

    def delete(self, step: int) -> None:
        """Removes a step of this run, which will be written again. InputError: the user put something in it."""
        path = self.directory / str(step)
        if foreign := folders.foreign(path):
            raise InputError(
                f"{FLAG}: {path} cannot be read and holds {folders.some(foreign)}, not written by this run; move that "
                "elsewhere"
            )
        if jax.process_index() == 0:
            self._remove(step)
        _barrier(f"checkpoint {step} is removed")
        self._listed = _listed(self.directory)
        self.reload()

    def _remove(self, step: int) -> None:
        path = self.directory / str(step)
        if foreign := folders.remove(path):
            self._stay.add(step)
            logging.warning("%s: stays, since it holds %s, not written by this run", path, folders.some(foreign))
            return
        folders.forget(self.directory, str(step), FLAG)
        self._good.discard(step)
        self._listed.discard(step)


def finished(folder: epath.Path) -> list[int]:
    """Completely written steps; in a folder with a mark, those of its run only."""
    if not folder.is_dir():
        return []
    names = [entry.name for entry in folder.iterdir() if _STEP.fullmatch(entry.name)]
    steps = {int(name) for name in names if ocp.utils.is_checkpoint_finalized(folder / name)}
    return sorted(steps & _listed(folder) if folders.read(folder) else steps)


def score(folder: epath.Path, step: int) -> Score | None:
    """The validation score of a checkpoint; None if it was not validated, or its record cannot be read."""
    try:
        validation = json_file.read(folder / str(step) / "run" / RECORD.format(0))["validation"]
        return Score(str(validation["of"]), float(validation["value"]))
    except (OSError, ValueError, KeyError, TypeError, InputError):
        return None


def best(folder: epath.Path, steps: Iterable[int]) -> int | None:
    """The step with the largest score, the first of equal ones, among those with the newest one's validation."""
    scores = {step: found for step in sorted(steps) if (found := score(folder, step)) and found.value == found.value}
    comparable = [step for step in scores if scores[step].of == scores[max(scores)].of]
    return max(comparable, key=lambda step: scores[step].value, default=None)


def check(folder: epath.PathLike) -> None:
    """InputError if `checkpoints/` holds something of the user's that orbax would take for a step, or remove."""
    folder = epath.Path(folder)
    mark = folders.check(folder, KIND, FLAG, adopt=adopt)
    if not folder.exists():
        return
    listed = _listed(folder) if mark else {int(name) for name in adopt(folder)}
    for entry in sorted(folder.iterdir()):
        name = entry.name.removesuffix(_TMP)
        if _STEP.fullmatch(name) and (int(name) not in listed or folders.is_link(entry)):
            raise InputError(f"{FLAG}: {entry} was not written by this run; move it elsewhere")


def adopt(folder: epath.Path) -> list[str]:
    """Steps in a folder of an older version, which kept no list: those with a file that every run writes."""
    steps = []
    for entry in folder.iterdir():
        name = entry.name.removesuffix(_TMP)
        content = "_CHECKPOINT_METADATA" if name != entry.name else f"run/{RECORD.format(0)}"
        if _STEP.fullmatch(name) and not folders.is_link(entry) and (entry / content).exists():
            steps.append(name)
    return sorted(set(steps))


def _listed(folder: epath.Path) -> set[int]:
    """Steps of the run: those its mark lists, and copies of them that the user put back."""
    mark = folders.read(folder)
    steps = {int(name) for name in mark.names if _STEP.fullmatch(name)}
    for entry in folder.iterdir():
        if _STEP.fullmatch(entry.name) and entry.is_dir() and not folders.is_link(entry):
            step_mark = _mark(entry)
            if step_mark is not None and (step_mark.kind, step_mark.id) == (_kind(entry.name), mark.id):
                steps.add(int(entry.name))
    return steps


def _kind(step: int | str) -> str:
    return f"checkpoint {step}"


def _remove_unfinished(folder: epath.Path) -> None:
    """Removes what a killed run left of its steps: temporary folders and, on gs://, steps without orbax's last file."""
    finished_steps = finished(folder)
    for step in sorted(_listed(folder)):
        path, scratch = folder / str(step), folder / f"{step}{_TMP}"
        if scratch.exists():
            logging.warning("%s: truncated while it was written; removed", scratch)
            scratch.rmtree()
        if path.exists() and step not in finished_steps:
            _list_files(folder, step)
            if foreign := folders.remove(path):
                raise InputError(
                    f"{FLAG}: {path} holds {folders.some(foreign)}, not written by this run; move it elsewhere"
                )
            logging.warning("%s: truncated while it was written; removed", path)


def _list_files(folder: epath.Path, step: int) -> None:
    path = folder / str(step)
    if _mark(path) is None:
        names = [name for name in folders.entries(path) if name.rstrip("/").split("/")[0] in _CONTENT]
        folders.write(path, folders.Mark(_kind(step), folders.read(folder).id, tuple(sorted(names))))


def _mark(step: epath.Path) -> folders.Mark | None:
    """The mark of a step; a damaged one is written anew, since the parent's mark lists the step as well."""
    try:
        return folders.read(step)
    except InputError:
        return None


def _unreadable(path: epath.Path) -> OSError | None:
    """Why the index of a step cannot be read; None if it lists all of the step's arrays."""
    try:
        record = json_file.read(path / "run" / RECORD.format(0))
        names = [name.split("/", 1) for name in record["checksums"]]
        for item in sorted({item for item, _ in names}):
            arrays = [name.replace("/", ".") for other, name in names if other == item]
            orbax_files.check_written(path / item, arrays)
    except OSError as error:
        return error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        return OSError(f"{path}: its record cannot be read ({error})")
    return None


def _barrier(name: str) -> None:
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)
