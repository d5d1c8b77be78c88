"""A machine for the launch scripts: a copy of them, a home, and a PATH on which programs are what a test says."""

import os
import pathlib
import shutil
import signal
import subprocess

from tests.runs import default_signals

ROOT = pathlib.Path(__file__).parent.parent.parent
FAKE_PYTHON = pathlib.Path(__file__).parent / "fake_python"
INTERPRETERS = ("python3", "python3.11", "python3.12", "python3.13")


class Machine:
    """`calls` are those of the fake programs, in their order."""

    def __init__(self, folder: pathlib.Path):
        self.checkout, self.fake, self.bin = folder / "check out", folder / "fake", folder / "bin"
        self.home = folder / "home"
        for made in (self.checkout, self.fake, self.bin, self.home):
            made.mkdir()
        shutil.copytree(ROOT / "launch", self.checkout / "launch")
        for name in ("setup.py", "pyproject.toml"):
            shutil.copy(ROOT / name, self.checkout)
        self.says("version", "3.12")
        for name in INTERPRETERS:
            self.program(name, FAKE_PYTHON.read_text())

    @property
    def calls(self) -> list[str]:
        log = self.fake / "calls"
        return log.read_text().splitlines() if log.exists() else []

    def says(self, name: str, text: str = "") -> None:
        (self.fake / name).write_text(text)

    def program(self, name: str, text: str) -> None:
        path = self.bin / name
        path.write_text(text)
        path.chmod(0o755)

    def start(self, *command: str, cwd: pathlib.Path | None = None, **environment: str) -> subprocess.Popen:
        program = self.checkout / "launch" / command[0]
        env = {"PATH": f"{self.bin}:/usr/bin:/bin", "HOME": str(self.home), "FAKE": str(self.fake)}
        env |= {"CALLS": str(self.fake / "calls"), "TMPDIR": os.environ.get("TMPDIR", "/tmp")} | environment
        pipe = subprocess.PIPE
        return subprocess.Popen(
            [program, *command[1:]], cwd=cwd or self.home, env=env, stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe,
            text=True, start_new_session=True, preexec_fn=default_signals,
        )  # fmt: skip

    def run(self, *command: str, cwd: pathlib.Path | None = None, **environment: str) -> tuple[int, str, str]:
        """Status, stdout and stderr."""
        process = self.start(*command, cwd=cwd, **environment)
        try:
            said = process.communicate(timeout=60)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
        return process.returncode, *said

    def refusal(self, *command: str, **options) -> str:
        """The one line with which a command refuses; it did nothing else."""
        status, out, said = self.run(*command, **options)
        assert status == 1 and out == "", (status, out, said)
        lines = said.splitlines()
        assert lines[-1].startswith(f"launch/{command[0]}: "), said
        return lines[-1]
