"""Bad usage: exit 3, one message that names what is allowed, no traceback. Help and lists: exit 0, without torch."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from holitom_repro import cli
from holitom_repro.experiments.registry import EXPERIMENTS, ORDER, TIERS

HEAVY = ("torch", "transformers", "pandas", "matplotlib")
OWN = [name for name in cli.names() if name not in cli.FORWARDED]


def test_every_target_has_help(capsys):
    for name in OWN:
        assert cli.main([name, "--help"]) == 0
        assert "usage: ./reproduce.sh" in capsys.readouterr().out
    assert cli.main(["--help"]) == 0
    shown = capsys.readouterr().out
    assert all(f"\n    {name} " in shown or f"\n    {name}\n" in shown for name in cli.names())


@pytest.mark.parametrize("name", [name for name in cli.FORWARDED if name != "lab"])  # that one is JupyterLab's
def test_forwarded_targets_have_help_of_their_own(capsys, name):
    assert cli.main([name, "--help"]) == 0
    assert "usage: " in capsys.readouterr().out.lower()


def test_version(capsys):
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("holitom ")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["tabel1"], "nearest: table1"),
        (["fig_tradeof"], "nearest: fig-tradeoff"),
        (["table1", "--tier", "papr"], "nearest: paper"),
        (["table1", "--tier", "huge"], "tiny, speed, paper"),
        (["table1", "--limit", "0"], "whole number above 0"),
        (["table1", "--limit", "many"], "whole number above 0"),
        (["table1", "--resume", "--fresh"], "not allowed with"),
        (["table1", "--budget", "2"], "unrecognized arguments"),
        (["--tier", "papr", "table1"], "nearest: paper"),
    ],
)
def test_bad_usage_is_exit_3_in_words(capsys, words, expected):
    assert cli.main(words) == 3
    captured = capsys.readouterr()
    assert expected in captured.err
    assert "Traceback" not in captured.err


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["bench"], "bench ops"),
        (["bench", "everything"], "bench ops"),
        (["demo", "--budget", "1.5"], "outside (0, 1]"),
        (["demo", "--frames", "x"], "invalid int value"),
        (["train-tiny", "--unheard-of"], "unrecognized arguments"),
    ],
)
def test_bad_usage_of_forwarded_targets(capsys, words, expected):
    assert cli.main(words) == 3
    said = capsys.readouterr().err
    assert expected in said and "Traceback" not in said


def test_a_missing_video_is_named(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["demo", "--video", "none.mp4"]) == 2
    said = capsys.readouterr().err
    assert "none.mp4" in said and "Traceback" not in said


def test_nothing_asked_shows_help_and_is_not_a_success(capsys):
    assert cli.main([]) == 3
    assert "targets:" in capsys.readouterr().out


def test_options_may_stand_before_the_target():
    assert cli._target_first(["--tier", "tiny", "table1"]) == ["table1", "--tier", "tiny"]
    assert cli._target_first(["table1", "--tier", "tiny"]) == ["table1", "--tier", "tiny"]


@pytest.mark.parametrize(
    "words", [["list"], ["list", "--json"], ["doctor", "--json"], ["--help"], ["table1", "--help"]]
)
def test_quick_targets_import_nothing_heavy(words):
    code = (
        f"import sys; from holitom_repro.cli import main; main({words!r}); print([m for m in {HEAVY!r} if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.rstrip().endswith("[]"), done.stdout[-300:] + done.stderr


def test_list_says_everything_for_every_experiment(holitom):
    entries = json.loads(holitom("list", "--json").stdout)
    assert [entry["target"] for entry in entries] == [e.target for e in EXPERIMENTS.values()]
    for entry in entries:
        assert entry["question"] and entry["claims"] and entry["status"]["words"]
        assert entry["costs"]["tiny"]["minutes"] > 0 and entry["costs"]["tiny"]["hardware"]
    text = holitom("list").stdout
    assert all(f"\n{name} " in text for name in TIERS)


def test_all_runs_every_experiment_once():
    assert sorted(ORDER) == sorted(EXPERIMENTS)


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_letters_that_a_terminal_has_not_are_replaced(holitom, encoding):
    done = holitom("claims", "--only", "*", env={"PYTHONIOENCODING": encoding}, encoding="latin-1")
    assert done.returncode == 0 and done.stderr == "" and "?" in done.stdout


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-"])
def test_a_closed_stream_is_quiet(closed):
    command = f"{sys.executable} -P -m holitom_repro list {closed}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_closed_pipe_is_quiet():
    command = f"{sys.executable} -P -m holitom_repro list | head -n 1"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60)
    assert "experiments" in done.stdout
    assert done.stderr == ""
