"""Experiment trackers beside TensorBoard: W&B and trackio, fed from a thread, so that none delays or stops a run.

How each is used (offline, directory, account) is set by its own environment variables, such as WANDB_MODE.
"""

import importlib
import importlib.util
import queue
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from omnir1_jax.errors import InputError

TRACKERS = ("wandb", "trackio")
PROJECT = "omnir1_jax"
MAX_WAITING = 10_000  # maximum steps that a slow tracker may be behind
END_SECONDS = 60.0  # seconds that it has at the end


def check(names: Sequence[str]) -> None:
    """InputError where a tracker is not installed."""
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise InputError(f"log.trackers: {name} is not installed; pip install 'omnir1_jax[{name}]'")


class Tracker:
    """One tracker. Failures are counted and reported once; `log` never waits."""

    def __init__(self, name: str, run: str, identity: str, config: Mapping[str, Any], say: Callable[[str], None]):
        """Starts the tracker's thread, which begins the run or resumes it.

        Args:
          run: its name.
          identity: id of the run, the same after a resume.
          say: function that prints one line.
        """
        self._name, self._say, self._failed = name, say, 0
        self._rows: queue.Queue[tuple[int, dict[str, float]] | None] = queue.Queue(MAX_WAITING)
        # Past runs of trackio are found by their name, those of W&B by their id.
        about = {"id": identity} if name == "wandb" else {}
        begin = dict(
            project=PROJECT, name=f"{run or 'run'}-{identity[:8]}", config=dict(config), resume="allow", **about
        )
        self._thread = threading.Thread(target=self._run, args=(begin,), name=f"tracker-{name}", daemon=True)
        self._thread.start()

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Queues the metrics of a step."""
        try:
            self._rows.put_nowait((step, dict(values)))
        except queue.Full:
            self._fail("it is too slow")

    def close(self) -> None:
        """Ends the tracker's run, within a minute."""
        try:
            self._rows.put(None, timeout=END_SECONDS)
            self._thread.join(END_SECONDS)
        except queue.Full:
            pass
        if self._thread.is_alive():
            self._fail("it did not end in time")
        if self._failed:
            self._say(f"note: tracker {self._name}: {self._failed} failures; metrics.jsonl has everything")

    def _run(self, begin: dict[str, Any]) -> None:
        module = self._call(lambda: importlib.import_module(self._name))
        if module is None or self._call(lambda: (module.init(**begin),)) is None:
            while self._rows.get() is not None:
                self._fail("")
            return
        while (row := self._rows.get()) is not None:
            self._call(lambda row=row: module.log(row[1], step=row[0]))
        self._call(module.finish)

    def _call(self, function: Callable[[], Any]) -> Any:
        """Calls a function; returns None if it fails."""
        try:
            return function()
        # Any error of an optional service: the run does not depend on it.
        except (Exception, SystemExit) as error:
            self._fail(f"{type(error).__name__}: {' '.join(str(error).split())[:200]}")
            return None

    def _fail(self, why: str) -> None:
        self._failed += 1
        if self._failed == 1:
            self._say(f"note: tracker {self._name} fails ({why}); the run continues, further failures are counted")
