"""Any command in processes forked from one that has imported the heavy packages.

As a program it reads orders as lines of JSON: {"module": name, "flags": [...], "log": path} is answered with the
process's id, {"wait": id} with its exit status, 128 + n after signal n.
"""

import importlib
import json
import pathlib
import subprocess
import sys
import tempfile

from omnir1_jax import cli
from omnir1_jax.config import settings
from tests import forked
from tests.runs import ROOT, environment


class Commands:
    def __init__(self):
        pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._server = subprocess.Popen([sys.executable, "-m", "tests.commands"], cwd=ROOT, env=environment(), **pipes)

    def _ask(self, **order) -> int:
        print(json.dumps(order), file=self._server.stdin, flush=True)
        return int(self._server.stdout.readline())

    def start(self, log: pathlib.Path, module: str, *flags: str) -> int:
        """Its process; what it prints goes to `log`."""
        return self._ask(module=module, flags=flags, log=str(log))

    def wait(self, process: int) -> int:
        return self._ask(wait=process)

    def run(self, module: str, *flags: str) -> None:
        """A command that has to succeed."""
        with tempfile.NamedTemporaryFile("r") as log:
            status = self.wait(self.start(pathlib.Path(log.name), module, *flags))
            assert status == 0, log.read()

    def close(self) -> None:
        self._server.stdin.close()
        self._server.wait()
        self._server.stdout.close()


def run(module: str, flags: list[str]) -> None:
    # Imported by its name, since config files of tests import commands too, which would define their flags anew.
    command, sys.argv = importlib.import_module(module), [module, *flags]
    cli.run(command.main, getattr(command, "parse", settings.parse if hasattr(command, "_CONFIG") else None))


def serve() -> None:
    # Paid for once; a command itself is imported in the fork, where it registers its flags.
    import omnir1_jax.inference.benchmark
    import omnir1_jax.training.loop  # noqa: F401

    forked.serve(lambda order: run(order["module"], order["flags"]))


if __name__ == "__main__":
    serve()
