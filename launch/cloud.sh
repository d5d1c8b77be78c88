# shellcheck shell=bash
# shellcheck disable=SC2034  # the variables set here are used by the scripts
# Sourced by the scripts that use a cloud: options, the checkout as a bundle, commands that a dry run only prints.
# shellcheck source=launch/environment.sh
. "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

name='' zone='' project='' type='' slices=1 provision='' workdir='' inputs='' dry_run=''
arguments=() flags=() scratch=''

usage() { sed -n '2,/^set/s/^# \{0,1\}//p' "$0"; }

# Parses the options of `"$@"`; what follows -- becomes `arguments`. A script's own options are parsed by its
# `script_option NAME VALUE`, which returns 1 for a name that it does not know.
read_options() {
  local option value
  while [ $# -gt 0 ]; do
    option=$1
    case $option in
      --) shift; arguments=("$@"); return ;;
      -h | --help) usage; exit ;;
      --dry-run) dry_run=yes; shift; continue ;;
      --spot | --reserved) provision=$option; shift; continue ;;
      --*=*) value=${option#*=} option=${option%%=*}; shift ;;
      --*)
        case ${2-} in '' | --*) fail "$option: needs a value; see --help" ;; esac
        value=$2; shift 2 ;;
      *) fail "$option: is not an option; options of the training go after --" ;;
    esac
    case $option in
      --name) name=$value ;;
      --zone) zone=$value ;;
      --project) project=$value ;;
      --type) type=$value ;;
      --slices) slices=$value ;;
      --workdir) workdir=$value ;;
      --inputs) inputs=$value ;;
      --flag) flags+=("$value") ;;
      *) script_option "$option" "$value" || fail "$option: is not an option; see --help" ;;
    esac
  done
}

# need OPTION VALUE EXAMPLE
need() { [ -n "$2" ] || fail "$1: is needed, such as $1 $3"; }

# check_name OPTION VALUE EXAMPLE: fails unless Google Cloud and XPK accept the name.
check_name() {
  need "$1" "$2" "$3"
  case $2 in *[!a-z0-9-]* | [!a-z]* | *-) fail "$1: '$2' has to consist of a-z, 0-9 and -, beginning with a letter" ;; esac
  [ ${#2} -le 40 ] || fail "$1: '$2' has ${#2} characters; the maximum is 40"
}

# check_count OPTION VALUE: fails unless it is a whole number.
check_count() {
  case $2 in '' | *[!0-9]*) fail "$1: '$2' has to be a whole number" ;; esac
}

check_zone_and_slices() {
  need --zone "$zone" us-east5-b
  case $slices in '' | 0* | *[!0-9]*) fail "--slices: '$slices' has to be a whole number from 1 on" ;; esac
}

check_training() {
  need --workdir "$workdir" gs://BUCKET/RUN
  case $workdir in gs://?*) ;; *) fail "--workdir: $workdir has to be gs://BUCKET/..., since the disks end with the TPU" ;; esac
  case $inputs in '' | gs://?*) ;; *) fail "--inputs: $inputs has to be gs://BUCKET/..., which every host can read" ;; esac
  case " ${arguments[*]-} " in
    *" --config="* | *" --config "*) ;;
    *) fail "the training needs its config after --, such as -- --config=configs/revos.py" ;;
  esac
}

# The arguments as one shell command; only those that need it are quoted.
quoted() {
  local word command='' mark="'\\''"
  for word in "$@"; do
    case $word in '' | *[!A-Za-z0-9_./:=,@%+~-]*) word="'${word//\'/$mark}'" ;; esac
    command+="${command:+ }$word"
  done
  printf '%s\n' "$command"
}

# Runs a command that changes the cloud; a dry run prints it.
cloud() {
  if [ -n "$dry_run" ]; then quoted "$@"; else "$@"; fi
}

need_program() {
  [ -n "$dry_run" ] || command -v "$1" >/dev/null || fail "$1 is not installed; $2"
}

# The command of every host, for its shell.
worker_command() {
  local command=("$1")
  [ -z "$inputs" ] || command+=(--inputs "$inputs")
  command+=("--workdir=$workdir" "${arguments[@]}")
  [ "$slices" = 1 ] || command+=("--config.mesh.slice=$slices")
  quoted "${command[@]}"
}

# Sets `scratch` to a new folder that is removed at exit; a dry run names one without creating it.
new_scratch() {
  [ ! -d "$scratch" ] || return 0
  scratch=${TMPDIR:-/tmp}/omnir1_jax-$name
  [ -z "$dry_run" ] || return 0
  scratch=$(mktemp -d "$scratch.XXXXXX") || fail "cannot write to ${TMPDIR:-/tmp}; set TMPDIR"
  trap 'rm -rf "$scratch"' EXIT
}

# bundle FILE: writes the committed checkout to FILE.
bundle() {
  [ -z "$dry_run" ] || return 0
  git -C "$root" archive --format=tar.gz --output "$1" HEAD ||
    fail "$root: the hosts get what git has committed here; make it a git checkout"
  git -C "$root" diff --quiet HEAD || echo "$script: uncommitted changes are not sent" >&2
}
