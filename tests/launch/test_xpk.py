"""launch/xpk.sh: what it would say to XPK (the lines are those that xpk 1.16 takes)."""

import pytest

from tests.launch.machine import Machine

PLACE = ("--cluster", "pool", "--name", "revos", "--zone", "us-east5-b")
TRAINING = ("--workdir", "gs://bucket/run", "--", "--config=configs/revos.py")
DELETE = "xpk workload delete --cluster=pool --zone=us-east5-b --workload=revos --force"


@pytest.fixture
def machine(tmp_path):
    return Machine(tmp_path)


def dry(machine, *command) -> list[str]:
    status, out, said = machine.run("xpk.sh", command[0], "--dry-run", *command[1:], TMPDIR="/tmp")
    assert status == 0 and said == "", said
    return out.splitlines()


def create(slices: int, command: str, options: str = "--base-docker-image=python:3.12", restarts: int = 20) -> str:
    return (
        "xpk workload create --cluster=pool --zone=us-east5-b --workload=revos --tpu-type=v6e-16 "
        f"--num-slices={slices} {options} --script-dir=/tmp/omnir1_jax-revos --max-restarts={restarts} "
        f"'--command=bash launch/worker.sh {command}'"
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


@pytest.mark.parametrize(
    "command, said",
    [
        ([], "say what to do: cluster, run, resume, status, delete or delete-cluster"),
        (["create", *PLACE], "create: is none of cluster, run"),
        (["run", *PLACE[2:], "--type=v6e-16", *TRAINING], "--cluster: is needed, such as --cluster omnir1"),
        (["run", *PLACE, *TRAINING], "--type: is needed, such as --type v6e-16"),
        (["run", *PLACE, "--type=v6e-16", "--runtime-version=x", *TRAINING], "--runtime-version: is no option"),
        (["run", *PLACE, "--type=v6e-16", "--restarts=many", *TRAINING], "--restarts: 'many' has to be a whole number"),
        (["run", *PLACE, "--type=v6e-16", "--slices=-1", *TRAINING], "--slices: '-1' has to be a whole number"),
        (["run", *PLACE, "--type=v6e-16", "--", "--config=x"], "--workdir: is needed"),
        (["cluster", *PLACE, "--type=v6e-16", "--reserved"], "--reservation: is needed"),
    ],
)
def test_one_line_says_what_to_change(machine, command, said):
    machine.program("xpk", '#!/bin/sh\necho "$*" >>"$CALLS"\n')
    assert said in machine.refusal("xpk.sh", *command)
    assert machine.calls == []


def test_no_xpk(machine):
    assert "xpk is not installed; pip install xpk" in machine.refusal("xpk.sh", "status", *PLACE)
