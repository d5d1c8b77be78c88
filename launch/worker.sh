#!/usr/bin/env bash
# What every host of a TPU slice runs: makes the environment .venv-tpu, fetches weights and data, joins the others and
# trains. tpu_vm.sh and xpk.sh call it; it can be called by hand on a TPU VM too.
#
# Usage: launch/worker.sh [--install] [--inputs gs://BUCKET/FOLDER] [options of python -m omnir1_jax.train]
#   --install   make the environment only
#   --inputs    a folder whose weights/ and data/ are copied into the checkout once
# Ends with 0 when the training is finished, 2 where a rerun would end the same (a setting is invalid, the disk is full,
# the same crash came twice), 42 where the same command resumes (stopped by a signal, another host lost). XPK's jobs
# restart on 42.
set -euo pipefail
# shellcheck source=launch/environment.sh
. "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
venv=$root/.venv-tpu
AGAIN=42
install_only='' inputs=''
while [ $# -gt 0 ]; do
  case $1 in
    --install) install_only=yes ;;
    --inputs) [ $# -ge 2 ] || fail "--inputs: needs a folder such as gs://BUCKET/FOLDER"; inputs=$2; shift ;;
    --inputs=*) inputs=${1#--inputs=} ;;
    *) break ;;
  esac
  shift
done

cd "$root"
# A run whose terminal went away may still hold the chips; it ends by itself.
exec 9<"$root/launch/worker.sh"
flock -w 600 9 || fail "an earlier run still holds this machine; end it first"

# The images of TPU VMs have Python 3.10.
if [ ! -x "$venv/bin/python" ] && ! (find_python) 2>/dev/null; then
  if ! { python3 -m pip install --quiet --user uv && python3 -m uv python install --quiet 3.12; }; then
    fail "could not get Python 3.12; install Python 3.11 to 3.13 on this machine"
  fi
  PYTHON=$(python3 -m uv python find 3.12)
fi
make_environment "$venv" "[tpu]" 6000000
[ -z "$install_only" ] || exit 0

if [ -n "$inputs" ] && [ "$(cat .inputs 2>/dev/null)" != "$inputs" ]; then
  "$venv/bin/python" - "${inputs%/}/" "$root/" <<'PYTHON' || fail "--inputs: could not copy $inputs; the lines above say why"
import sys

import fsspec

files, folder = fsspec.core.url_to_fs(sys.argv[1])
files.get(folder.rstrip("/") + "/", sys.argv[2], recursive=True)
PYTHON
  echo "$inputs" >.inputs
fi

train='' signalled='' status=0
stop() { [ -z "$train" ] || kill -TERM "$train" 2>/dev/null || true; }
trap 'signalled=yes; stop' TERM INT HUP # before the training, so that no notice falls between the two
"$venv/bin/python" -m omnir1_jax.train --coordinator=auto "$@" &
train=$!
[ -z "$signalled" ] || stop
wait "$train" || status=$?
while [ -n "$signalled" ]; do # the signal ended the waiting, not the training
  signalled='' status=0
  wait "$train" || status=$?
done

# The training counts its own crashes and ends with 0, 2 or 42. A process that was killed, or that JAX ended because
# another was lost, has the number of a signal. What is left is a Python that could not even start.
case $status in
  0 | 2 | "$AGAIN") exit "$status" ;;
  *) [ "$status" -lt 128 ] || exit "$AGAIN"; exit 2 ;;
esac
