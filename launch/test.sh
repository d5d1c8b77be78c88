#!/usr/bin/env bash
# Makes (or reuses) an environment of its own, installs the package with its test extra, runs the tests.
# Usage: launch/test.sh [pytest arguments]     PYTHON=python3.12 launch/test.sh   to choose the interpreter.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
python=${PYTHON:-python3}
venv=${VENV:-$root/.venv-test}

fail() { echo "launch/test.sh: $1" >&2; exit 1; }
command -v "$python" >/dev/null || fail "no '$python' here; install Python 3.11 to 3.13, or set PYTHON to one"
"$python" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' ||
  fail "$("$python" --version) will not do; set PYTHON to a Python 3.11, 3.12 or 3.13"
free_kib=$(df -Pk "$root" | awk 'NR == 2 {print $4}')
[ "$free_kib" -ge 6000000 ] || fail "the environment needs about 6 GB and $root has $((free_kib / 1000000)) GB free; free some disk"

[ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
stamp="$venv/.installed"
if [ ! -f "$stamp" ] || [ "$root/setup.py" -nt "$stamp" ] || [ "$root/launch/constraints.txt" -nt "$stamp" ]; then
  "$venv/bin/python" -m pip install --quiet --disable-pip-version-check \
    --constraint "$root/launch/constraints.txt" --editable "$root[test]" ||
    fail "the install did not finish; the lines above say why (no network, or a package that has no wheel here)"
  touch "$stamp"
fi
cd "$root"
[ $# -gt 0 ] || set -- -n 2 --dist loadfile
exec "$venv/bin/python" -m pytest "$@"
