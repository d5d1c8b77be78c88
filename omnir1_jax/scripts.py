"""The installed programs `omnir1-train`, `omnir1-infer` and so on: each is `python -m omnir1_jax.<command>`."""

import runpy
from collections.abc import Callable


def __getattr__(command: str) -> Callable[[], None]:
    """A function that runs a command and ends the process with the command's exit status."""
    if command.startswith("_"):
        raise AttributeError(command)

    def run() -> None:
        runpy.run_module(f"omnir1_jax.{command}", run_name="__main__", alter_sys=True)

    return run
