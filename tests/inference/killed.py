"""Runs the evaluation command again and again from one process that has paid for its imports.

As a config file: `--config tests/inference/killed.py:FOLDER`. As a program it reads lines {"flags": [...],
"after": n or null, "log": path} and answers with the status of such a run, which kills itself after n items.
"""

import json
import os
import pathlib
import signal
import sys

from omnir1_jax import cli, evaluate
from omnir1_jax.config import settings
from omnir1_jax.inference.store import Store
from tests import forked
from tests.inference import small


def get_config(folder: str):
    return small.config(pathlib.Path(folder))


def run(flags: list[str], after: int | None) -> None:
    add, count = Store.add, 0

    def add_and_die(self, line):
        nonlocal count
        add(self, line)
        count += 1
        if count == after:
            os.kill(os.getpid(), signal.SIGKILL)

    Store.add = add_and_die
    sys.argv = ["evaluate", *flags]
    cli.run(evaluate.main, settings.parse)


def serve() -> None:
    forked.collect_seldom()
    for line in sys.stdin:
        order = json.loads(line)
        if child := os.fork():
            status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            print(status, flush=True)
            continue
        forked.finish(order["log"], run, order["flags"], order["after"])


if __name__ == "__main__":
    serve()
