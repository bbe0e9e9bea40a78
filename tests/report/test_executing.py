"""report --execute: which notebooks it executes before the site is built."""

from pathlib import Path

import pytest

from holitom_repro import execution, machine
from holitom.errors import CannotRun
from holitom_repro.evaluation import sweep
from holitom_repro.report import command

NAMES = ["01_method", "table1", "table2", "fig_inference", "explore"]


@pytest.fixture
def executed(monkeypatch):
    """The names of what would be executed."""
    names = []

    def execute(name, tier, parameters, progress):
        names.append(name)
        if name == "01_method":
            raise CannotRun("its third cell stopped", fix="look at it")
        return Path.cwd() / f"{name}.ipynb"

    monkeypatch.setattr(execution, "execute", execute)
    monkeypatch.setattr(command.paths, "root", Path.cwd)
    monkeypatch.setattr(machine, "lacking", lambda tier: [])
    return names


def test_only_what_measures_nothing_is_executed(executed, monkeypatch, capsys):
    def unfinished(cells, tier, *, runs):
        return [] if cells[0].experiment == "table2" else list(cells[-1:])

    monkeypatch.setattr(sweep, "unfinished", unfinished)
    command._execute("tiny", NAMES)
    assert executed == ["01_method", "table2", "explore"]
    assert "01_method: its third cell stopped" in capsys.readouterr().err


def test_nothing_that_the_machine_cannot_run_is_executed(executed, monkeypatch):
    monkeypatch.setattr(machine, "lacking", lambda tier: ["a CUDA GPU"])
    monkeypatch.setattr(sweep, "unfinished", lambda cells, tier, *, runs: [])
    command._execute("paper", NAMES)
    assert executed == ["explore"]
