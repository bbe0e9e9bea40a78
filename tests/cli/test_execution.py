"""Notebooks run in a kernel of this very environment, get the parameters they know, and fail in one line."""

from __future__ import annotations

import json
import sys

import nbformat
import pytest
from nbformat.sign import NotebookNotary
from nbformat.v4 import new_code_cell, new_notebook

from holitom_repro import caches, execution, paths
from holitom.errors import BadUsage, CannotRun

PARAMETERS = 'tier: str = "tiny"  # tiny | paper\nlimit: int = None'


@pytest.fixture
def kit(tmp_path, monkeypatch):
    """A checkout with nothing in it; kit("name", "cell", ...) writes a notebook into it."""
    (tmp_path / "notebooks").mkdir()
    monkeypatch.setattr(paths, "root", lambda: tmp_path)
    caches.keep_inside("tiny")

    def write(name: str, *cells: str) -> None:
        made = new_notebook(
            cells=[new_code_cell(PARAMETERS, metadata={"tags": ["parameters"]}), *map(new_code_cell, cells)]
        )
        made.metadata["kernelspec"] = {"name": "conda-env-somebody-py", "display_name": "x", "language": "python"}
        nbformat.write(made, tmp_path / "notebooks" / f"{name}.ipynb")

    return write


def test_a_notebook_runs_here_and_its_copy_is_kept(kit, tmp_path):
    kit("good", "import sys, os\nprint(sys.executable, os.getcwd(), tier, limit, os.environ['HF_HUB_OFFLINE'])")
    copy = execution.execute("good", "tiny", {"tier": "tiny", "limit": 7, "unknown": 1}, progress=False)
    assert copy == tmp_path / "runs" / "tiny" / "trial" / "notebooks" / "good.ipynb", "a limit: a trial"
    outputs = [cell.get("outputs", []) for cell in nbformat.read(copy, 4).cells]
    (printed,) = [output["text"] for cell in outputs for output in cell]
    assert printed.split() == [sys.executable, str(tmp_path), "tiny", "7", "1"]
    assert "unknown" not in copy.read_text()
    complete = execution.execute("good", "tiny", {"tier": "tiny", "limit": None}, progress=False)
    assert complete == tmp_path / "runs" / "tiny" / "notebooks" / "good.ipynb" and copy.is_file()


def test_an_executed_copy_is_trusted_by_this_checkouts_lab(kit, tmp_path, monkeypatch):
    place = tmp_path / "data"
    monkeypatch.setenv("JUPYTER_DATA_DIR", str(place))
    kit("good", "print(1)")
    copy = execution.execute("good", "tiny", {"tier": "tiny"}, progress=False)
    place.mkdir(exist_ok=True)
    assert not NotebookNotary(data_dir=str(place)).check_signature(nbformat.read(copy, 4))
    execution.trust(copy)
    assert NotebookNotary(data_dir=str(place)).check_signature(nbformat.read(copy, 4))


@pytest.mark.parametrize(
    ("cell", "kind", "expected"),
    [
        (
            "raise RuntimeError('it broke\\nbadly')",
            CannotRun,
            "cell In [4] of the notebook bad failed: RuntimeError: it broke",
        ),
        (
            "from holitom.errors import BadUsage\nraise BadUsage('budget 2 is outside', fix='give less')",
            BadUsage,
            "failed: budget 2 is outside. Give less",
        ),
    ],
)
def test_a_failing_cell_is_one_line_and_the_copy_is_named(kit, tmp_path, cell, kind, expected):
    kit("bad", "x = 1", cell)
    with pytest.raises(kind) as caught:
        execution.execute("bad", "tiny", {"tier": "tiny"}, progress=False)
    assert expected in str(caught.value) and "\n" not in str(caught.value)
    assert "runs/tiny/notebooks/bad.ipynb" in caught.value.fix
    assert (tmp_path / "runs/tiny/notebooks/bad.ipynb").is_file()


def test_a_kernel_that_is_killed_is_told(kit):
    kit("large", "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)  # as a full memory does")
    with pytest.raises(CannotRun, match=r"kernel of the notebook large died .*[Mm]ost often the memory"):
        execution.execute("large", "tiny", {"tier": "tiny"}, progress=False)


def test_a_kernel_that_does_not_start_in_time_is_told(kit, monkeypatch):
    import papermill

    def waited(*words, **options):
        raise RuntimeError("Kernel didn't respond in 120 seconds")  # jupyter_client.client._async_wait_for_ready

    monkeypatch.setattr(papermill, "execute_notebook", waited)
    kit("slow", "pass")
    with pytest.raises(CannotRun, match=r"kernel of the notebook slow .*respond.*memory"):
        execution.execute("slow", "tiny", {"tier": "tiny"}, progress=False)


def test_a_missing_notebook_is_named(kit):
    with pytest.raises(CannotRun, match=r"absent\.ipynb is missing"):
        execution.execute("absent", "tiny", {})


def test_a_kernel_of_another_python_is_refused(kit, tmp_path, monkeypatch):
    folder = tmp_path / "share" / "kernels" / "python3"
    folder.mkdir(parents=True)
    other = {"argv": ["/opt/other/bin/python", "-m", "ipykernel_launcher", "-f", "{connection_file}"]}
    (folder / "kernel.json").write_text(json.dumps({**other, "display_name": "other", "language": "python"}))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "share"))
    with pytest.raises(CannotRun, match="starts /opt/other/bin/python"):
        execution.kernel()


def test_every_experiment_has_a_notebook_with_parameters(root):
    from holitom_repro.experiments.registry import EXPERIMENTS

    for experiment in EXPERIMENTS.values():
        known = execution._parameters(root / "notebooks" / f"{experiment.notebook}.ipynb")
        assert "tier" in known
        assert not experiment.measures or "limit" in known


@pytest.mark.parametrize(("stop", "shown"), [(KeyboardInterrupt, False), (CannotRun, True)])
def test_a_kernel_that_is_interrupted_says_nothing(kit, capfd, monkeypatch, stop, shown):
    import papermill

    run = papermill.execute_notebook

    def ended(*words, **options):
        run(*words, **options)
        raise stop("")

    monkeypatch.setattr(papermill, "execute_notebook", ended)
    kit("loud", "import sys\nprint('complaint', file=sys.__stderr__, flush=True)")
    with pytest.raises(stop):
        execution.execute("loud", "tiny", {"tier": "tiny"}, progress=False)
    assert ("complaint" in capfd.readouterr().err) == shown
