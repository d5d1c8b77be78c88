#!/usr/bin/env bash
# Trains on TPUs of Google Kubernetes Engine through XPK (pip install xpk), one slice or several: this checkout is added
# to a base image, and every pod runs launch/worker.sh. A preempted or failed job restarts automatically.
#
# Usage: launch/xpk.sh COMMAND --cluster CLUSTER --name NAME --zone ZONE [options] [-- options of omnir1_jax.train]
#   cluster  create a cluster with its TPUs           run      submit the training
#   status   of the workload                          resume   submit it again when it has no restarts left
#   delete   delete the workload                      delete-cluster
# Options:
#   --project PROJECT            default: that of gcloud's configuration
#   --type TYPE                  v4-32, v5litepod-16, v5p-8, v6e-16: the slice
#   --slices N                   number of slices, joined by the data centre's network (default 1)
#   --spot, --reserved           capacity of the cluster: cheaper and preemptible; from --reservation
#   --reservation NAME           the reservation of --reserved
#   --workdir gs://BUCKET/RUN    the run's work directory; training resumes from its checkpoint
#   --inputs gs://BUCKET/FOLDER  folder with weights/ and data/, copied into every pod
#   --disk-size GB               disk of every node of the cluster, for the inputs (default: GKE's 100)
#   --image IMAGE                base image (default python:3.12)
#   --restarts N                 maximum number of restarts of the workload (default 20)
#   --grace SECONDS              time to finish a step and save when a pod is stopped (default 300). A preempted
#                                Spot node always gives its pods 15 s: the run resumes from the newest checkpoint
#   --flag=FLAG                  an additional flag for xpk, repeatable, such as --flag=--priority=high
#   --dry-run                    print the cloud commands without running them
set -euo pipefail
# shellcheck source=launch/cloud.sh
. "$(dirname "${BASH_SOURCE[0]}")/cloud.sh"
cluster='' reservation='' image=python:3.12 restarts=20 grace=300 disk_size=''

script_option() {
  case $1 in
    --cluster) cluster=$2 ;;
    --reservation) reservation=$2 ;;
    --image) image=$2 ;;
    --restarts) restarts=$2 ;;
    --grace) grace=$2 ;;
    --disk-size) disk_size=$2 ;;
    *) return 1 ;;
  esac
}

# xpk_at GROUP VERB ARGUMENTS: xpk's command with cluster, zone and project.
xpk_at() {
  local group=$1 verb=$2
  shift 2
  local call=(xpk "$group" "$verb" "--cluster=$cluster" "--zone=$zone")
  [ -z "$project" ] || call+=("--project=$project")
  cloud "${call[@]}" "$@"
}

create_cluster() {
  local capacity=--on-demand
  case $provision in
    --spot) capacity=--spot ;;
    --reserved) capacity=--reservation=$reservation ;;
  esac
  xpk_at cluster create "--tpu-type=$type" "--num-slices=$slices" "$capacity" \
    ${disk_size:+"--custom-nodepool-arguments=--disk-size=$disk_size"} "${flags[@]}"
}

run() {
  new_scratch
  if [ -z "$dry_run" ]; then
    bundle "$scratch.tar.gz"
    tar -xzf "$scratch.tar.gz" -C "$scratch"
    rm -f "$scratch.tar.gz"
  fi
  xpk_at workload create "--workload=$name" "--tpu-type=$type" "--num-slices=$slices" \
    "--base-docker-image=$image" "--script-dir=$scratch" "--max-restarts=$restarts" \
    "--termination-grace-period-seconds=$grace" "--command=bash $(worker_command launch/worker.sh)" "${flags[@]}"
}

delete() { xpk_at workload delete "--workload=$name" --force; }

[ $# -gt 0 ] || fail "name a command: cluster, run, resume, status, delete or delete-cluster; see --help"
verb=$1
shift
case $verb in
  cluster | run | resume | status | delete | delete-cluster) ;;
  -h | --help) usage; exit ;;
  *) fail "$verb: is not one of cluster, run, resume, status, delete, delete-cluster" ;;
esac
read_options "$@"
check_name --cluster "$cluster" omnir1
case $verb in cluster | delete-cluster) ;; *) check_name --name "$name" revos ;; esac
check_zone_and_slices
check_count --restarts "$restarts"
check_count --grace "$grace"
[ -z "$disk_size" ] || check_count --disk-size "$disk_size"
case $verb in cluster | run | resume) need --type "$type" v6e-16 ;; esac
case $verb in run | resume) check_training ;; esac
if [ "$provision" = --reserved ]; then need --reservation "$reservation" NAME; fi
need_program xpk "pip install xpk"
case $verb in
  cluster) create_cluster ;;
  delete-cluster) xpk_at cluster delete --force ;;
  status) xpk_at workload list "--filter-by-job=$name" ;;
  resume) delete; run ;;
  *) "$verb" ;;
esac
