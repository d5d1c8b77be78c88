"""launch/worker.sh: what a host of a slice does, and with what it ends."""

import os
import signal

import pytest

from tests.launch.machine import INTERPRETERS, Machine

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
    assert made.endswith(".venv-tpu") and install.endswith(f"--editable {machine.checkout}[tpu,train,eval]")
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
    assert copies == [f"copy gs://bucket/inputs {machine.checkout}"]


@pytest.mark.parametrize("status", [2, AGAIN])
def test_a_copy_that_fails_says_whether_to_try_again(machine, status):
    machine.says("copy", str(status))
    assert machine.run("worker.sh", "--inputs=gs://bucket/inputs", *TRAINING)[0] == status
    assert not any("omnir1_jax.train" in call for call in machine.calls)
    machine.says("copy", "0")
    assert machine.run("worker.sh", "--inputs=gs://bucket/inputs", *TRAINING)[0] == 0


@pytest.mark.parametrize("fault, status", [("no_network", AGAIN), ("no_ensurepip", 2)])
def test_an_install_that_fails_says_whether_to_try_again(machine, fault, status):
    machine.says(fault)
    assert machine.run("worker.sh", *TRAINING)[0] == status


DISKS = """#!/bin/sh
case "$*" in
  "-dnpo NAME,TYPE") printf '/dev/sda disk\\n/dev/loop0 loop\\n'; cat "$FAKE/disks" ;;
  *"/dev/sda") printf '/dev/sda\\n/dev/sda1\\n' ;;
  *) echo "$3" ;;
esac
"""


class TestDataDisk:
    """--data-disk: weights/ and data/ lie on the host's second disk."""

    @pytest.fixture
    def host(self, machine):
        machine.says("disks", "/dev/sdb disk\n")
        machine.program("lsblk", DISKS)
        machine.program("mountpoint", '#!/bin/sh\n[ -e "$2/mounted" ]\n')
        machine.program("sudo", '#!/bin/sh\necho "sudo $*" >>"$CALLS"\nexec "$@"\n')
        machine.program("blkid", '#!/bin/sh\n[ ! -e "$FAKE/blank" ]\n')
        machine.program("mount", '#!/bin/sh\ntouch "$2/mounted"\n')
        return machine

    def test_it_is_mounted_once(self, host):
        for _ in range(2):
            assert host.run("worker.sh", "--install", "--data-disk")[0] == 0
        assert [call for call in host.calls if call.startswith("sudo mount")] == ["sudo mount /dev/sdb disk"]
        for folder in ("weights", "data"):
            link = host.checkout / folder
            assert link.is_symlink() and link.resolve() == host.checkout / "disk" / folder

    def test_what_is_there_stays(self, host):
        (host.checkout / "weights").mkdir()
        assert host.run("worker.sh", "--install", "--data-disk")[0] == 0
        assert not (host.checkout / "weights").is_symlink() and (host.checkout / "data").is_symlink()

    @pytest.mark.parametrize(
        "fault, message",
        [
            (("disks", ""), "no second disk"),
            (("disks", "/dev/sdb disk\n/dev/sdc disk\n"), "several disks (/dev/sdb /dev/sdc)"),
            (("blank", ""), "/dev/sdb has no file system"),
        ],
    )
    def test_refused(self, host, fault, message):
        host.says(*fault)
        status, _, stderr = host.run("worker.sh", "--install", "--data-disk")
        assert status == 2 and message in stderr.splitlines()[-1]
        assert not any("mkfs" in call or "mount" in call for call in host.calls)


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
