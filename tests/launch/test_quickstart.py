"""launch/quickstart.sh and launch/test.sh on machines that lack something, with stubs for Python and the disk."""

import os
import signal

import pytest

from tests.launch.machine import INTERPRETERS, Machine
from tests.runs import ROOT, until

DF = "#!/bin/sh\necho Filesystem 1024-blocks Used Available Capacity Mounted\necho disk 9000000 1 {} 1% /\n"


@pytest.fixture
def machine(tmp_path):
    return Machine(tmp_path)


def test_quickstart_installs_and_runs_the_toy(machine):
    status, _, said = machine.run("quickstart.sh", "--seeds", "0,1")
    assert status == 0, said
    venv = machine.checkout / ".venv-quickstart"
    made, install, toy = machine.calls
    assert made == f"-m venv --clear {venv}"
    assert install == (
        "-m pip install --quiet --disable-pip-version-check "
        f"--constraint {machine.checkout}/launch/constraints.txt --editable {machine.checkout}[train,eval]"
    )
    out = machine.checkout / "runs/quickstart"
    seconds = (venv / ".install_seconds").read_text().strip()
    assert toy == f"-m omnir1_jax.toy --out {out} --install_seconds {seconds} --seeds 0,1"
    assert out.is_dir()


def test_a_second_run_asks_nothing_of_the_network(machine):
    assert machine.run("quickstart.sh")[0] == 0
    before = len(machine.calls)
    machine.says("no_network")
    seconds = machine.checkout / ".venv-quickstart/.install_seconds"
    seconds.write_text("83\n")
    os.utime(machine.checkout / "setup.py")  # as a checkout does: newer, the same
    assert machine.run("quickstart.sh", cwd=machine.checkout.parent)[0] == 0
    later = machine.calls[before:]
    assert later == [f"-m omnir1_jax.toy --out {machine.checkout}/runs/quickstart --install_seconds 83"]


def test_other_packages_are_installed_anew(machine):
    assert machine.run("quickstart.sh")[0] == 0
    before = len(machine.calls)
    with (machine.checkout / "launch/constraints.txt").open("a") as file:
        file.write("one-more==1.0\n")
    assert machine.run("quickstart.sh")[0] == 0
    assert ["pip install" in call for call in machine.calls[before:]] == [True, False]


def test_an_environment_whose_python_is_gone_is_made_anew(machine):
    assert machine.run("quickstart.sh")[0] == 0
    (machine.checkout / ".venv-quickstart/bin/python").unlink()
    assert machine.run("quickstart.sh")[0] == 0
    assert sum("venv --clear" in call for call in machine.calls) == 2


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_an_interrupted_install_is_gone_on_with(machine, number):
    machine.says("slow_install")
    process = machine.start("quickstart.sh")
    until(lambda: any("pip install" in call for call in machine.calls), 30)
    os.killpg(process.pid, number)
    process.communicate(timeout=30)
    assert process.returncode != 0 and not any("omnir1_jax.toy" in call for call in machine.calls)
    (machine.fake / "slow_install").unlink()
    assert machine.run("quickstart.sh")[0] == 0
    words = [call.split()[1] for call in machine.calls]
    assert words == ["venv", "pip", "pip", "omnir1_jax.toy"]


def test_two_at_once(machine):
    machine.says("slow_install")
    first = machine.start("quickstart.sh")
    until(lambda: any("pip install" in call for call in machine.calls), 30)
    assert "another script is installing here" in machine.refusal("quickstart.sh")
    os.killpg(first.pid, signal.SIGKILL)
    first.communicate()
    (machine.fake / "slow_install").unlink()
    assert machine.run("quickstart.sh")[0] == 0
    out = machine.checkout / "runs/quickstart"
    assert list(out.iterdir()) == []  # the toy itself locks it, and takes no folder with anything foreign


def test_the_results_go_where_one_says(machine):
    (machine.home / "elsewhere").mkdir()
    assert machine.run("quickstart.sh", "--out", "my results", cwd=machine.home / "elsewhere")[0] == 0
    assert f"--out {machine.home}/elsewhere/my results --install_seconds" in machine.calls[-1]
    assert "needs a directory" in machine.refusal("quickstart.sh", "--out")
    (machine.home / "file").write_text("")
    assert "name another directory with --out" in machine.refusal("quickstart.sh", "--out=file")


@pytest.mark.parametrize("script", ["quickstart.sh", "test.sh"])
class TestRefusals:
    def test_python_too_old(self, machine, script):
        machine.says("version", "3.9")
        said = machine.refusal(script)
        assert "needs Python 3.11, 3.12 or 3.13 (python3 is Python 3.9)" in said and "PYTHON=python3.12" in said
        assert machine.calls == []

    def test_no_python(self, machine, script):
        broken = "#!/bin/sh\necho no such version >&2\nexit 127\n"  # as the shims of a version manager answer
        for name in INTERPRETERS:
            machine.program(name, broken)
        assert "(no python3 that runs here)" in machine.refusal(script)

    def test_another_python_that_will_do(self, machine, script):
        machine.program("python3", "#!/bin/sh\necho 3.14\n")
        machine.program("python3.13", "#!/bin/sh\nexit 1\n")
        assert "(python3 is Python 3.14)" in machine.refusal(script, PYTHON="python3")
        assert machine.run(script)[0] == 0

    def test_disk_full(self, machine, script):
        machine.program("df", DF.format(900_000))
        said = machine.refusal(script)
        assert "has 900 MB free; free some and run the same command again" in said
        assert machine.calls == []

    def test_no_network_the_first_time(self, machine, script):
        machine.says("no_network")
        said = machine.refusal(script)
        assert "no network" in said
        assert [call.split()[1] for call in machine.calls] == ["venv", "pip"]
        (machine.fake / "no_network").unlink()
        assert machine.run(script)[0] == 0

    def test_no_ensurepip(self, machine, script):
        machine.says("no_ensurepip")
        status, out, said = machine.run(script)
        assert status == 1 and "install the package python3-venv" in said.splitlines()[-1], (out, said)


def test_disk_full_after_the_install(machine):
    assert machine.run("quickstart.sh")[0] == 0
    machine.program("df", DF.format(100_000))
    assert "the run needs 500 MB" in machine.refusal("quickstart.sh")


def test_the_tests_run_on_what_one_says(machine):
    assert machine.run("test.sh", "tests/test_cli.py", "-q")[0] == 0
    assert machine.calls[1].endswith(f"--editable {machine.checkout}[test]")
    assert machine.calls[2] == "-m pytest tests/test_cli.py -q"
    assert machine.run("test.sh")[0] == 0
    assert machine.calls[3:] == ["-m pytest -n 2 --dist loadfile --no-loadscope-reorder"]


def test_the_fast_tests_run_on_each_interpreter_with_what_pip_resolves(machine):
    """`fake version` is what each fake interpreter says, so all three are 3.12 here; one of them is not installed."""
    machine.program("python3.11", "#!/bin/sh\nexit 127\n")
    status, out, said = machine.run("interpreters.sh")
    assert status == 0 and out.splitlines()[:2] == ["python3.11: not installed", "python3.12:"], said
    installs = [call for call in machine.calls if "pip install" in call]
    assert len(installs) == 2 and not any("--constraint" in call for call in installs)
    tests = [call.split() for call in machine.calls if call.startswith("-m pytest")]
    assert len(tests) == 2 and tests[0][2:4] == ["-n", "2"]
    named = [word for word in tests[0] if word.startswith("tests/")]
    assert len(named) > 5 and all((ROOT / name).exists() for name in named)
