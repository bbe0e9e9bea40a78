"""The rules that every notebook keeps, and a run of each from its first cell to its last at a reduced size."""

import re
from pathlib import Path

import nbformat
import pytest

from holitom_repro import paths
from holitom_repro.experiments import EXPERIMENTS
from holitom_repro.experiments.registry import missing_models

FOLDER = paths.root() / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
LIMIT = 2
NEEDS_NO_MODEL = {"01_method"}
RAW_FRAME = re.compile(r'class="dataframe"|id="T_')
"""How pandas marks a frame and a styled frame."""


def by_name(path: Path) -> str:
    return path.stem


@pytest.fixture(params=NOTEBOOKS, ids=by_name)
def notebook(request):
    return nbformat.read(request.param, as_version=4)


def test_every_experiment_has_its_notebook():
    assert {e.notebook for e in EXPERIMENTS.values()} <= {p.stem for p in NOTEBOOKS}


def test_sources_are_stored_without_outputs(notebook):
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert cell.outputs == [] and cell.execution_count is None


def test_the_kernel_is_python3_and_cell_ids_are_stable(notebook):
    assert notebook.metadata.kernelspec.name == "python3"
    assert [cell.id for cell in notebook.cells] == [f"cell-{i:02d}" for i in range(1, len(notebook.cells) + 1)]


def test_size_and_order_of_cells(notebook):
    assert 12 <= len(notebook.cells) <= 25
    for before, cell in zip(notebook.cells, notebook.cells[1:], strict=False):
        if cell.cell_type == "code":
            assert len(cell.source.splitlines()) <= 15, cell.id
            assert before.cell_type == "markdown", cell.id
    assert notebook.cells[-1].cell_type == "markdown" and "change our mind" in notebook.cells[-1].source


def test_the_first_cell_states_question_claims_and_tiers(notebook):
    text = notebook.cells[0].source
    assert text.startswith("# ") and "**Question.**" in text and "**Claims.**" in text
    assert all(f"| {tier} " in text for tier in ("tiny", "speed", "paper"))


def test_the_second_cell_holds_commented_literals(notebook):
    cell = notebook.cells[1]
    assert cell.cell_type == "code" and cell.metadata.tags == ["parameters"]
    literal = re.compile(r"^\w+: (str|int|float) = (\"[^\"]*\"|[\d.]+|None)  # .+$")
    assert all(literal.match(line) for line in cell.source.splitlines()), cell.source
    assert sum("parameters" in c.metadata.get("tags", []) for c in notebook.cells) == 1


def test_no_magics_and_no_long_functions(notebook):
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert not re.search(r"^\s*[%!]", cell.source, flags=re.MULTILINE), cell.id


def test_links_are_relative_and_lead_somewhere(notebook):
    for cell in notebook.cells:
        for target in re.findall(r"\]\(([^)#]+)", cell.source) if cell.cell_type == "markdown" else []:
            assert not target.startswith(("/", "http", "file")), target
            assert (FOLDER / target).exists(), target


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=by_name)
def test_it_runs_from_the_first_cell_to_the_last(path, tmp_path):
    papermill = pytest.importorskip("papermill")
    if path.stem not in NEEDS_NO_MODEL and (absent := missing_models("tiny")):
        pytest.skip(f"data/tiny lacks {', '.join(absent)}: ./reproduce.sh train-tiny")
    given = {"tier": "tiny", "limit": LIMIT, "out": str(tmp_path)}
    text = nbformat.read(path, as_version=4).cells[1].source
    known = {name: value for name, value in given.items() if re.search(rf"^{name}:", text, flags=re.MULTILINE)}
    done = papermill.execute_notebook(
        str(path),
        str(tmp_path / path.name),
        parameters=known,
        kernel_name="python3",
        cwd=str(paths.root()),
        progress_bar=False,
    )
    assert all(cell.execution_count for cell in done.cells if cell.cell_type == "code" and cell.source)
    outputs = [output for cell in done.cells for output in cell.get("outputs", [])]
    for output in outputs:
        shown = output.get("data", {})
        assert not RAW_FRAME.search("".join(shown.get("text/html", ""))), "a frame without headings: tables/plain.py"
        assert "{'" not in "".join([*output.get("text", ""), *shown.get("text/plain", "")]), "a dict, not words"
    assert list(tmp_path.glob("*.png")), "a notebook ends in a figure or a table"
