"""launch/worker.sh: what a host of a slice does, and with what it ends."""

import os
import signal
import subprocess
import sys

import pytest

from tests.launch.machine import INTERPRETERS, ROOT, Machine

TRAINING = ("--workdir=gs://bucket/run", "--config=configs/revos.py")
AGAIN = 42


@pytest.fixture
def machine(tmp_path):
    made = Machine(tmp_path)
    made.says("train", "echo gs://bucket/run: weights/, summary.json, report.html")
    return made


def test_it_installs_joins_and_trains(machine):
    status, out, said = machine.run("worker.sh", *TRAINING)
    assert status == 0 and "summary.json" in out, said
    made, install, train = machine.calls
    assert made.endswith(".venv-tpu") and install.endswith(f"--editable {machine.checkout}[tpu]")
    assert train == "-m omnir1_jax.train --coordinator=auto " + " ".join(TRAINING)
    assert machine.run("worker.sh", *TRAINING)[0] == 0
    assert machine.calls[3:] == [train]


def test_install_alone(machine):
    assert machine.run("worker.sh", "--install")[0] == 0
    assert [call.split()[1] for call in machine.calls] == ["venv", "pip"]


@pytest.mark.parametrize(
    "training, status",
    [
        ("exit 42", AGAIN),
        ("exit 2", 2),
        ("exit 1", 2),  # no Python, no package: a restart mends nothing
        ("kill -9 $$", AGAIN),
        ("kill -ABRT $$", AGAIN),  # JAX, where another host is lost
        # Words decide nothing.
        ("echo stopped after step 7; exit 0", 0),
        ("echo error: --coordinator: not all of the processes came >&2; exit 2", 2),
    ],
)
def test_the_exit_code_of_the_training_is_passed_on(machine, training, status):
    machine.says("train", training)
    assert machine.run("worker.sh", *TRAINING)[0] == status


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("code", [AGAIN, 0])
def test_a_preemption_notice_reaches_the_training(machine, number, code):
    machine.says("train", f"trap 'sleep 0.3; echo saved; exit {code}' TERM\necho step; while :; do sleep 0.05; done")
    process = machine.start("worker.sh", *TRAINING)
    assert process.stdout.readline() == "step\n"
    os.kill(process.pid, number)  # as a pod's first process gets it; the training does not
    out, _ = process.communicate(timeout=30)
    assert (process.returncode, out) == (code, "saved\n")


def test_one_run_at_a_time_holds_the_machine(machine):
    machine.says("train", 'echo begin | tee -a "$CALLS"; sleep 0.5; echo end >>"$CALLS"')
    first = machine.start("worker.sh", *TRAINING)
    assert first.stdout.readline() == "begin\n"
    second = machine.start("worker.sh", *TRAINING)
    for process in (first, second):
        process.communicate(timeout=30)
        assert process.returncode == 0
    assert [call for call in machine.calls if call in ("begin", "end")] == ["begin", "end"] * 2


def test_inputs_are_copied_once(machine):
    options = ("--inputs", "gs://bucket/inputs", *TRAINING)
    for _ in range(2):
        assert machine.run("worker.sh", *options)[0] == 0
    copies = [call for call in machine.calls if call.startswith("copy ")]
    assert copies == [f"copy gs://bucket/inputs/ {machine.checkout}/"]


def test_the_copy_keeps_folders(tmp_path):
    """The few lines of Python in the script, on a folder in place of a bucket."""
    text = (ROOT / "launch/worker.sh").read_text()
    code = text.split("<<'PYTHON'")[1].split("\n", 1)[1].split("\nPYTHON\n")[0]
    (tmp_path / "inputs/weights/a").mkdir(parents=True)
    (tmp_path / "inputs/weights/a/config.json").write_text("{}")
    (tmp_path / "inputs/data").mkdir()
    (tmp_path / "inputs/data/list.txt").write_text("one")
    (tmp_path / "checkout/launch").mkdir(parents=True)
    urls = [f"file://{tmp_path}/inputs/", f"{tmp_path}/checkout/"]
    subprocess.run([sys.executable, "-", *urls], input=code, text=True, check=True)
    found = sorted(str(path.relative_to(tmp_path / "checkout")) for path in tmp_path.glob("checkout/**/*.*"))
    assert found == ["data/list.txt", "weights/a/config.json"]


OLD_PYTHON = """#!/bin/sh
case "$*" in
  "-c "*) echo 3.10 ;;
  *"uv python find"*) echo "$NEWER" ;;
  *) echo "$*" >>"$CALLS" ;;
esac
"""


def test_an_image_with_an_old_python_gets_a_newer_one(machine):
    newer = machine.bin / "newer python"
    (machine.bin / "python3").rename(newer)
    for name in INTERPRETERS:
        machine.program(name, OLD_PYTHON)
    status, _, said = machine.run("worker.sh", *TRAINING, NEWER=str(newer))
    assert status == 0, said
    assert machine.calls[:2] == ["-m pip install --quiet --user uv", "-m uv python install --quiet 3.12"]
    assert machine.calls[-1].startswith("-m omnir1_jax.train")
