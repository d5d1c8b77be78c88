"""A profiler's trace of some steps of a run, with the programs that name their stages."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import jax
from etils import epath

from omnir1_jax.config.sections import Profile

FOLDER, STEP, PROGRAM = "profile", "step ", ".hlo.txt"


class Tracer:
    """Traces the steps of the section `profile`, each under the name of its task.

    The compiled program of each task is written beside the trace: its instructions name their stages, and the CPU's
    traces name the instructions only.
    """

    def __init__(self, folder: epath.Path, profile: Profile):
        self._folder, self._steps = folder / FOLDER, range(profile.start, profile.start + profile.steps)
        if not profile.start:
            self._steps = range(0)
        self._running, self._written = False, set()

    @contextlib.contextmanager
    def step(self, number: int, task: str, program: Callable[..., Any], *args: Any) -> Iterator[None]:
        """Traces the body if the step is one of `profile`; the body has to wait for its results.

        Args:
          program, args: the step's.
        """
        if number not in self._steps:
            yield
            return
        if not self._running:
            self._folder.mkdir(parents=True, exist_ok=True)
            options = jax.profiler.ProfileOptions()
            options.python_tracer_level = 0  # Python's calls would be most of the file
            jax.profiler.start_trace(str(self._folder), profiler_options=options)
            self._running = True
        # A staged step has no program of its own; its stages' programs are named after them.
        if task not in self._written and hasattr(program, "lower") and jax.process_index() == 0:
            (self._folder / f"{task}{PROGRAM}").write_text(program.lower(*args).compile().as_text())
        self._written.add(task)
        with jax.profiler.TraceAnnotation(f"{STEP}{task}"):
            yield
        if number == self._steps[-1]:
            self.close()

    def close(self) -> None:
        """Writes the running trace, if any."""
        if self._running:
            jax.profiler.stop_trace()
        self._running = False
