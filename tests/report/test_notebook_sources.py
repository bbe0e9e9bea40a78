"""What keeps the notebooks in git clean and true: stripping, and tier tables that say what the registry says."""

import json

import nbformat
import pytest

from holitom_repro import paths
from holitom_repro.experiments import EXPERIMENTS
from holitom_repro.report import tiers
from holitom_repro.strip import main, strip, stripped

SOURCES = sorted((paths.root() / "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.stem)
def test_the_hook_would_leave_every_source_as_it_is(path):
    notebook = json.loads(path.read_text(encoding="utf-8"))
    assert stripped(notebook) == notebook


def test_stripping_takes_out_what_a_run_leaves(tmp_path, capsys):
    clean = nbformat.read(SOURCES[0], as_version=4)
    path = tmp_path / "n.ipynb"
    nbformat.write(clean, path)
    before = path.read_text(encoding="utf-8")
    assert not strip(path) and path.read_text(encoding="utf-8") == before
    ran = nbformat.read(path, as_version=4)
    ran.metadata["papermill"] = {"end_time": "now"}
    for number, cell in enumerate(cell for cell in ran.cells if cell.cell_type == "code"):
        cell.execution_count = number
        cell.outputs = [nbformat.v4.new_output("stream", text="x")]
        cell.metadata["papermill"] = {"status": "completed"}
    injected = nbformat.v4.new_code_cell("limit = 2", metadata={"tags": ["injected-parameters"]})
    ran.cells.insert(2, injected)
    nbformat.write(ran, path)
    assert main([str(path)]) == 1
    assert "add it again" in capsys.readouterr().out
    assert path.read_text(encoding="utf-8") == before
    assert main([str(path)]) == 0


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_minutes_and_hardware_are_those_of_the_registry(name):
    experiment = EXPERIMENTS[name]
    path = paths.root() / "notebooks" / f"{experiment.notebook}.ipynb"
    text = nbformat.read(path, as_version=4).cells[0].source
    assert tiers.told(text, experiment) == text, "python -m holitom_repro.report.tiers writes it"


def test_a_stale_row_is_rewritten_and_a_tier_that_is_not_offered_is_not():
    experiment = EXPERIMENTS["table1"]
    head = "| tier | what | minutes | hardware |\n|---|---|---|---|\n"
    text = f"{head}| tiny (default) | x | 99 | abacus |\n| speed | no | | |"
    made = tiers.told(text, experiment).split("\n")
    assert made[2].startswith("| tiny (default) | x | ") and "99" not in made[2] and made[2].endswith("| 2 CPU cores |")
    assert made[3] == "| speed | no | | |"
