# shellcheck shell=bash
# Sourced by the scripts that run on this machine: creates their Python environment, once.
# The package is installed in editable mode at the versions of constraints.txt (CONSTRAINTS= : at those that pip
# resolves). PYTHON names the interpreter.
script="launch/$(basename "$0")"
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

# Exit status for an invalid setting, and for a failure after which the same command may succeed.
invalid=1 transient=1

# fail MESSAGE [STATUS]
fail() {
  echo "$script: $1" >&2
  exit "${2:-$invalid}"
}

version_of() { "$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null; }

# Sets `python` to the first interpreter of a supported version.
find_python() {
  local rejected version candidates=(python3 python3.13 python3.12 python3.11)
  [ -z "${PYTHON:-}" ] || candidates=("$PYTHON")
  for python in "${candidates[@]}"; do
    version=$(version_of "$python") || continue
    case $version in 3.11 | 3.12 | 3.13) return ;; esac
    rejected=${rejected:-"$python is Python $version"}
  done
  fail "needs Python 3.11, 3.12 or 3.13 (${rejected:-no ${candidates[0]} that runs here}); install one and name it: PYTHON=python3.12 $script"
}

# need_disk DIRECTORY KIB PURPOSE
need_disk() {
  local free_kib
  free_kib=$(df -Pk "$1" | awk 'NR == 2 {print $4}')
  [ "$free_kib" -ge "$2" ] ||
    fail "$3 needs $(($2 / 1000)) MB and the disk of $1 has $((free_kib / 1000)) MB free; free some and run the same command again"
}

# make_environment VENV EXTRAS KIB: installs if the stamp of the last install differs from what is wanted, so that
# later runs need no network. An interrupted install has no stamp and is resumed.
make_environment() {
  local venv=$1 extras=$2 kib=$3 started=$SECONDS wanted limits=()
  [ -z "${CONSTRAINTS-1}" ] || limits=(--constraint "$root/launch/constraints.txt")
  wanted="$root$extras ${#limits[@]} $(cat "$root/setup.py" "$root/pyproject.toml" "$root/launch/constraints.txt" | cksum)"
  if [ -x "$venv/bin/python" ] && [ "$(cat "$venv/.installed" 2>/dev/null)" = "$wanted" ]; then return; fi
  find_python
  exec 8<"$root/setup.py"
  if command -v flock >/dev/null && ! flock -n 8; then
    fail "another script is installing here; run the same command again when it has finished" "$transient"
  fi
  if ! "$venv/bin/python" -m pip --version >/dev/null 2>&1; then
    need_disk "$root" "$kib" "the environment"
    "$python" -m venv --clear "$venv" ||
      fail "$python could not create an environment; if the lines above name ensurepip, install the package python3-venv"
  fi
  echo "$script: installing into $venv (once; some minutes)" >&2
  "$venv/bin/python" -m pip install --quiet --disable-pip-version-check \
    ${limits[@]+"${limits[@]}"} --editable "$root$extras" ||
    fail "the install did not finish; the lines above say why (no network, a full disk, or a package that has no wheel here); run the same command again to resume" "$transient"
  echo $((SECONDS - started)) >"$venv/.install_seconds"
  echo "$wanted" >"$venv/.installed"
  exec 8<&-
}
