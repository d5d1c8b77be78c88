"""A run's log in its work directory: metrics of every step, rollouts, pictures, a line on the terminal."""

import collections
import math
import os
import pathlib
import re
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent import futures
from types import MappingProxyType
from typing import Any

import numpy as np
from etils import epath
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary
from tqdm import tqdm

from omnir1_jax.errors import InputError
from omnir1_jax.files import folders
from omnir1_jax.reporting import lines, names, pictures
from omnir1_jax.reporting.example import Example, finite, line
from omnir1_jax.reporting.parts import Parts
from omnir1_jax.reporting.trackers import Tracker
from omnir1_jax.tasks.description import Number

METRICS, ROLLOUTS, PICTURES, TENSORBOARD = "metrics.jsonl", "rollouts.jsonl", "pictures", "tensorboard"
ROLLOUT_PARTS = "rollouts_parts"  # on gs:// while a run is under way
FLAG = "--workdir"
UPLOAD_SECONDS, EVENT_SECONDS = 300, 10
HEADLINE = ("reward/total", "learn/loss", "loss")  # the first two that a step has are shown in its line


class RunLog:
    """Writes `metrics.jsonl`, `rollouts.jsonl`, `pictures/<step>/*.png` and `tensorboard/` below a work directory.

    Steps count from 1: a step's number is the number of finished steps. Only one process of a run has a log.
    """

    def __init__(
        self,
        workdir: epath.PathLike,
        total_steps: int,
        resume_step: int = 0,
        *,
        owner: str = "",
        tensorboard: bool = True,
        trackers: Sequence[str] = (),
        config: Mapping[str, Any] = MappingProxyType({}),
        quiet: bool = False,
    ):
        """Opens the log of a run of which `resume_step` steps are done; what was written beyond them is dropped.

        Args:
          workdir: also `gs://`; such a log is kept on this machine and copied by `flush`, every few minutes and at
            the end.
          owner: id of the work directory's mark, which its pictures carry.
          tensorboard: whether to write its events too.
          trackers: names from `trackers.TRACKERS`, which get the same metrics.
          config: the run's settings, for the trackers.
          quiet: whether to print nothing on the terminal.
        """
        self._remote = epath.Path(workdir) if "://" in str(workdir) else None
        self._scratch = tempfile.TemporaryDirectory(prefix="omnir1_jax_log_") if self._remote else None
        self.path = pathlib.Path(self._scratch.name if self._scratch else str(workdir)).absolute()
        if self.path.exists() and not self.path.is_dir():
            raise InputError(f"--workdir: {self.path} is a file; name a folder for the run")
        self.path.mkdir(parents=True, exist_ok=True)
        self._copied: dict[pathlib.Path, tuple[int, int]] = {}
        self._copied_at = self._flushed_at = time.monotonic()
        self._parts = None
        if self._remote:
            self._parts = Parts(self.path / ROLLOUTS, self._remote / ROLLOUTS, self._remote / ROLLOUT_PARTS)
            self._parts.fetch()
            if (self._remote / METRICS).exists():
                (self.path / METRICS).write_bytes((self._remote / METRICS).read_bytes())
        for name in (METRICS, ROLLOUTS):
            lines.truncate(self.path / name, resume_step or -1)  # the validation at 0 is done again too
        if self._parts:
            self._parts.open()
        self._owner = owner
        self._thread = futures.ThreadPoolExecutor(1, "log")
        self._pending: futures.Future[None] | None = None
        self._lock = threading.Lock()  # of the events, which steps and pictures write
        _remove_pictures(self._remote or epath.Path(self.path), resume_step, owner)
        self._metrics = (self.path / METRICS).open("ab", buffering=0)
        self._rollouts = (self.path / ROLLOUTS).open("ab", buffering=0)
        self._events = _open_events(self.path / TENSORBOARD, resume_step + 1) if tensorboard else None
        self._last, self._total, self._quiet = resume_step, total_steps, quiet
        name, tracker_id = str(config.get("name", "")), owner or str(workdir)
        self._trackers = [Tracker(tracker, name, tracker_id, config, self.say) for tracker in trackers]
        self._durations = collections.deque(maxlen=50)
        self._rewards: dict[str, float] = {}  # the last of each task
        self._validated = ""
        self._bar = tqdm(
            total=total_steps, initial=resume_step, unit="step", dynamic_ncols=True, disable=True if quiet else None
        )

    def __enter__(self) -> "RunLog":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def start(self, validated: Mapping[str, float]) -> None:
        """Logs the validation before the first step, as step 0."""
        lines.append(self._metrics, {"step": 0, **finite(validated)})
        self._track(0, validated)
        if self._events:
            self._event(0, _scalars(validated))
        validation = describe_validation(validated)
        self.say(f"step 0/{self._total}  {validation}")
        self._validated = f"{validation.split('  ')[0]} at 0" if validation else ""

    def step(
        self,
        step: int,
        metrics: Mapping[str, Any],
        seconds: Number,
        task: str = "",
        validated: Mapping[str, float] = MappingProxyType({}),
    ) -> None:
        """Logs the metrics of a finished step.

        Args:
          step: larger than that of any earlier call and than `resume_step`.
          metrics: scalars by name, of numpy or jax too; what is not finite is null in the file.
          seconds: duration of the step.
          task: task of the step's batch; the metrics about completions carry it in their names.
          validated: the metrics of the validation after the step.
        """
        if step <= self._last:
            raise ValueError(f"step {step} is logged after step {self._last}; steps count from 1")
        if reserved := {"step", "seconds", names.TASK} & metrics.keys():
            raise ValueError(f"a metric may not be named {min(reserved)!r}")
        values = {name: float(np.asarray(value)) for name, value in metrics.items()}
        if task and HEADLINE[0] in values:
            self._rewards[task] = values[HEADLINE[0]]
        other_rewards = {name: value for name, value in self._rewards.items() if name != task}
        text, named = (
            describe(step, self._total, values, seconds, [*self._durations, seconds], task, other_rewards),
            values,
        )
        head: dict[str, Any] = {"step": step}
        if task:
            head, named = head | {names.TASK: task}, names.with_task(task, values)
        named = {**named, **validated}
        lines.append(self._metrics, head | finite({"seconds": float(seconds), **named}))
        self._track(step, {"time/seconds": float(seconds), **named})
        if self._events:
            self._event(step, _scalars({"time/seconds": float(seconds), **named}))
            if time.monotonic() - self._flushed_at > EVENT_SECONDS:
                self._flush_events()
        self._durations.append(seconds)
        self._bar.update(step - self._last)
        self._last = step
        validation = describe_validation(validated)
        self.say(f"{text}  {validation or self._validated}".rstrip())
        if validation:
            self._validated = f"{validation.split('  ')[0]} at {step}"
        if self._remote and time.monotonic() - self._copied_at > UPLOAD_SECONDS:
            self._copied_at = time.monotonic()
            self.later(self._flush)

    def later(self, work: Callable[[], None]) -> None:
        """Does some work (rollouts, pictures) in the log's thread, off the step's path.

        One piece of work waits at a time, so that what it holds in memory stays bounded.

        Raises:
          The error of the work before; `flush` raises that of the last one.
        """
        self._settle()
        self._pending = self._thread.submit(work)

    def _settle(self) -> None:
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def _event(self, step: int, summary: Summary) -> None:
        with self._lock:
            self._events.write_event(Event(wall_time=time.time(), step=step, summary=summary))

    def _track(self, step: int, values: Mapping[str, float]) -> None:
        for tracker in self._trackers:
            tracker.log(step, {name: value for name, value in values.items() if math.isfinite(value)})

    def rollouts(self, step: int, examples: Sequence[Example]) -> None:
        """One line for each prompt and completion."""
        number = 0
        for example in examples:
            row = line(step, example)
            if example.clip is not None:
                row["picture"] = picture_name(number, example.sample_id)
                number += 1
            lines.append(self._rollouts, row)

    def pictures(self, step: int, examples: Sequence[Example]) -> None:
        """One PNG for each example that has a clip, in `pictures/<step>` and among TensorBoard's images."""
        seen = [example for example in examples if example.clip is not None]
        if not seen:
            return
        with folders.replace(self.path / PICTURES / str(step), PICTURES, FLAG, owner=self._owner) as folder:
            for number, example in enumerate(seen):
                drawn = pictures.draw(example)
                encoded = pictures.png(drawn)
                (folder / picture_name(number, example.sample_id)).write_bytes(encoded)
                if self._events:
                    self._event(step, _image(f"clips/{number}", drawn.shape, encoded))

    def say(self, text: str) -> None:
        """Prints a line on the terminal above the progress bar."""
        if not self._quiet:
            tqdm.write(text, file=sys.stdout)
            sys.stdout.flush()

    def flush(self) -> None:
        """Returns when everything is written. Call it before a checkpoint is saved."""
        self._settle()
        self._flush()

    def _flush(self) -> None:
        lines.sync(self._metrics)
        lines.sync(self._rollouts)
        self._flush_events()
        if self._remote:
            self._upload()

    def close(self) -> None:
        """Ends the log; a log on a remote work directory is copied there."""
        self.flush()
        if self._parts:
            self._parts.open()
        self._thread.shutdown()
        for tracker in self._trackers:
            tracker.close()
        if self._events:
            self._events.close()
        self._metrics.close()
        self._rollouts.close()
        self._bar.close()
        if self._scratch:
            self._scratch.cleanup()

    def _flush_events(self) -> None:
        if self._events:
            with self._lock:
                self._events.flush()  # which also waits for the disk
        self._flushed_at = time.monotonic()

    def _upload(self) -> None:
        # Marks come first, since files of a mark's folder are the user's until it lists them.
        self._parts.send()
        files = [p for p in self.path.rglob("*") if p.is_file() and not p.name.endswith(".part")]
        files.remove(self.path / ROLLOUTS)
        for file in sorted(files, key=lambda p: (p.name != folders.MARK, p)):
            state = (file.stat().st_size, file.stat().st_mtime_ns)
            if self._copied.get(file) != state:
                target = self._remote / str(file.relative_to(self.path))
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(file.read_bytes())
                self._copied[file] = state
        self._copied_at = time.monotonic()


def describe(
    step: int,
    total: int,
    metrics: Mapping[str, Number],
    seconds: Number,
    durations: Sequence[Number],
    task: str = "",
    other_rewards: Mapping[str, Number] = MappingProxyType({}),
) -> str:
    """A step in one line; `other_rewards`: the last reward of each other task."""
    headline = [name for name in HEADLINE if name in metrics][:2]
    parts = [f"{name.split('/')[-1].replace('total', 'reward')} {metrics[name]:.4g}" for name in headline]
    if other_rewards and parts:
        parts[0] += f" ({', '.join(f'{name} {value:.4g}' for name, value in other_rewards.items())})"
    if metrics.get("learn/skipped"):
        parts.append(f"skipped {metrics['learn/skipped']:.0f}")
    rate = ""
    if "time/mfu" in metrics:
        rate = f"  MFU {metrics['time/mfu']:.1%}"
    elif "time/tflops_per_second" in metrics:
        rate = f"  {metrics['time/tflops_per_second']:.3g} TFLOP/s"
    # The median: the first step compiles. It is also the only one known then, so nothing is foretold from it.
    time_left = clock(statistics.median(durations) * max(total - step, 0)) if len(durations) > 1 else "?"
    return "  ".join(
        [f"step {step}/{total}", *([task] if task else []), *parts, f"{seconds:.2f} s/step{rate}", f"left {time_left}"]
    )


def describe_validation(metrics: Mapping[str, Number]) -> str:
    """The metrics of a validation on the step's line."""
    return "  ".join(
        f"{name.partition('/')[2]} {value:.4g}" for name, value in metrics.items() if name.startswith("validate/")
    )


def clock(seconds: Number) -> str:
    """Hours, minutes and seconds."""
    total = round(seconds)
    return f"{total // 3600}:{total // 60 % 60:02d}:{total % 60:02d}"


def file_name(text: str) -> str:
    """A short name for a file, safe everywhere."""
    return re.sub(r"[^A-Za-z0-9._-]+", "_", text).strip("._")[:80] or "clip"


def picture_name(number: int, sample_id: str) -> str:
    """The file of a step's picture: its number among those of the step, and the clip."""
    return f"{number:02d}_{file_name(sample_id)}.png"


def check_pictures(workdir: epath.PathLike, owner: str) -> None:
    """InputError if `pictures/` has an entry with the name of a step that the run did not write."""
    folder = epath.Path(workdir) / PICTURES
    for entry in sorted(folder.iterdir()) if folder.is_dir() else ():
        if entry.name.isdecimal() and (not entry.is_dir() or folders.check(entry, PICTURES, FLAG, owner=owner) is None):
            raise InputError(f"{FLAG}: {entry} was not written by this run; move it elsewhere")


def _remove_pictures(workdir: epath.Path, last_step: int, owner: str) -> None:
    check_pictures(workdir, owner)
    folder = workdir / PICTURES
    for entry in folder.iterdir() if folder.is_dir() else ():
        if entry.name.isdecimal() and int(entry.name) > last_step and (foreign := folders.remove(entry)):
            raise InputError(
                f"{FLAG}: {entry} holds {folders.some(foreign)}, not written by this run; move it elsewhere"
            )


def _open_events(folder: pathlib.Path, step: int) -> EventsWriter:
    """A new file of events whose first tells TensorBoard to hide what earlier files have from `step` on."""
    folder.mkdir(exist_ok=True)
    # Names count seconds: of two files of one second the later would replace the earlier.
    events = EventsWriter(str(folder / "events"), f".{os.getpid()}.{time.time_ns()}")
    events.write_event(Event(wall_time=time.time(), step=step, session_log=SessionLog(status=SessionLog.START)))
    return events


def _scalars(values: Mapping[str, Number]) -> Summary:
    return Summary(value=[Summary.Value(tag=name, simple_value=value) for name, value in values.items()])


def _image(tag: str, shape: tuple[int, ...], encoded: bytes) -> Summary:
    image = Summary.Image(height=shape[0], width=shape[1], colorspace=3, encoded_image_string=encoded)
    return Summary(value=[Summary.Value(tag=tag, image=image)])
