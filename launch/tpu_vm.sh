#!/usr/bin/env bash
# Trains on Cloud TPU VMs, one slice or several: every host gets this checkout and runs launch/worker.sh.
#
# Usage: launch/tpu_vm.sh COMMAND --name NAME --zone ZONE [options] [-- options of python -m omnir1_jax.train]
#   create   request the TPU and wait for it          setup    send the checkout, create the environment on all hosts
#   run      train on all hosts                       resume   all of these, repeated after every preemption until done
#   status   of the request and its nodes             delete   delete it
# Options:
#   --project PROJECT            default: that of gcloud's configuration
#   --type TYPE                  v4-32, v5litepod-16, v5p-8, v6e-8: the slice
#   --slices N                   number of slices, joined by the data centre's network (default 1)
#   --spot, --reserved           cheaper and preemptible; from a reservation
#   --runtime-version VERSION    default: that of the type
#   --workdir gs://BUCKET/RUN    the run's work directory; training resumes from its checkpoint
#   --inputs gs://BUCKET/FOLDER  folder with weights/ and data/, copied to every host once
#   --boot-disk KEY=VALUE,...    boot disk of every host, in gcloud's syntax (default: Google's, 100 GB)
#   --data-disk source=DISK,...  your disk with a file system that contains weights/ and data/, in gcloud's
#                                syntax. With mode=read-only several hosts share it
#   --flag=FLAG                  an additional flag for gcloud's create, repeatable, such as --flag=--labels=team=ours
#   --attempts N                 failures without a preemption after which resume stops (default 3)
#   --poll SECONDS               interval between polls of the request's state (default 30)
#   --dry-run                    print the cloud commands without running them
# With several hosts gcloud needs its key in the agent: ssh-add ~/.ssh/google_compute_engine
set -euo pipefail
# shellcheck source=launch/cloud.sh
. "$(dirname "${BASH_SOURCE[0]}")/cloud.sh"
version='' attempts=3 poll=30 now='' boot_disk='' data_disk=''
REFUSED=82 # stands for a worker's status 2, which gcloud itself uses for an invalid flag

script_option() {
  case $1 in
    --runtime-version) version=$2 ;;
    --attempts) attempts=$2 ;;
    --poll) poll=$2 ;;
    --boot-disk) boot_disk=$2 ;;
    --data-disk) data_disk=$2 ;;
    *) return 1 ;;
  esac
}

# tpus GROUP VERB ARGUMENTS: gcloud's command with zone and project.
tpus() {
  local group=$1 verb=$2
  shift 2
  local call=(gcloud compute tpus "$group" "$verb" "$@" "--zone=$zone")
  [ -z "$project" ] || call+=("--project=$project")
  cloud "${call[@]}" --quiet
}

# The state of the request; LOST if one of its nodes was preempted; empty if there is no request.
state() {
  local state nodes
  state=$(tpus queued-resources list "--filter=name~/$name\$" "--format=value(state.state)") ||
    fail "gcloud could not get the state of $name"
  if [ "$state" = ACTIVE ]; then
    nodes=$(tpus tpu-vm list "--filter=name~/$name(-[0-9]+)?\$" "--format=value(state)") ||
      fail "gcloud could not get the state of the nodes of $name"
    case $nodes in *PREEMPTED* | *TERMINATED* | *STOPPED*) state=LOST ;; esac
  fi
  echo "$state"
}

runtime_version() {
  case $type in
    v6e-*) echo v2-alpha-tpuv6e ;;
    v5p-*) echo v2-alpha-tpuv5 ;;
    v5litepod-*) echo v2-alpha-tpuv5-lite ;;
    v4-* | v3-* | v2-*) echo tpu-ubuntu2204-base ;;
    *) fail "--type: $type is not one of v4-*, v5litepod-*, v5p-*, v6e-*; name its --runtime-version, or use xpk.sh for newer TPUs" ;;
  esac
}

create() {
  local request=("--accelerator-type=$type" "--runtime-version=$version")
  if [ "$slices" = 1 ]; then
    request+=("--node-id=$name")
  else
    request+=("--node-count=$slices" "--node-prefix=$name")
  fi
  [ -z "$boot_disk" ] || request+=("--boot-disk=$boot_disk")
  [ -z "$data_disk" ] || request+=("--data-disk=$data_disk")
  tpus queued-resources create "$name" "${request[@]}" ${provision:+"$provision"} "${flags[@]}" ||
    fail "gcloud could not request $name; the lines above say why"
  await
}

# Waits until the request reaches a stable state, and stores it in `now`.
await() {
  local before=''
  [ -z "$dry_run" ] || return 0
  while :; do
    now=$(state) || exit 1
    [ "$now" = "$before" ] || echo "$script: $name is ${now:-not there}" >&2
    before=$now
    case $now in ACTIVE | LOST | FAILED | SUSPENDED | '') return ;; esac
    sleep "$poll"
  done
}

setup() {
  local file
  new_scratch
  file=$scratch/omnir1_jax.tar.gz
  bundle "$file"
  tpus queued-resources scp "$file" "$name:omnir1_jax.tar.gz" --node=all --worker=all || return
  on_all "mkdir -p omnir1_jax && tar -xzf omnir1_jax.tar.gz -C omnir1_jax && omnir1_jax/launch/worker.sh --install${data_disk:+ --data-disk}"
}

# The connection to a preempted host ends after five minutes.
on_all() {
  local alive=(--ssh-flag=-oServerAliveInterval=30 --ssh-flag=-oServerAliveCountMax=10)
  tpus queued-resources ssh "$name" --node=all --worker=all "${alive[@]}" \
    "--command=($1); status=\$?; [ \$status != 2 ] || status=$REFUSED; exit \$status"
}

run() { on_all "$(worker_command omnir1_jax/launch/worker.sh)"; }

delete() { tpus queued-resources delete "$name" --force; }

# Repeats after every preemption until the training exits with status 0.
resume() {
  local failures=0 result
  if [ -n "$dry_run" ]; then # as after a preemption
    delete
    create
    setup
    run
    return
  fi
  while :; do
    await
    result=0
    case $now in
      ACTIVE)
        { setup && run; } || result=$?
        if [ "$result" -eq 0 ]; then
          echo "$script: the training is done, and $name still costs; delete it with: $script delete" >&2
          return
        fi
        await
        [ "$now" = ACTIVE ] || continue
        [ "$result" != $REFUSED ] || fail "something is invalid, or a disk is full; the lines above say what" ;;
      '') create; continue ;;
      LOST | SUSPENDED) delete; create; continue ;;
      FAILED) delete; create ;;
    esac
    failures=$((failures + 1))
    [ "$failures" -lt "$attempts" ] ||
      fail "failed $failures times without a preemption; the lines above say why, and $name may still cost: $script delete"
    sleep "$poll"
  done
}

[ $# -gt 0 ] || fail "name a command: create, setup, run, resume, status or delete; see --help"
verb=$1
shift
case $verb in
  create | setup | run | resume | status | delete) ;;
  -h | --help) usage; exit ;;
  *) fail "$verb: is not one of create, setup, run, resume, status, delete" ;;
esac
read_options "$@"
check_name --name "$name" revos
check_zone_and_slices
check_count --attempts "$attempts"
check_count --poll "$poll"
case $verb in create | resume) need --type "$type" v6e-8; version=${version:-$(runtime_version)} ;; esac
case $verb in run | resume) check_training ;; esac
need_program gcloud "see https://cloud.google.com/sdk/docs/install"
case $verb in
  status)
    tpus queued-resources describe "$name"
    tpus tpu-vm list "--filter=name~/$name(-[0-9]+)?\$" ;;
  create)
    create
    [ -n "$dry_run" ] || [ "$now" = ACTIVE ] || fail "$name is ${now:-not there}; see: $script status" ;;
  *) "$verb" ;;
esac
