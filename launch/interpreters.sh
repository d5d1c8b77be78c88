#!/usr/bin/env bash
# Runs the fast tests on each supported interpreter that is installed, each in an environment .venv-test-VERSION of its
# own, at the versions that pip resolves for it (CONSTRAINTS=1: at those of launch/constraints.txt).
# Usage: launch/interpreters.sh [pytest arguments in place of --fast]
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1
[ $# -gt 0 ] || set -- --fast
failed=0
for version in 3.11 3.12 3.13; do
  if ! "python$version" -c "" >/dev/null 2>&1; then
    echo "python$version: not installed"
    continue
  fi
  echo "python$version:"
  PYTHON=python$version VENV=$PWD/.venv-test-$version CONSTRAINTS=${CONSTRAINTS:-} launch/test.sh "$@" || failed=1
done
exit $failed
