#!/usr/bin/env bash
# Runs on every host of a TPU slice: creates the environment .venv-tpu, fetches weights and data, joins the other hosts
# and trains. tpu_vm.sh and xpk.sh call it; it can be called by hand on a TPU VM too.
#
# Usage: launch/worker.sh [--install] [--data-disk] [--inputs gs://BUCKET/FOLDER] [options of omnir1_jax.train]
#   --install    only create the environment
#   --data-disk  keep weights/ and data/ on the host's second disk, mounted at disk/ of the checkout
#   --inputs     a folder whose weights/ and data/ are copied into the checkout once
# Exit status: 0 if the training is done; 2 if a rerun would fail the same way (a setting is invalid, the disk is full,
# the same crash came twice); 42 if the same command resumes (stopped by a signal, another host lost, no network while
# installing or copying). XPK's jobs restart on 42.
set -euo pipefail
# shellcheck source=launch/environment.sh
. "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
venv=$root/.venv-tpu
invalid=2 transient=42
install_only='' inputs='' data_disk=''
while [ $# -gt 0 ]; do
  case $1 in
    --install) install_only=yes ;;
    --data-disk) data_disk=yes ;;
    --inputs) [ $# -ge 2 ] || fail "--inputs: needs a folder such as gs://BUCKET/FOLDER"; inputs=$2; shift ;;
    --inputs=*) inputs=${1#--inputs=} ;;
    *) break ;;
  esac
  shift
done

cd "$root"
# A run whose terminal closed may still hold the chips; it exits by itself.
exec 9<"$root/launch/worker.sh"
flock -w 600 9 || fail "an earlier run still holds this machine; end it first" "$transient"

# Mounts the one disk without partitions at disk/, which contains weights/ and data/.
mount_data_disk() {
  local device folder
  if ! mountpoint -q disk; then
    device=$(lsblk -dnpo NAME,TYPE | awk '$2 == "disk" {print $1}' | while read -r device; do
      [ "$(lsblk -npo NAME "$device" | wc -l)" != 1 ] || echo "$device"
    done)
    [ -n "$device" ] || fail "--data-disk: this host has no second disk; ask for one with tpu_vm.sh create --data-disk"
    [ "$(echo "$device" | wc -l)" = 1 ] ||
      fail "--data-disk: this host has several disks ($(echo "$device" | xargs)); mount one of them at $root/disk"
    sudo blkid "$device" >/dev/null ||
      fail "--data-disk: $device has no file system; if nothing is on it, make one on this host: sudo mkfs.ext4 -m 0 $device"
    mkdir -p disk
    sudo mount "$device" disk || fail "--data-disk: $device could not be mounted; the lines above say why"
  fi
  for folder in weights data; do
    [ -d "disk/$folder" ] || sudo install -d -o "$(id -u)" "disk/$folder" ||
      fail "--data-disk: the disk has no $folder/ and is read-only; fill it before it is attached so"
    [ -e "$folder" ] || ln -s "disk/$folder" "$folder"
  done
}
[ -z "$data_disk" ] || mount_data_disk

# The images of TPU VMs have Python 3.10.
if [ ! -x "$venv/bin/python" ] && ! (find_python) 2>/dev/null; then
  if ! { python3 -m pip install --quiet --user uv && python3 -m uv python install --quiet 3.12; }; then
    fail "could not get Python 3.12; see that this machine reaches the network, or install Python 3.11 to 3.13" "$transient"
  fi
  PYTHON=$(python3 -m uv python find 3.12)
fi
make_environment "$venv" "[tpu,train,eval]" 6000000
[ -z "$install_only" ] || exit 0

if [ -n "$inputs" ] && [ "$(cat .inputs 2>/dev/null)" != "$inputs" ]; then
  "$venv/bin/python" launch/copy_inputs.py "$inputs" "$root" || exit # with its own status
  echo "$inputs" >.inputs
fi

train='' signalled='' status=0
stop() { [ -z "$train" ] || kill -TERM "$train" 2>/dev/null || true; }
trap 'signalled=yes; stop' TERM INT HUP # set before the training starts, so that no signal is lost
"$venv/bin/python" -m omnir1_jax.train --coordinator=auto "$@" &
train=$!
[ -z "$signalled" ] || stop
wait "$train" || status=$?
while [ -n "$signalled" ]; do # the signal interrupted `wait`, not the training
  signalled='' status=0
  wait "$train" || status=$?
done

# The training counts its own crashes and exits with 0, 2 or 42. A process that was killed, or that JAX ended because
# another was lost, has the status of a signal. Any other status is a Python that could not start.
case $status in
  0 | 2 | "$transient") exit "$status" ;;
  *) [ "$status" -lt 128 ] || exit "$transient"; exit 2 ;;
esac
