#!/usr/bin/env bash
# The complete method at toy size, from a fresh machine: creates the environment .venv-quickstart, installs the package,
# trains on the synthetic world, evaluates before and after, and prints the paths of report.html and summary.json. Takes
# about 15 minutes on two CPU cores. If interrupted, rerun the command to resume. Only the first run needs the network.
#
# Usage: launch/quickstart.sh [--out DIRECTORY] [options of python -m omnir1_jax.toy]
#   --out DIRECTORY   output directory (default: runs/quickstart beside this script's folder)
#   PYTHON=python3.12 launch/quickstart.sh   chooses the interpreter
set -euo pipefail
# shellcheck source=launch/environment.sh
. "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
venv=$root/.venv-quickstart
out=$root/runs/quickstart
arguments=()
while [ $# -gt 0 ]; do
  case $1 in
    -h | --help) sed -n '2,/^set/s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; exit ;;
    --out) [ $# -ge 2 ] || fail "--out: needs a directory"; out=$2; shift ;;
    --out=*) out=${1#--out=} ;;
    *) arguments+=("$1") ;;
  esac
  shift
done
[ -n "$out" ] || fail "--out: needs a directory"

make_environment "$venv" "[train,eval]" 3000000
mkdir -p "$out" || fail "cannot write to $out; name another directory with --out"
out=$(cd "$out" && pwd)
need_disk "$out" 500000 "the run"
cd "$root"
exec "$venv/bin/python" -m omnir1_jax.toy --out "$out" --install_seconds "$(cat "$venv/.install_seconds")" \
  ${arguments[@]+"${arguments[@]}"}
