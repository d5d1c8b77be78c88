"""What holds of every launch script, and the lines of the pages with them."""

import os
import pathlib
import re
import shlex
import subprocess

import pytest

from tests.launch.machine import ROOT, Machine

SCRIPTS = sorted(path.name for path in (ROOT / "launch").glob("*.sh"))
SOURCED = {"environment.sh", "cloud.sh"}
PAGES = "".join(path.read_text() for path in sorted((ROOT / "docs").glob("*.md"))).replace("\\\n", "")
LINES = re.findall(r"^launch/(?:tpu_vm|xpk)\.sh .*$", PAGES, re.M)


@pytest.mark.parametrize("name", SCRIPTS)
def test_it_can_be_read_and_called(name):
    path = ROOT / "launch" / name
    subprocess.run(["bash", "-n", path], check=True)
    assert os.access(path, os.X_OK) == (name not in SOURCED)
    assert (path.read_text().splitlines()[0] == "#!/usr/bin/env bash") == (name not in SOURCED)


def test_the_cloud_commands_of_the_pages_are_taken(tmp_path):
    assert LINES
    machine = Machine(tmp_path)
    for line in LINES:
        script, command, *options = shlex.split(line)
        status, out, said = machine.run(pathlib.Path(script).name, command, "--dry-run", *options)
        assert status == 0 and out and said == "", (line, said)
        config = next((o.removeprefix("--config=") for o in options if o.startswith("--config=")), None)
        assert config is None or (ROOT / config).exists(), line
