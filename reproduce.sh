#!/usr/bin/env bash
# The one door of the kit: ./reproduce.sh <target> [options]     (./reproduce.sh --help lists them)
# The first call makes .venv with locked versions; the log is runs/setup.log. Exit codes: 0 ran to its end, 1 a checked
# claim does not hold (--strict), 2 could not run (the message names the fix), 3 bad usage, 130 stopped by ctrl-C.
set -u -o pipefail

ROOT=$(cd -- "$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")" && pwd -P)
VENV=$ROOT/.venv
LOG=$ROOT/runs/setup.log
STAMP=$VENV/holitom.stamp

say() { printf '%s\n' "$*" >&2; }
die() { say "reproduce.sh: $1"; say "  fix: $2"; exit 2; }
for_paper() { case " $* " in *" --tier paper "* | *" --tier=paper "*) ;; *) return 1 ;; esac; }
has() { local want=$1 word; shift; for word in "$@"; do [ "$word" = "$want" ] && return 0; done; return 1; }

has_gpu() { [ -e /dev/nvidiactl ] || command -v nvidia-smi >/dev/null; }

step() { # step LABEL COMMAND...: one line with the seconds it took; its output goes to the log
  local label=$1 start=$SECONDS fix="read $LOG, then run the same command again: it continues"
  shift
  printf '  %-44s' "$label" >&2
  printf '\n== %s\n' "$label" >>"$LOG"
  if "$@" >>"$LOG" 2>&1; then printf '%4d s\n' $((SECONDS - start)) >&2; return; fi
  say "failed after $((SECONDS - start)) s; the last lines of $LOG:"
  tail -n 6 "$LOG" | cut -c1-160 | sed 's/^/    /' >&2
  if tail -n 40 "$LOG" | grep -q 'No space left'; then fix="free some disk space (about 3 GB are needed), then run it again"
  elif tail -n 40 "$LOG" | grep -qE 'No matching distribution|Max retries|Connection|resolution|unreachable'; then
    fix="check the network or name a mirror (PIP_INDEX_URL=...), then run it again: finished steps are kept"
  fi
  die "the environment could not be made ($label)" "$fix"
}

find_python() { # the first Python that can make an environment of the versions the lock is for
  local name
  for name in python3.12 python3.11 python3; do
    "$name" -c 'import sys, ensurepip, venv; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))' >/dev/null 2>&1 || continue
    command -v "$name"
    return
  done
  return 1
}

need_python() {
  BASE=$(find_python) || die "no Python 3.11 or 3.12 with its venv module found (python3 is: $(python3 -V 2>&1 | head -n 1))" \
    "install one, for instance: apt install python3 python3-venv, or conda env create -f environment.yml"
}

fingerprint() { # what the environment was made from: the locks, the package's metadata, the place
  { cat "$ROOT"/requirements/*.txt "$ROOT/pyproject.toml"; printf '%s' "$ROOT"; } | cksum | tr ' ' '-'
}

use_pip() { # pip held to the lock, with its caches inside the checkout
  mkdir -p "$ROOT/runs/cache" 2>/dev/null || die "cannot write to $ROOT" "use a checkout that you may write to"
  export PIP_CACHE_DIR=${PIP_CACHE_DIR:-$ROOT/runs/cache/pip} PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_USER=0
  export RUSTUP_HOME=${RUSTUP_HOME:-$ROOT/runs/cache/rustup} # pip asks rustc for its version, and rustup writes a file
  PIP=("$VENV/bin/python" -m pip install --no-input -c "$ROOT/requirements/constraints.txt")
}

set_up() {
  need_python
  [ "$(df -Pk "$ROOT" | awk 'NR == 2 { print int($4 / 1048576) }')" -ge 3 ] || "$VENV/bin/python" -c '' 2>/dev/null ||
    die "less than 3 GB free on the disk of $ROOT" "free some space: the environment takes about 2 GB (8 GB with CUDA)"
  use_pip
  exec 9>"$ROOT/runs/.setup.lock"
  command -v flock >/dev/null && { flock -n 9 || { say "waiting for another set-up of this checkout ..."; flock 9; }; }
  trap 'say; say "stopped during set-up; run the same command to continue"; exit 130' INT
  local started=$SECONDS req=$ROOT/requirements
  say "setting up $VENV (once; about 2 minutes and 2 GB; log: $LOG)"
  "$VENV/bin/python" -m pip --version >/dev/null 2>&1 || step "environment ($("$BASE" -V 2>&1))" "$BASE" -m venv --clear "$VENV"
  if ! "$VENV/bin/python" -P "$ROOT/src/holitom_repro/pins.py" locked >/dev/null 2>&1; then
    step "torch ($(sed -n 's/^torch==//p' "$req/constraints.txt"))" "${PIP[@]}" -r "$req/constraints.txt"
    step "libraries, evaluation, notebooks, tests" "${PIP[@]}" -r "$req/core.txt" -r "$req/eval.txt" -r "$req/notebooks.txt" -r "$req/dev.txt"
    step "lmms-eval, without its torchvision" "${PIP[@]}" --no-deps -r "$req/lmms-eval.txt"
  fi
  step "the package itself" "${PIP[@]}" --no-deps --no-build-isolation -e "$ROOT"
  "$VENV/bin/python" -P "$ROOT/src/holitom_repro/pins.py" locked >>"$LOG" 2>&1 ||
    die "the environment differs from the lock: $(tail -n 1 "$LOG")" "remove $VENV and run the same command again"
  rm -rf "$ROOT/runs/cache/pip" "$ROOT/runs/cache/rustup"
  fingerprint >"$STAMP"
  trap - INT
  exec 9>&-
  say "ready after $((SECONDS - started)) s"
}

choose_python() { # an activated environment that meets pyproject.toml, else .venv, made or brought up to date when needed
  local active=${VIRTUAL_ENV:-${CONDA_PREFIX:-}} lacks
  if [ -n "$active" ] && [ ! "$active" -ef "$VENV" ]; then
    PYTHON=$active/bin/python
    lacks=$("$PYTHON" -P "$ROOT/src/holitom_repro/pins.py" declared 2>&1) && return
    say "not using the activated environment $active: ${lacks:-no Python in it}"
  fi
  PYTHON=$VENV/bin/python
  [ -x "$PYTHON" ] && [ "$(cat "$STAMP" 2>/dev/null)" = "$(fingerprint)" ] && return
  set_up
}

without_environment() { # the parts of the command line that need no package: help, and doctor when the set-up fails
  [ -x "$VENV/bin/python" ] && BASE=$VENV/bin/python || need_python
  PYTHONDONTWRITEBYTECODE=1 exec "$BASE" -P -c "import sys; sys.path.insert(0, sys.argv.pop(1)); from holitom_repro.cli import main; sys.exit(main())" \
    "$ROOT/src" "$@"
}

case ${1:-help} in -h | --help | --version | help) without_environment "$@" ;; esac
has train-tiny "$@" || ! { has -h "$@" || has --help "$@"; } || without_environment "$@"
if has --dry-run "$@" && [ -z "${VIRTUAL_ENV:-${CONDA_PREFIX:-}}" ] && [ "$(cat "$STAMP" 2>/dev/null)" != "$(fingerprint)" ]; then
  said=$(without_environment "$@" --help 2>&1 >/dev/null)
  [ $? -ne 3 ] || { say "$said"; exit 3; } # a word that is not known; what the parser of a target imports may be missing
  say "would first set up $VENV (about 2 minutes and 2 GB), then run: holitom $*"
  exit 0
fi
if has doctor "$@" && ! (choose_python); then
  without_environment "$@"
fi
choose_python
if for_paper "$@" && has_gpu && [ "$PYTHON" = "$VENV/bin/python" ] && [ ! -f "$VENV/holitom.gpu" ]; then
  use_pip
  step "what the official benchmarks import" "${PIP[@]}" -r "$ROOT/requirements/eval-gpu.txt"
  rm -rf "$ROOT/runs/cache/pip" "$ROOT/runs/cache/rustup"
  touch "$VENV/holitom.gpu"
fi
exec "$PYTHON" -P -m holitom_repro "$@"
