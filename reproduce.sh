#!/usr/bin/env bash
# HoliTom, reproduced:  ./reproduce.sh COMMAND [options]
#
#   list                            every notebook: question, minutes, hardware, tiers
#   table2, fig-tradeoff, ...       run that notebook, show its tables and verdicts (-p KEY VALUE: its parameters)
#   all                             every notebook, one after the other
#   claims [--json] [--strict]      every claim of the papers with its verdict here
#   demo, explore, lab              a clip in a picture; two methods side by side; JupyterLab on the notebooks
#   report, doctor, test            pages of it all; what this machine lacks for which tier; every check
#   serving                         HoliTom inside a vLLM on this CPU, in an environment of its own
#   convert, train-tiny, bench      another format's checkpoint; the small models anew; speed of the methods
#
# The first call makes .venv with locked versions: about 2 minutes and 2 GB (8 GB with CUDA), log in runs/setup.log.
# Then COMMAND --help lists options. What was stopped goes on where it was when the same command is run again.
# Exit codes: 0 done, 1 a verdict differs (--strict), 2 could not run (the message says why), 3 bad usage, 130 ctrl-C.
set -u -o pipefail
case $(trap -p INT) in # a shell has its background jobs ignore ctrl-C, and bash cannot undo that for itself
  *"''"*) env --default-signal=INT true 2>/dev/null && exec env --default-signal=INT bash "${BASH_SOURCE[0]}" "$@" ;;
esac
for fd in 0 1 2; do [ -e /dev/fd/$fd ] || eval "exec $fd<>/dev/null"; done # a stream that is closed
for name in ${!PYTHON*}; do # the user's Python is another one; a few of its variables do no harm here
  case $name in *DONTWRITEBYTECODE | *PYCACHEPREFIX | *HASHSEED | *UNBUFFERED) ;; *) unset "$name" ;; esac
done
unset CDPATH PIP_TARGET PIP_PREFIX PIP_ROOT PIP_DRY_RUN PIP_NO_DEPS PIP_REQUIRE_HASHES PIP_PYTHON PIP_IGNORE_INSTALLED PIP_CONSTRAINT
export PYTHONUTF8=1 PYTHONNOUSERSITE=1
[ "$(locale charmap 2>/dev/null)" = UTF-8 ] || export LC_ALL=C.UTF-8

ROOT=$(cd -- "$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")" && pwd -P)
VENV=$ROOT/.venv LOG=$ROOT/runs/setup.log REQ=$ROOT/requirements
PYTHON=$VENV/bin/python
PIP=("$PYTHON" -m pip install --no-input --disable-pip-version-check -c "$REQ/constraints.txt")

say() { printf '%s\n' "$*" >&2; }
die() { say "reproduce.sh: $1"; say "  fix: $2"; exit 2; }
made_from() { { cat "$REQ"/*.txt "$ROOT/pyproject.toml"; printf '%s' "$ROOT"; } | cksum | tr ' ' '-'; }
ready() { [ -x "$PYTHON" ] && [ "$(cat "$VENV/holitom.stamp" 2>/dev/null)" = "$(made_from)" ]; }
has() { for word in "${@:2}"; do [ "$word" = "$1" ] && return; done; return 1; }

step() { # step LABEL COMMAND...: one line with its seconds; what it says goes to the log
  local start=$SECONDS fix="read $LOG, then run the same command again: it continues"
  printf '  %-42s' "$1" >&2
  printf '\n== %s\n' "$1" >>"$LOG"
  "${@:2}" >>"$LOG" 2>&1 && say "$((SECONDS - start)) s" && return
  say "failed; the last lines of $LOG:"
  tail -n 5 "$LOG" | cut -c1-160 | sed 's/^/    /' >&2
  case $(tail -n 40 "$LOG") in
    *"No space left"*) fix="free about 3 GB on this disk, then run it again" ;;
    *"No matching distribution"* | *"Max retries"* | *onnection* | *resolution* | *unreachable*)
      fix="check the network or name a mirror (PIP_INDEX_URL=...), then run it again: finished steps are kept" ;;
  esac
  die "the environment could not be made ($1)" "$fix"
}

find_python() {
  for name in python3.11 python3.12 python3; do
    "$name" -c 'import sys, ensurepip, venv; sys.exit(sys.version_info[:2] not in ((3, 11), (3, 12)))' 2>/dev/null &&
      command -v "$name" && return
  done
  return 1
}

set_up() {
  local base other started=$SECONDS
  other=$({
    find "$ROOT" -maxdepth 0 ! -writable
    find "$VENV" "$ROOT/runs" -maxdepth 2 ! -type l ! -writable
  } 2>/dev/null | head -n 1)
  [ -z "$other" ] || die "$other belongs to $(stat -c %U -- "$other"), and $(id -un 2>/dev/null) may not write there" \
    "use a checkout of your own, or: sudo chown -R $(id -u) $(printf %q "$ROOT")"
  case $ROOT in *:* | *$'\n'*) die "no Python environment can be made below $ROOT" "give the folder a name without a colon" ;; esac
  base=$(find_python) || die "no Python 3.11 or 3.12 with its venv module (python3: $(python3 -V 2>&1 | head -n 1))" \
    "install one: apt install python3 python3-venv, or conda env create -f environment.yml"
  mkdir -p "$ROOT/runs/cache" || die "$ROOT/runs is no folder" "remove what is in its place"
  export PIP_USER=0 PIP_CACHE_DIR=${PIP_CACHE_DIR:-$ROOT/runs/cache/pip}
  export RUSTUP_HOME=${RUSTUP_HOME:-$ROOT/runs/cache/rustup} # pip asks rustc for its version, and rustup writes a file
  exec 9>"$ROOT/runs/.setup.lock"
  command -v flock >/dev/null && { flock -n 9 || { say "waiting for another set-up of this checkout ..."; flock 9; }; }
  ready && return
  trap 'say; say "stopped during set-up; run the same command to continue"; exit 130' INT
  say "setting up $VENV (once; about 2 minutes and 2 GB; log: $LOG)"
  "$PYTHON" -m pip --version >/dev/null 2>&1 || step "environment ($("$base" -V 2>&1))" "$base" -m venv --clear "$VENV"
  step "torch ($(sed -n 's/^torch==//p' "$REQ/constraints.txt"))" "${PIP[@]}" -r "$REQ/constraints.txt"
  step "libraries" "${PIP[@]}" -r "$REQ/core.txt" -r "$REQ/eval.txt" -r "$REQ/notebooks.txt" -r "$REQ/dev.txt"
  step "lmms-eval alone, and the packages of here" \
    "${PIP[@]}" --no-deps --no-build-isolation -r "$REQ/lmms-eval.txt" -e "$ROOT/."
  step "a look at what was made" "$PYTHON" -P -m holitom_repro.machine "$ROOT"
  rm -rf "$ROOT/runs/cache/pip" "$ROOT/runs/cache/rustup"
  made_from >"$VENV/holitom.stamp"
  trap - INT
  exec 9>&-
  say "ready after $((SECONDS - started)) s"
}

active=${VIRTUAL_ENV:-${CONDA_PREFIX:-}}
[ -z "$active" ] || [ "$active" -ef "$VENV" ] || lacks=$(
  [ -x "$active/bin/python" ] || { echo "it has no Python"; exit 1; }
  "$active/bin/python" -P -m holitom_repro.machine "$ROOT" 2>&1
)
if [ $? = 0 ] && [ -n "${lacks+asked}" ]; then # an activated environment that has everything
  PYTHON=$active/bin/python
elif ! ready; then
  if [ $# = 0 ] || has help "$@" || has --help "$@" || has -h "$@"; then
    sed -n '2,/^set /s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"
    exit $(($# ? 0 : 3))
  fi
  [ -z "${lacks+asked}" ] || say "not using the activated environment $active: ${lacks##*$'\n'}"
  set_up
fi
if { has paper "$@" || has --tier=paper "$@"; } && [ "$PYTHON" = "$VENV/bin/python" ] &&
  [ ! -f "$VENV/holitom.gpu" ] && "$PYTHON" -c 'import sys, torch; sys.exit(not torch.version.cuda)'; then
  step "what the official benchmarks import" "${PIP[@]}" -r "$REQ/eval-gpu.txt" && touch "$VENV/holitom.gpu"
fi
exec "$PYTHON" -P -m holitom_repro "$@"
