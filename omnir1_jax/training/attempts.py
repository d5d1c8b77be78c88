"""Starts of a run that made no progress: a failure repeated at the same step is not a preemption.

`attempts.json` in the work directory counts the starts from a checkpoint and records the step of a crash:

    {"start": "6f0c...", "checkpoint": 50, "starts": 2, "crash": {"start": "a31b...", "step": 57}}
"""

import contextlib
import json
import traceback
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from etils import epath

from omnir1_jax import cli, errors
from omnir1_jax.errors import InputError, Interrupted
from omnir1_jax.files import json_file
from omnir1_jax.parallel import agree
from omnir1_jax.training import checkpoint_steps, checkpointing

FILE = "attempts.json"
# Starts from one checkpoint that ended without a message (kill -9, a lost host); preemptions are seldom so frequent.
STARTS = 20


@dataclass
class Progress:
    """The step that is being computed, counted from 1; 0 before the first."""

    step: int = 0


@contextlib.contextmanager
def attempt(folder: epath.Path, peers: agree.Peers | None) -> Iterator[Progress]:
    """One start of the run in `folder`. Called by every process; the first one counts it.

    Raises:
      InputError: too many starts made no progress; the same step crashed before; the disk is full or read-only.
      Interrupted: the first crash at this step. Its traceback is printed.
    """
    if peers is None or peers.index == 0:
        _count(folder)
    agree.one_folder(peers, f"--workdir {folder}", lambda: read(folder).get("start"), seconds=300.0)
    progress = Progress()
    try:
        yield progress
    except (Exception, KeyboardInterrupt) as error:
        if peers is not None and agree.is_lost(error):
            raise
        if failure := errors.storage_failure(error):
            _reset(folder)
            newest = _newest(folder)
            failure.filename = failure.filename or str(folder)
            last = f"the newest complete checkpoint is of step {newest}" if newest else "there is no checkpoint yet"
            raise InputError(f"{errors.describe(failure)}; {last}") from error
        if errors.ending(error) is not None:
            _reset(folder)
            raise
        _crashed(folder, progress.step, error)
    (folder / FILE).unlink(missing_ok=True)


def read(folder: epath.Path) -> dict[str, Any]:
    """The record; empty if there is none."""
    path = folder / FILE
    return json_file.read_object(path) if path.exists() else {}


def _newest(folder: epath.Path) -> int:
    return max(checkpoint_steps.finished(folder / checkpointing.FOLDER), default=0)


def _count(folder: epath.Path) -> None:
    previous, checkpoint = read(folder), _newest(folder)
    same_checkpoint = previous.get("checkpoint") == checkpoint and isinstance(previous.get("starts"), int)
    starts = previous["starts"] + 1 if same_checkpoint else 1
    if starts > STARTS:
        (folder / FILE).unlink()
        raise InputError(
            f"{folder}: {STARTS} starts in a row came to no checkpoint after step {checkpoint} and ended without a "
            "message; see what ends them (memory, a time limit), or save more often with --config.checkpoint.every; "
            "the same command tries again"
        )
    record = {"start": uuid.uuid4().hex, "checkpoint": checkpoint, "starts": starts, "crash": previous.get("crash")}
    _write(folder, record)


def _reset(folder: epath.Path) -> None:
    """Resets the count: this start ended with a message."""
    with contextlib.suppress(OSError):  # a full disk cannot be written to; the start then counts
        record = read(folder)
        if record.get("crash"):
            _write(folder, record | {"starts": 0})
        else:
            (folder / FILE).unlink(missing_ok=True)


def _crashed(folder: epath.Path, step: int, error: BaseException) -> None:
    traceback.print_exception(error)
    location = f"step {step}" if step else "the start"
    text = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
    record = read(folder)
    crash = record.get("crash")
    # Another process of this start may have crashed just before.
    if isinstance(crash, dict) and crash.get("step") == step and crash.get("start") != record.get("start"):
        (folder / FILE).unlink(missing_ok=True)
        raise InputError(f"{location} crashed again, as a rerun would ({text}); the lines above say where") from error
    _write(folder, record | {"starts": 0, "crash": {"start": record.get("start"), "step": step}})
    raise Interrupted(
        f"{location} crashed ({text}); run the same command again to resume; a second crash there ends the run"
    ) from error


def _write(folder: epath.Path, record: dict[str, Any]) -> None:
    with cli.atomic_path(folder / FILE) as scratch:
        scratch.write_text(json.dumps(record) + "\n")
