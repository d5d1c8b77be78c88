"""launch/xpk.sh: what it would say to XPK, and that XPK takes it."""

import shlex
import subprocess
import sys

import pytest

from tests.launch.machine import ROOT, Machine

XPK = "1.16.0"
PLACE = ("--cluster", "pool", "--name", "revos", "--zone", "us-east5-b")
TRAINING = ("--workdir", "gs://bucket/run", "--", "--config=configs/revos.py")
DELETE = "xpk workload delete --cluster=pool --zone=us-east5-b --workload=revos --force"


@pytest.fixture
def machine(tmp_path):
    return Machine(tmp_path)


def dry(machine, *command, tmpdir: str = "/tmp") -> list[str]:
    status, out, said = machine.run("xpk.sh", command[0], "--dry-run", *command[1:], TMPDIR=tmpdir)
    assert status == 0 and said == "", said
    return out.splitlines()


def create(slices: int, command: str, options: str = "--base-docker-image=python:3.12", restarts: int = 20) -> str:
    return (
        "xpk workload create --cluster=pool --zone=us-east5-b --workload=revos --tpu-type=v6e-16 "
        f"--num-slices={slices} {options} --script-dir=/tmp/omnir1_jax-revos --max-restarts={restarts} "
        f"--termination-grace-period-seconds=300 '--command=bash launch/worker.sh {command}'"
    )


def test_run(machine):
    assert dry(machine, "run", *PLACE, "--type=v6e-16", "--inputs=gs://bucket/inputs", *TRAINING) == [
        create(1, "--inputs gs://bucket/inputs --workdir=gs://bucket/run --config=configs/revos.py")
    ]


def test_run_on_several_slices(machine):
    options = ("--type=v6e-16", "--slices=2", "--image", "mine:1", "--restarts", "5")
    assert dry(machine, "run", *PLACE, *options, *TRAINING) == [
        create(
            2,
            "--workdir=gs://bucket/run --config=configs/revos.py --config.mesh.slice=2",
            "--base-docker-image=mine:1",
            5,
        )
    ]


def test_resume_status_and_delete(machine):
    assert dry(machine, "resume", *PLACE, "--type=v6e-16", *TRAINING) == [
        DELETE,
        create(1, "--workdir=gs://bucket/run --config=configs/revos.py"),
    ]
    assert dry(machine, "delete", *PLACE) == [DELETE]
    status = ["xpk workload list --cluster=pool --zone=us-east5-b --filter-by-job=revos"]
    assert dry(machine, "status", *PLACE) == status


@pytest.mark.parametrize(
    "options, capacity",
    [
        ([], "--on-demand"),
        (["--spot"], "--spot"),
        (["--reserved", "--reservation=ours"], "--reservation=ours"),
    ],
)
def test_cluster(machine, options, capacity):
    place = ("--cluster=pool", "--zone=us-east5-b", "--project=mine")
    assert dry(machine, "cluster", *place, "--type=v5p-8", "--slices=4", *options) == [
        "xpk cluster create --cluster=pool --zone=us-east5-b --project=mine --tpu-type=v5p-8 --num-slices=4 " + capacity
    ]
    assert dry(machine, "delete-cluster", *place) == [
        "xpk cluster delete --cluster=pool --zone=us-east5-b --project=mine --force"
    ]


def test_disks_and_further_flags(machine):
    (line,) = dry(machine, "cluster", *PLACE, "--type=v6e-16", "--disk-size=300", "--flag=--enable-ray-cluster")
    assert line.endswith(" --on-demand --custom-nodepool-arguments=--disk-size=300 --enable-ray-cluster")
    (line,) = dry(machine, "run", *PLACE, "--type=v6e-16", "--grace=25", "--flag=--priority=high", *TRAINING)
    assert " --termination-grace-period-seconds=25 " in line and line.endswith(" --priority=high")


@pytest.fixture(scope="module")
def xpk():
    """XPK itself, in an environment of its own: it pins versions that this package's own environment does not have."""
    folder = ROOT / ".venv-xpk"
    program = folder / "bin" / "xpk"
    if not (folder / ".installed").exists():
        subprocess.run([sys.executable, "-m", "venv", "--clear", "--without-pip", folder], check=True)
        pip = [sys.executable, "-m", "pip", "--python", folder / "bin" / "python", "install", "--quiet", "--no-compile"]
        subprocess.run([*pip, f"xpk=={XPK}"], check=True)
        (folder / ".installed").touch()
    return program


@pytest.mark.parametrize(
    "command",
    [
        ["cluster", *PLACE, "--type=v6e-16", "--spot", "--disk-size=300"],
        ["cluster", *PLACE, "--type=v5p-8", "--slices=2", "--reserved", "--reservation=ours"],
        ["run", *PLACE, "--type=v6e-16", "--inputs=gs://bucket/inputs", "--flag=--priority=high", *TRAINING],
        ["resume", *PLACE, "--type=v5litepod-16", "--slices=2", "--restarts=5", "--grace=60", *TRAINING],
        ["status", *PLACE],
        ["delete", *PLACE],
        ["delete-cluster", *PLACE],
    ],
)
def test_xpk_itself_takes_the_lines(machine, xpk, tmp_path, command):
    (tmp_path / "omnir1_jax-revos").mkdir()  # the script folder, which a dry run names only
    for line in dry(machine, command[0], "--project=mine", *command[1:], tmpdir=str(tmp_path)):
        program, *words = shlex.split(line)
        assert program == "xpk"
        environment = {"PATH": f"{xpk.parent}:/usr/bin:/bin", "HOME": str(tmp_path)}
        run = subprocess.run([xpk, *words, "--dry-run"], env=environment, capture_output=True, text=True)
        assert run.returncode == 0 and "Exiting XPK cleanly" in run.stdout, run.stdout[-2000:] + run.stderr[-2000:]
        if "--custom-nodepool-arguments=--disk-size=300" in words:
            assert any("node-pools create" in out and "--disk-size=300" in out for out in run.stdout.splitlines())
        for word in words:
            if word.startswith("--termination-grace-period-seconds="):
                assert f"terminationGracePeriodSeconds: {word.split('=')[1]}" in run.stdout


@pytest.mark.parametrize(
    "command, said",
    [
        ([], "name a command: cluster, run, resume, status, delete or delete-cluster"),
        (["create", *PLACE], "create: is not one of cluster, run"),
        (["run", *PLACE[2:], "--type=v6e-16", *TRAINING], "--cluster: is needed, such as --cluster omnir1"),
        (["run", *PLACE, *TRAINING], "--type: is needed, such as --type v6e-16"),
        (["run", *PLACE, "--type=v6e-16", "--runtime-version=x", *TRAINING], "--runtime-version: is not an option"),
        (["run", *PLACE, "--type=v6e-16", "--restarts=many", *TRAINING], "--restarts: 'many' has to be a whole number"),
        (["run", *PLACE, "--type=v6e-16", "--slices=-1", *TRAINING], "--slices: '-1' has to be a whole number"),
        (["run", *PLACE, "--type=v6e-16", "--", "--config=x"], "--workdir: is needed"),
        (["cluster", *PLACE, "--type=v6e-16", "--reserved"], "--reservation: is needed"),
        (["cluster", "--cluster=My", *PLACE[4:], "--type=v6e-16"], "--cluster: 'My' has to consist of a-z, 0-9 and -"),
        (["cluster", "--cluster", "a" * 41, *PLACE[4:]], "has 41 characters; the maximum is 40"),
        (["run", *PLACE[:2], "--name", "a" * 41, *PLACE[4:]], f"--name: '{'a' * 41}' has 41 characters"),
        (["run", *PLACE, "--type=v6e-16", "--grace=5m", *TRAINING], "--grace: '5m' has to be a whole number"),
        (["cluster", *PLACE, "--type=v6e-16", "--disk-size=1T"], "--disk-size: '1T' has to be a whole number"),
    ],
)
def test_one_line_says_what_to_change(machine, command, said):
    machine.program("xpk", '#!/bin/sh\necho "$*" >>"$CALLS"\n')
    assert said in machine.refusal("xpk.sh", *command)
    assert machine.calls == []


def test_no_xpk(machine):
    assert "xpk is not installed; pip install xpk" in machine.refusal("xpk.sh", "status", *PLACE)
