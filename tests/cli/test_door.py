"""reproduce.sh itself, with a stand-in for Python: the environment it chooses, and what it says without one."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

FAKE = """#!/usr/bin/env bash
# Stands in for Python: passes every check but those named in $FAKE_FAILS, and prints the command line it is given.
case "$*" in
  *"-c import sys, ensurepip"*) [ "${FAKE_FAILS:-}" != version ] ;;
  *pins.py*declared*) [ "${FAKE_FAILS:-}" != declared ] || { echo "torch is missing (needs ==2.13.0)"; exit 1; } ;;
  *pins.py*locked*) [ -f "$(dirname "$0")/../complete" ] ;;
  *"-m venv"*) [ "${FAKE_FAILS:-}" != venv ] || { echo "${FAKE_SAYS:-no}" >&2; exit 1; }
    mkdir -p "${!#}/bin" && cp "$0" "${!#}/bin/python" ;;
  *"-m pip install"*"-e "*) touch "$(dirname "$0")/../complete" ;;
  *"-m pip install"*core.txt*) [ "${FAKE_FAILS:-}" != slow ] || { touch "$(dirname "$0")/slow"; sleep 30; } ;;
  *"-m pip"*) echo "cache: $PIP_CACHE_DIR"; [ "${FAKE_FAILS:-}" != pip ] || { echo "${FAKE_SAYS:-no}" >&2; exit 1; } ;;
  *) echo "ran: $*" ;;
esac
"""


@pytest.fixture
def checkout(tmp_path, root) -> Path:
    """A checkout in a folder with a space, holding what the script reads, and a Python that only pretends."""
    place = tmp_path / "a kit"
    (place / "src" / "holitom").mkdir(parents=True)
    shutil.copy(root / "reproduce.sh", place)
    shutil.copy(root / "pyproject.toml", place)
    shutil.copytree(root / "requirements", place / "requirements")
    tools = tmp_path / "tools"
    tools.mkdir()
    for name in ("python3.12", "python3.11", "python3"):
        (tools / name).write_text(FAKE)
        (tools / name).chmod(0o755)
    return place


@pytest.fixture
def door(checkout, tmp_path):
    def call(*words: str, **environment: str) -> subprocess.CompletedProcess:
        kept = {k: v for k, v in os.environ.items() if k not in ("VIRTUAL_ENV", "CONDA_PREFIX")}
        tools = {"PATH": f"{tmp_path / 'tools'}:{os.environ['PATH']}", "HOME": str(tmp_path / "home")}
        process = subprocess.Popen(
            [checkout / "reproduce.sh", *words],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            cwd=tmp_path,  # any folder but the checkout
            env={**kept, **tools, **environment},
        )
        if environment.get("FAKE_FAILS") == "slow":
            while not any(tmp_path.rglob("bin/slow")) and process.poll() is None:
                time.sleep(0.05)
            os.killpg(process.pid, signal.SIGINT)  # what ctrl-C in a terminal does
        out, err = process.communicate(timeout=60)
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    return call


def test_first_call_sets_up_and_the_second_does_not(door, checkout):
    first = door("list")
    assert first.returncode == 0, first.stderr
    assert "ran: -P -m holitom_repro list" in first.stdout
    steps = [line for line in first.stderr.splitlines() if line.startswith("  ")]
    assert len(steps) == 5 and all(line.endswith(" s") for line in steps), first.stderr
    second = door("list")
    assert second.stdout == first.stdout
    assert second.stderr == ""


def test_changed_locks_are_brought_up_to_date(door, checkout):
    door("list")
    with (checkout / "requirements" / "dev.txt").open("a") as lock:
        lock.write("six==1.17.0\n")
    assert "setting up" in door("list").stderr
    assert door("list").stderr == ""


def test_arguments_arrive_unchanged(door):
    assert "holitom demo --video a b.mp4 --budget 0.1\n" in door("demo", "--video", "a b.mp4", "--budget", "0.1").stdout


def test_the_exit_code_is_that_of_the_program(door, checkout):
    door("list")
    python = checkout / ".venv" / "bin" / "python"
    python.write_text(python.read_text().replace('echo "ran: $*"', "exit 3"))
    assert door("tabel1").returncode == 3


def test_help_needs_no_environment(door, checkout):
    done = door("table1", "--help")
    assert done.returncode == 0 and "table1 --help" in done.stdout
    assert not (checkout / ".venv").exists()


def test_dry_run_installs_nothing(door, checkout):
    done = door("table2", "--dry-run")
    assert done.returncode == 0 and "would first set up" in done.stderr
    assert not (checkout / ".venv").exists()


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["table1"], 0, "would first set up"),
        (["--tier=paper", "table1"], 0, "would first set up"),
        (["train-tiny"], 0, "would first set up"),
        (["tabel1"], 3, "no target 'tabel1'"),
        (["table1", "--tier", "papr"], 3, "no tier 'papr'"),
        (["table1", "--limit", "0"], 3, "not a whole number above 0"),
    ],
)
def test_a_dry_run_before_the_set_up_knows_its_words(door, checkout, tmp_path, root, words, code, said):
    (checkout / "src" / "holitom").rmdir()
    (checkout / "src" / "holitom").symlink_to(root / "src" / "holitom")
    bare = f'#!/usr/bin/env bash\nexec "{sys.executable}" -S "$@"\n'  # this Python, without any package
    (tmp_path / "tools" / "python3.12").write_text(bare)
    done = door(*words, "--dry-run")
    assert (done.returncode, said in done.stderr) == (code, True), done.stderr
    assert not (checkout / ".venv").exists()


@pytest.mark.parametrize("words", [["claims", "--only", "paper"], ["demo", "--video", "paper"]])
def test_the_paper_tiers_set_up_is_for_the_paper_tier_only(door, tmp_path, words):
    shutil.copy(tmp_path / "tools" / "python3", tmp_path / "tools" / "nvidia-smi")
    assert "official benchmarks" not in door(*words).stderr


@pytest.mark.parametrize("words", [["--tier", "paper"], ["--tier=paper"]])
def test_the_paper_tiers_set_up_stays_inside_the_checkout(door, checkout, tmp_path, words):
    shutil.copy(tmp_path / "tools" / "python3", tmp_path / "tools" / "nvidia-smi")
    door("list")
    shutil.rmtree(checkout / "runs")  # results may be removed; the environment is still good
    done = door("table1", *words, PIP_CACHE_DIR="")
    assert done.returncode == 0 and "what the official benchmarks import" in done.stderr, done.stderr
    assert (checkout / "runs" / "setup.log").read_text().endswith(f"cache: {checkout}/runs/cache/pip\n")
    assert door("table1", *words).stderr == ""


def test_an_activated_environment_that_fits_is_used(door, checkout, tmp_path):
    active = tmp_path / "active"
    (active / "bin").mkdir(parents=True)
    shutil.copy(tmp_path / "tools" / "python3", active / "bin" / "python")
    for variable in ("VIRTUAL_ENV", "CONDA_PREFIX"):
        done = door("list", **{variable: str(active)})
        assert "ran: -P -m holitom_repro list" in done.stdout and done.stderr == ""
        assert not (checkout / ".venv").exists()


def test_an_activated_environment_that_does_not_fit_is_named(door, checkout, tmp_path):
    active = tmp_path / "active"
    (active / "bin").mkdir(parents=True)
    shutil.copy(tmp_path / "tools" / "python3", active / "bin" / "python")
    done = door("list", VIRTUAL_ENV=str(active), FAKE_FAILS="declared")
    assert f"not using the activated environment {active}: torch is missing" in done.stderr
    assert (checkout / ".venv").exists() and done.returncode == 0


@pytest.mark.parametrize(
    ("fails", "says", "expected"),
    [
        ("version", "", "no Python 3.11 or 3.12"),
        ("venv", "[Errno 28] No space left on device", "free some disk space"),
        ("pip", "ERROR: No matching distribution found for torch==2.13.0", "check the network or name a mirror"),
        ("pip", "a compiler is missing", "then run the same command again"),
    ],
)
def test_a_set_up_that_fails_names_the_fix(door, fails, says, expected):
    done = door("list", FAKE_FAILS=fails, FAKE_SAYS=says)
    assert done.returncode == 2
    assert expected in done.stderr and "fix: " in done.stderr
    assert says in done.stderr


def test_ctrl_c_in_the_set_up(door):
    stopped = door("list", FAKE_FAILS="slow")
    assert stopped.returncode == 130
    assert "stopped during set-up; run the same command to continue" in stopped.stderr
    assert "ran: -P -m holitom_repro list" in door("list").stdout


def test_a_failed_set_up_is_taken_up_again(door):
    assert door("list", FAKE_FAILS="pip", FAKE_SAYS="no route").returncode == 2
    assert "ran: -P -m holitom_repro list" in door("list").stdout


def test_doctor_answers_even_when_the_set_up_fails(door):
    done = door("doctor", FAKE_FAILS="pip", FAKE_SAYS="no route")
    assert "ran: " in done.stdout and done.stdout.rstrip().endswith("doctor")


def test_nothing_lands_in_the_home_folder(door, tmp_path):
    door("list")
    assert not (tmp_path / "home").exists()
