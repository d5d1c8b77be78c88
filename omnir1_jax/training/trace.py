"""A profiler's trace of some steps of a run, with what tells the stages of its programs apart."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import jax
from etils import epath

from omnir1_jax.config.sections import Profile

FOLDER, STEP, PROGRAM = "profile", "step ", ".hlo.txt"


class Tracer:
    """Traces the steps that the section `profile` names, each under the name of its task.

    Beside the trace lies the compiled program of each task, whose instructions name the stages that they are of: the
    CPU's traces name the instructions alone.
    """

    def __init__(self, folder: epath.Path, profile: Profile):
        self._folder, self._steps = folder / FOLDER, range(profile.start, profile.start + profile.steps)
        if not profile.start:
            self._steps = range(0)
        self._running, self._written = False, set()

    @contextlib.contextmanager
    def step(self, number: int, task: str, program: Callable[..., Any], *args: Any) -> Iterator[None]:
        """Traces the body where the step is one of those asked for; it has to wait for its results.

        Args:
          program, args: the step's.
        """
        if number not in self._steps:
            yield
            return
        if not self._running:
            self._folder.mkdir(parents=True, exist_ok=True)
            options = jax.profiler.ProfileOptions()
            options.python_tracer_level = 0  # Python's calls are not what is asked, and most of the file
            jax.profiler.start_trace(str(self._folder), profiler_options=options)
            self._running = True
        # A staged step has no program of its own; those of its stages are called after them.
        if task not in self._written and hasattr(program, "lower") and jax.process_index() == 0:
            (self._folder / f"{task}{PROGRAM}").write_text(program.lower(*args).compile().as_text())
        self._written.add(task)
        with jax.profiler.TraceAnnotation(f"{STEP}{task}"):
            yield
        if number == self._steps[-1]:
            self.close()

    def close(self) -> None:
        """Writes the trace that is under way, if one is."""
        if self._running:
            jax.profiler.stop_trace()
        self._running = False
