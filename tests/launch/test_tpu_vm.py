"""launch/tpu_vm.sh: what it would say to the cloud, and how it goes on after preemptions, on a stub of gcloud."""

import pathlib
import shlex
import shutil
import subprocess

import pytest

from tests.launch.machine import Machine

FAKE_GCLOUD = pathlib.Path(__file__).parent / "fake_gcloud"
PLACE = ("--name", "revos", "--zone", "us-east5-b")
TRAINING = ("--workdir", "gs://bucket/run", "--", "--config=configs/revos.py")
SEND = (
    "gcloud compute tpus queued-resources scp /tmp/omnir1_jax-revos/omnir1_jax.tar.gz revos:omnir1_jax.tar.gz "
    "--node=all --worker=all --zone=us-east5-b --quiet"
)
SSH = (
    "gcloud compute tpus queued-resources ssh revos --node=all --worker=all "
    "--ssh-flag=-oServerAliveInterval=30 --ssh-flag=-oServerAliveCountMax=10 "
)


def on_all(command: str) -> str:
    """A command for every host; its status 2 arrives as 82, since gcloud has a 2 of its own."""
    remote = f"({command}); status=$?; [ $status != 2 ] || status=82; exit $status"
    return f"{SSH}'--command={remote}' --zone=us-east5-b --quiet"


UNPACK = "mkdir -p omnir1_jax && tar -xzf omnir1_jax.tar.gz -C omnir1_jax && omnir1_jax/launch/worker.sh --install"
INSTALL = on_all(UNPACK)


@pytest.fixture
def machine(tmp_path):
    return Machine(tmp_path)


@pytest.fixture
def cloud(machine):
    """A machine with gcloud, on a checkout that git knows."""
    machine.program("gcloud", FAKE_GCLOUD.read_text())
    git = ("git", "-c", "user.name=a", "-c", "user.email=a@b", "-c", "init.defaultBranch=main", "-C", machine.checkout)
    for arguments in (["init", "-q"], ["add", "."], ["commit", "-qm", "all"]):
        subprocess.run([*git, *arguments], check=True)
    return machine


def dry(machine, *command) -> list[str]:
    status, out, said = machine.run("tpu_vm.sh", command[0], "--dry-run", *command[1:], TMPDIR="/tmp")
    assert status == 0 and said == "", said
    assert machine.calls == []
    return out.splitlines()


class TestDryRun:
    """The lines are those that gcloud 528 takes."""

    def test_create(self, machine):
        assert dry(machine, "create", *PLACE, "--type", "v6e-8", "--spot", "--project", "mine") == [
            "gcloud compute tpus queued-resources create revos --accelerator-type=v6e-8 "
            "--runtime-version=v2-alpha-tpuv6e --node-id=revos --spot --zone=us-east5-b --project=mine --quiet"
        ]

    @pytest.mark.parametrize(
        "kind, version",
        [("v5p-8", "v2-alpha-tpuv5"), ("v5litepod-16", "v2-alpha-tpuv5-lite"), ("v4-32", "tpu-ubuntu2204-base")],
    )
    def test_the_image_is_that_of_the_type(self, machine, kind, version):
        (line,) = dry(machine, "create", *PLACE, f"--type={kind}")
        assert f"--accelerator-type={kind} --runtime-version={version} " in line
        (line,) = dry(machine, "create", *PLACE, "--type=v9-8", "--runtime-version=v3")
        assert "--accelerator-type=v9-8 --runtime-version=v3 " in line

    def test_setup(self, machine):
        assert dry(machine, "setup", *PLACE) == [SEND, INSTALL]

    def test_run(self, machine):
        assert dry(machine, "run", *PLACE, "--inputs", "gs://bucket/inputs", *TRAINING) == [
            on_all(
                "omnir1_jax/launch/worker.sh --inputs gs://bucket/inputs --workdir=gs://bucket/run "
                "--config=configs/revos.py"
            )
        ]

    def test_resume_on_several_slices(self, machine):
        assert dry(machine, "resume", *PLACE, "--type", "v5p-8", "--slices", "4", "--spot", *TRAINING) == [
            "gcloud compute tpus queued-resources delete revos --force --zone=us-east5-b --quiet",
            "gcloud compute tpus queued-resources create revos --accelerator-type=v5p-8 "
            "--runtime-version=v2-alpha-tpuv5 --node-count=4 --node-prefix=revos --spot --zone=us-east5-b --quiet",
            SEND,
            INSTALL,
            on_all(
                "omnir1_jax/launch/worker.sh --workdir=gs://bucket/run --config=configs/revos.py --config.mesh.slice=4"
            ),
        ]

    def test_status_and_delete(self, machine):
        assert dry(machine, "status", *PLACE) == [
            "gcloud compute tpus queued-resources describe revos --zone=us-east5-b --quiet",
            "gcloud compute tpus tpu-vm list '--filter=name~/revos(-[0-9]+)?$' --zone=us-east5-b --quiet",
        ]
        (line,) = dry(machine, "delete", *PLACE)
        assert line == "gcloud compute tpus queued-resources delete revos --force --zone=us-east5-b --quiet"

    def test_options_of_the_training_arrive_as_they_are(self, machine):
        odd = """--config.name=it's "5 %" of $HOME"""
        (line,) = dry(machine, "run", *PLACE, *TRAINING, odd)
        command = next(word for word in shlex.split(line) if word.startswith("--command="))
        remote = command.removeprefix("--command=(").split("); status=")[0]
        assert shlex.split(remote)[-1] == odd

    def test_disks_and_further_flags(self, machine):
        disks = ("--boot-disk", "size=200", "--data-disk", "source=projects/p/zones/z/disks/d,mode=read-only")
        create, _, install, _ = dry(
            machine, "resume", *PLACE, "--type=v6e-8", *disks, "--flag=--labels=team=ours", *TRAINING
        )[1:]
        assert " --boot-disk=size=200 --data-disk=source=projects/p/zones/z/disks/d,mode=read-only " in create
        assert " --labels=team=ours " in create
        assert install == on_all(f"{UNPACK} --data-disk")


class TestBadInput:
    @pytest.mark.parametrize(
        "command, said",
        [
            ([], "name a command: create, setup, run, resume, status or delete"),
            (["start", *PLACE], "start: is not one of create, setup, run, resume, status, delete"),
            (["create", "--zone", "z", "--type", "v6e-8"], "--name: is needed, such as --name revos"),
            (["create", "--name", "Mine", "--zone", "z"], "--name: 'Mine' has to consist of a-z, 0-9 and -"),
            (["create", "--name", "a" * 41, "--zone", "z"], "has 41 characters; the maximum is 40"),
            (["create", "--name", "revos", "--type", "v6e-8"], "--zone: is needed, such as --zone us-east5-b"),
            (["create", *PLACE], "--type: is needed, such as --type v6e-8"),
            (["create", *PLACE, "--type", "tpu7x-8"], "--type: tpu7x-8 is not one of v4-*, v5litepod-*, v5p-*, v6e-*"),
            (["create", *PLACE, "--type", "v6e-8", "--slices", "0"], "--slices: '0' has to be a whole number"),
            (["create", *PLACE, "--type", "v6e-8", "--slices", "two"], "--slices: 'two' has to be a whole number"),
            (["create", *PLACE, "--type"], "--type: needs a value"),
            (["create", *PLACE, "--type", "--spot"], "--type: needs a value"),
            (["create", *PLACE, "--tpye", "v6e-8"], "--tpye: is not an option"),
            (["run", *PLACE, "configs/revos.py"], "options of the training go after --"),
            (["run", *PLACE, "--", "--config=x"], "--workdir: is needed, such as --workdir gs://BUCKET/RUN"),
            (["run", *PLACE, "--workdir", "runs/x", "--", "--config=x"], "--workdir: runs/x has to be gs://BUCKET/..."),
            (["run", *PLACE, "--workdir", "gs://b/x"], "the training needs its config after --"),
            (["run", *PLACE, "--inputs", "here", *TRAINING], "--inputs: here has to be gs://BUCKET/..."),
            (["resume", *PLACE, "--type=v6e-8", "--attempts=x", *TRAINING], "--attempts: 'x' has to be a whole number"),
            (["resume", *PLACE, "--type", "v6e-8", "--poll=1s", *TRAINING], "--poll: '1s' has to be a whole number"),
        ],
    )
    def test_one_line_says_what_to_change(self, machine, command, said):
        machine.program("gcloud", FAKE_GCLOUD.read_text())
        assert said in machine.refusal("tpu_vm.sh", *command)
        assert machine.calls == []

    def test_no_gcloud(self, machine):
        bare = machine.bin  # of the programs elsewhere only what the script needs
        for name in ("bash", "dirname", "basename", "awk", "sed"):
            (bare / name).symlink_to(shutil.which(name))
        said = machine.refusal("tpu_vm.sh", "status", *PLACE, PATH=str(bare))
        assert "gcloud is not installed; see https://" in said

    def test_help(self, machine):
        for command in (["--help"], ["run", "--help"]):
            status, out, _ = machine.run("tpu_vm.sh", *command)
            assert status == 0 and "--workdir gs://BUCKET/RUN" in out and "set -" not in out


class TestResume:
    """`resume` until the training is at its end."""

    def go_on(self, cloud, *options):
        command = ("resume", *PLACE, "--type=v6e-8", "--spot", "--poll=0", *options, *TRAINING)
        return cloud.run("tpu_vm.sh", *command, TMPDIR=str(cloud.home))

    def steps(self, cloud) -> list[str]:
        """What was done to the TPU, in its order."""
        names = []
        for call in cloud.calls:
            words = call.split()
            if words[3] in ("create", "delete", "scp"):
                names.append(words[3])
            elif words[3] == "ssh":
                names.append("install" if "--install" in call else "train")
        return names

    def test_from_nothing_to_the_end(self, cloud):
        cloud.says("states", "NONE\nWAITING_FOR_RESOURCES\nPROVISIONING\nACTIVE\nACTIVE\n")
        status, _, said = self.go_on(cloud)
        assert status == 0 and "the training is done" in said, said
        assert self.steps(cloud) == ["create", "scp", "install", "train"]
        assert "launch/worker.sh" in (cloud.fake / "sent").read_text().splitlines()
        assert list(cloud.home.glob("omnir1_jax-*")) == []

    def test_after_a_preemption_of_the_request(self, cloud):
        cloud.says("states", "ACTIVE\nSUSPENDING\nSUSPENDED\nSUSPENDED\nACCEPTED\nACTIVE\nACTIVE\n")
        cloud.says("trainings", "255\n0\n")
        assert self.go_on(cloud)[0] == 0
        again = ["scp", "install", "train"]
        assert self.steps(cloud) == [*again, "delete", "create", *again]

    def test_after_a_preemption_of_one_slice(self, cloud):
        cloud.says("nodes", "READY;READY\nREADY;PREEMPTED\nREADY;PREEMPTED\nREADY;READY\n")
        cloud.says("trainings", "42\n0\n")
        assert self.go_on(cloud, "--slices=2")[0] == 0
        again = ["scp", "install", "train"]
        assert self.steps(cloud) == [*again, "delete", "create", *again]

    def test_a_training_that_stopped_goes_on(self, cloud):
        cloud.says("trainings", "42\n1\n0\n")
        assert self.go_on(cloud)[0] == 0
        assert self.steps(cloud) == ["scp", "install", "train"] * 3

    def test_failures_on_a_whole_tpu_end(self, cloud):
        cloud.says("trainings", "42\n" * 9)
        status, _, said = self.go_on(cloud, "--attempts=2")
        assert status == 1 and "failed 2 times without a preemption" in said.splitlines()[-1]
        assert self.steps(cloud) == ["scp", "install", "train"] * 2

    def test_an_invalid_setting_ends(self, cloud):
        cloud.says("trainings", "82\n")
        status, _, said = self.go_on(cloud)
        assert status == 1 and "something is invalid" in said.splitlines()[-1]
        assert self.steps(cloud) == ["scp", "install", "train"]

    def test_a_status_of_2_is_gclouds_own(self, cloud):
        """With it gcloud ends where it does not understand a flag; the training's 2 arrives as 82."""
        cloud.says("trainings", "2\n0\n")
        status, _, said = self.go_on(cloud)
        assert status == 0 and "invalid" not in said
        assert self.steps(cloud) == ["scp", "install", "train"] * 2

    def test_the_status_of_a_host(self, cloud):
        """The line that a host's shell gets ends with the worker's own status, but for 2."""
        (line,) = dry(cloud, "run", *PLACE, *TRAINING)
        command = next(word for word in shlex.split(line) if word.startswith("--command=")).removeprefix("--command=")
        for status, arriving in ((0, 0), (2, 82), (42, 42), (137, 137)):
            worker = command.replace("omnir1_jax/launch/worker.sh", f"exit {status} #", 1).replace("#", "; :", 1)
            assert subprocess.run(["sh", "-c", worker]).returncode == arriving

    def test_requests_that_fail_end(self, cloud):
        cloud.says("states", "FAILED\n" * 20)
        status, _, said = self.go_on(cloud)
        assert status == 1 and "failed 3 times" in said.splitlines()[-1]
        assert self.steps(cloud) == ["delete", "create"] * 3

    def test_no_quota(self, cloud):
        cloud.says("states", "NONE\n")
        cloud.says("no_quota")
        status, _, said = self.go_on(cloud)
        assert status == 1 and "gcloud could not request revos; the lines above say why" in said.splitlines()[-1]
        assert self.steps(cloud) == ["create"]
