#!/usr/bin/env bash
# Creates (or reuses) the environment .venv-test, installs the package with its test extra, runs the tests.
# Usage: launch/test.sh [--fast] [pytest arguments]     PYTHON=python3.12 launch/test.sh   to choose the interpreter.
#   --fast   only the tests that compile little, some two minutes on two cores
set -euo pipefail
# shellcheck source=launch/environment.sh
. "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
venv=${VENV:-$root/.venv-test}

make_environment "$venv" "[test]" 6000000
cd "$root"
parallel=(-n 2 --dist loadfile --no-loadscope-reorder)
if [ "${1:-}" = --fast ]; then
  shift
  fast=(tests/config tests/data tests/evaluation tests/files tests/rewards tests/test_{rooms,flags}.py)
  set -- "${parallel[@]}" "${fast[@]}" "$@"
fi
# The files that take longest come first (tests/conftest.py), not those of most tests, so that both workers end together.
[ $# -gt 0 ] || set -- "${parallel[@]}"
# Compilation allocates from many threads: an arena each would keep what it frees.
export MALLOC_ARENA_MAX=${MALLOC_ARENA_MAX:-2}
exec "$venv/bin/python" -m pytest "$@"
