"""How commands end: exit statuses, signals, a disk that takes no more, and a terminal that goes away."""

import contextlib
import errno
import os
import pathlib
import resource
import signal
import subprocess
import sys

import numpy as np
import pytest

from omnir1_jax import cli, errors
from omnir1_jax.errors import AGAIN, INVALID, InputError, Interrupted
from omnir1_jax.evaluation import predictions
from omnir1_jax.files import folders
from omnir1_jax.reporting import lines

# A command that prints much, writes a file, and ends as its last argument says.
COMMAND = """
import errno, logging, pathlib, sys, time
from omnir1_jax import cli
from omnir1_jax.errors import InputError, Interrupted

def main(args):
    out, what = pathlib.Path(args[1]), args[2]
    print("ready", flush=True)
    for line in range(2000):
        print(f"step {line} \\u65e5", flush=line % 100 == 0)
        print(f"step {line}", file=sys.stderr)
    logging.getLogger("absl").error("one more")
    if what == "wait":
        with cli.atomic_path(out) as scratch:
            scratch.write_text("half")
            print("writes", flush=True)
            time.sleep(60)
    if what == "invalid":
        raise InputError("steps: 0\\x1b[31m is invalid")
    if what == "full":
        with cli.atomic_path(out) as scratch:
            scratch.write_text("half")
            raise OSError(errno.ENOSPC, "No space left on device")
    if what == "bug":
        raise ZeroDivisionError
    out.write_text("all")

cli.run(main)
"""


def start(out: pathlib.Path, what: str, shell: str = 'exec "$@"', **options) -> subprocess.Popen:
    command = ["bash", "-c", shell, "-", sys.executable, "-c", COMMAND, str(out), what]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, **{"stdin": subprocess.DEVNULL, "stdout": pipe, "stderr": pipe} | options)


@pytest.mark.parametrize(
    "shell",
    [
        'exec "$@" >&- 2>&- <&-',
        'exec "$@" >/dev/full 2>/dev/full',
        'set -o pipefail; "$@" 2>&1 | head -n 1',
        'PYTHONIOENCODING=ascii exec "$@"',
    ],
)
def test_a_command_does_not_need_its_terminal(tmp_path, shell):
    process = start(tmp_path / "out", "write", shell)
    _, text = process.communicate(timeout=60)
    assert process.returncode == 0, text
    assert (tmp_path / "out").read_text() == "all"


@pytest.mark.parametrize(
    "what, status, end",
    [
        ("invalid", INVALID, "error: steps: 0\\x1b[31m is invalid"),
        ("full", INVALID, "MB free); free some space, then run the same command again"),
        ("bug", 1, "ZeroDivisionError"),
    ],
)
def test_the_exit_status_says_whether_a_rerun_helps(tmp_path, what, status, end):
    process = start(tmp_path / "out", what)
    _, text = process.communicate(timeout=60)
    last = text.decode().splitlines()[-1]
    assert process.returncode == status and last.endswith(end), text
    assert ("Traceback" in text.decode()) == (status == 1)
    assert list(tmp_path.iterdir()) == []
    if what == "full":
        assert last.startswith(f"error: {tmp_path}/out: no space left on device (")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_signal_ends_a_command_and_leaves_nothing_half_written(tmp_path, number):
    default = lambda: signal.signal(number, signal.SIG_DFL if number != signal.SIGINT else signal.default_int_handler)
    process = start(tmp_path / "out", "wait", stderr=subprocess.DEVNULL, preexec_fn=default)
    while process.stdout.readline() != b"writes\n":
        pass
    process.send_signal(number)
    process.communicate(timeout=60)
    assert process.returncode == AGAIN
    assert list(tmp_path.iterdir()) == []


def test_nohup_keeps_a_command_that_lost_its_terminal(tmp_path):
    process = start(tmp_path / "out", "wait", 'trap "" HUP; exec "$@"', stderr=subprocess.DEVNULL)
    while process.stdout.readline() != b"writes\n":
        pass
    process.send_signal(signal.SIGHUP)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(timeout=1)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == AGAIN


def caused(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    "error, end",
    [
        (OSError(errno.EDQUOT, "", "a"), "a: disk quota exceeded ("),
        (OSError(errno.EROFS, "", "/a/b"), "/a/b: read-only file system; give this user permission"),
        (PermissionError(errno.EACCES, "", "/a/b"), "/a/b: permission denied; give"),
        (
            ValueError("""RESOURCE_EXHAUSTED: Error writing "x/0.0" at local file "/r/1.orbax-checkpoint-tmp/d": """
                       "Failed to write 344025 bytes to file 7: No space left on device [os_error_code='28']"),
            "/r/1: no space left on device (",
        ),
        (Exception("Error while serializing: I/O error: File too large (os error 27)"), "file too large; raise"),
        (caused(RuntimeError("x"), OSError(errno.ENOSPC, "", "/a")), "/a: no space left on device ("),
    ],
)  # fmt: skip
def test_what_a_disk_refuses_is_one_line(error, end):
    found = errors.ending(error)
    assert found.status == INVALID and found.text.startswith(end)


def test_other_errors_keep_their_tracebacks():
    for error in (ValueError("[Errno 5] Input/output error"), FileNotFoundError(errno.ENOENT, "", "a"), KeyError(28)):
        assert errors.ending(error) is None
    refused = caused(InputError("--out: a"), OSError(errno.EACCES, "", "a"))
    with pytest.raises(InputError), errors.named("b"):
        raise refused
    assert errors.ending(Interrupted("lost\nhost")) == (AGAIN, "lost\\nhost")


@contextlib.contextmanager
def small_files():
    """No file may have more than 100 bytes: works for every user and needs no disk of its own."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_no_half_of_a_line_stays(tmp_path):
    path = tmp_path / "metrics.jsonl"
    with path.open("ab", buffering=0) as file, small_files():
        lines.append(file, {"step": 1, "x": "a" * 50})
        before = path.read_bytes()
        with pytest.raises(OSError) as caught:
            lines.append(file, {"step": 2, "x": "a" * 50})
    assert path.read_bytes() == before
    assert errors.ending(caught.value).text.startswith(f"{path}: file too large")


@pytest.mark.parametrize("writer", ["file", "folder"])
def test_what_does_not_fit_names_its_place_and_leaves_no_scratch(tmp_path, writer):
    target = tmp_path / "out"
    whole = folders.replace(target, "weights", "--out") if writer == "folder" else cli.atomic_path(target)
    with pytest.raises(OSError) as caught, whole as scratch, small_files():
        (scratch / "model" if writer == "folder" else scratch).write_bytes(bytes(200))
    assert caught.value.filename == str(target) and os.listdir(tmp_path) == []


def test_predictions_that_do_not_fit_name_their_place(tmp_path):
    masks = np.random.default_rng(0).integers(0, 2, (2, 64, 64))
    with pytest.raises(OSError) as caught, small_files():
        predictions.write(str(tmp_path), "video", "0", ["a", "b"], masks)
    assert caught.value.filename == str(tmp_path / "video/0") and os.listdir(tmp_path / "video") == []
