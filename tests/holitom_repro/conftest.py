"""Shared by the tests of the kit."""

import os
import textwrap
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook

from holitom_repro import paths

PARAMETERS = """
    tier: str = "tiny"  # tiny | paper
    limit: int = None  # only the first questions
    out: str = ""
    budgets: list = [0.15]  # shares
    methods: list = ["HoliTom"]
    models: dict = None
    tau: float = 0.8  # try tau=0.65
    causal: bool = True
    clip: str = "three_shots"
"""


@pytest.fixture(autouse=True)
def own_environment():
    """A command or a run changes the environment of its process; other tests keep theirs."""
    kept = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(kept)


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Cells and figures go to a folder of the test; the benchmarks' files stay where they are cached."""
    own = paths.runs
    monkeypatch.setattr(
        paths, "runs", lambda *parts: own(*parts) if parts[:1] == ("cache",) else tmp_path.joinpath(*parts)
    )
    monkeypatch.setattr(paths, "figures", lambda *parts: tmp_path.joinpath("figures", *parts))
    return tmp_path


@pytest.fixture
def kit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A checkout in a folder whose name people stumble over; kit("name", "code", ...) writes a notebook into it."""
    root = tmp_path / "a {kit}, schön & $HOME"
    (root / "notebooks").mkdir(parents=True)
    monkeypatch.setattr(paths, "root", lambda: root)

    def write(name: str, *cells: str) -> Path:
        first = new_code_cell(textwrap.dedent(PARAMETERS), metadata={"tags": ["parameters"]})
        made = new_notebook(cells=[first, *(new_code_cell(textwrap.dedent(cell)) for cell in cells)])
        nbformat.write(made, root / "notebooks" / f"{name}.ipynb")
        return root / "notebooks" / f"{name}.ipynb"

    return write
