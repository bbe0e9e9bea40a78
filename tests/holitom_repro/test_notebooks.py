"""Running a notebook: in a kernel of this Python, with checked parameters, wherever the checkout lies; and each one."""

import ast
import io
import json
import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nbformat
import pandas as pd
import pytest
from nbformat.sign import NotebookNotary

from holitom.errors import BadUsage, CannotRun
from holitom_repro import notebooks, paths
from holitom_repro.notebooks import NOTEBOOKS

ROOT = Path(__file__).parents[2]


def printed(copy: Path) -> str:
    cells = nbformat.read(copy, 4).cells
    return "".join(one["text"] for cell in cells for one in cell.get("outputs", []) if one.get("name") == "stdout")


# ---- parameters
TYPED = [
    ("budgets", "[0.05, 0.1]", [0.05, 0.1]),
    ("budgets", "0.05,0.1", [0.05, 0.1]),
    ("budgets", "0.05", [0.05]),
    ("methods", "[HoliTom (w/o M), 'VisionZip']", ["HoliTom (w/o M)", "VisionZip"]),
    ("models", '{"onevision": "ov-7b"}', {"onevision": "ov-7b"}),
    ("limit", "30", 30),
    ("limit", "None", None),
    ("tau", "1", 1.0),
    ("tau", "1e-3", 0.001),
    ("causal", "false", False),
    ("clip", "2026-11-29T12:30:45.mp4", "2026-11-29T12:30:45.mp4"),
    ("clip", "no", "no"),
]
MISTYPED = [
    ("limit", "many", "-p limit many: not of the type int"),
    ("tau", "high", "not of the type float"),
    ("causal", "maybe", "not of the type bool"),
    ("methods", "[HoliTom", "not of the type list"),
    ("budgts", "0.1", "one has no parameter 'budgts'. Use one of tier, limit, out, budgets"),
]


def test_a_parameter_has_the_type_that_the_notebook_declares(kit):
    notebook = kit("one")
    for name, text, value in TYPED:
        got = notebooks.checked(notebook, {name: text})[name]
        assert got == value and type(got) is type(value), (name, text)
    for name, text, said in MISTYPED:
        with pytest.raises(BadUsage) as caught:
            notebooks.checked(notebook, {name: text})
        assert said in str(caught.value)


def test_a_path_is_meant_from_where_the_command_was_typed(kit, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "clip:a.mp4").touch()
    (tmp_path / "three_shots").touch()
    given = {"clip": "clip:a.mp4", "out": "results"}
    assert notebooks.checked(kit("one"), given) == {name: str(tmp_path / text) for name, text in given.items()}
    assert notebooks.checked(kit("one"), {"clip": "three_shots"}) == {"clip": "three_shots"}, "a name, not a file"


# ---- runs
def test_a_run_is_of_this_python_whatever_surrounds_it(kit, tmp_path, monkeypatch):
    other = {"argv": ["/opt/other/python", "-f", "{connection_file}"], "display_name": "other", "language": "python"}
    for name, text in {
        "kernels/python3/kernel.json": json.dumps(other),
        "profile_default/startup/mine.py": "raise SystemExit('start-up of another')",
        "matplotlibrc": "lines.linewidth: 77\n",
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    nowhere = ("JUPYTER_RUNTIME_DIR", "MPLBACKEND", "HOME", "HF_HOME", "TMPDIR", "GIT_DIR")
    foreign = dict.fromkeys(("JUPYTER_PATH", "IPYTHONDIR", "MATPLOTLIBRC"), str(tmp_path))
    for name, value in (foreign | dict.fromkeys(nowhere, "/proc/nowhere") | {"LC_ALL": "C"}).items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    code = """
        import os, sys
        from matplotlib import get_backend, rcParams
        print(sys.executable, os.getcwd(), get_backend(), rcParams["lines.linewidth"], "GIT_DIR" in os.environ)
        print(open("grüße.txt", "w").encoding, os.environ["HF_HUB_OFFLINE"], os.environ["HF_HOME"], sep="|")
    """
    done = notebooks.run("one", {"budgets": "0.15"}) if kit("one", code) else None
    first, second = printed(done.copy).splitlines()
    folder = paths.root() / "notebooks"
    assert first == f"{sys.executable} {folder} module://matplotlib_inline.backend_inline 1.5 False"
    assert second.lower() == f"utf-8|1|{paths.runs('cache', 'huggingface')}".lower() and (folder / "grüße.txt").exists()
    assert done.copy == paths.runs("tiny", "notebooks", "one.ipynb") and not done.trial, "0.15 is its own budget"
    assert NotebookNotary(data_dir=os.environ["JUPYTER_DATA_DIR"]).check_signature(nbformat.read(done.copy, 4))


def test_a_trial_never_replaces_complete_results_and_progress_arrives_on_the_terminal(kit, capsys):
    code = """
        import json
        from pathlib import Path
        from tqdm import tqdm
        for _ in tqdm(range(3), desc="cells"):
            pass
        place = Path(out or "../figures/tiny")
        (place / "one.md").write_text(f"| {budgets} |", encoding="utf-8")
        found = Path("../runs/tiny/verdicts")
        found.mkdir(parents=True, exist_ok=True)
        verdict = {"id": "one", "statement": "It holds.", "verdict": "HOLDS", "why": "ü"}
        (found / "one.json").write_text(json.dumps({"now": [verdict]}))
    """
    kit("one", code)
    whole, said = notebooks.run("one", {}), capsys.readouterr().err
    trial = notebooks.run("one", {"budgets": "0.05"})
    elsewhere = notebooks.run("one", {"out": str(paths.root() / "mine")})
    assert [done.trial for done in (whole, trial, elsewhere)] == [False, True, False]
    assert whole.files == [paths.figures("tiny", "one.md")] and whole.verdicts[0].verdict == "HOLDS"
    assert trial.files == [paths.runs("tiny", "trial", "one.md")] and "[0.05]" in trial.files[0].read_text()
    assert trial.copy == paths.runs("tiny", "trial", "notebooks", "one.ipynb")
    assert "[0.15]" in whole.files[0].read_text() and elsewhere.files == [paths.root() / "mine" / "one.md"]
    assert "cells: 100%" in said and "cells:  33%" not in said, "a bar that moves is for a terminal"
    assert "\r" not in whole.copy.read_text(encoding="utf-8"), "nothing of it in the copy"


FAILURES = [
    ("raise RuntimeError('it broke\\nbadly')", CannotRun, "bad.ipynb, cell [2]: RuntimeError: it broke. The traceback"),
    ("from holitom.errors import *; raise BadUsage('budget 2', fix='give less')", BadUsage, "budget 2. Give less. The"),
    ("import os; os.kill(os.getpid(), 9)", CannotRun, "the kernel of bad.ipynb died or did not answer"),
    ("raise KeyboardInterrupt", KeyboardInterrupt, ""),
]


@pytest.mark.parametrize(("code", "kind", "said"), FAILURES)
def test_what_a_cell_raises_is_told_in_one_line(kit, code, kind, said):
    kit("bad", code)
    with pytest.raises(kind) as caught:
        notebooks.run("bad", {})
    assert said in str(caught.value) and "\n" not in str(caught.value)
    assert "died" in said or paths.runs("tiny", "notebooks", "bad.ipynb").is_file(), "the copy with the traceback"


def test_a_folder_that_may_not_be_written_is_said_before_any_work(kit):
    kit("one", "raise ValueError('it ran')")
    with pytest.raises(OSError, match="/proc/self"):
        notebooks.run("one", {"out": "/proc/self/fdinfo"})


def test_two_runs_at_once_do_not_meet(kit):
    kit("one", "import time; time.sleep(0.5); print(budgets)")
    command = "from pathlib import Path\nimport sys\nfrom holitom_repro import notebooks, paths\n"
    command += "paths.root = lambda: Path(sys.argv[1])\nprint(notebooks.run('one', {'budgets': sys.argv[2]}).trial)"

    def start(budget: str) -> subprocess.CompletedProcess:
        words = [sys.executable, "-P", "-c", command, str(paths.root()), budget]
        return subprocess.run(words, capture_output=True, text=True)

    with ThreadPoolExecutor(2) as both:
        done = list(both.map(start, ("0.1", "0.2")))
    assert [one.stdout for one in done] == ["True\n"] * 2, [one.stderr for one in done]
    assert printed(paths.runs("tiny", "trial", "notebooks", "one.ipynb")) in ("[0.1]\n", "[0.2]\n")
    assert not list(paths.runs("tiny", "trial", "notebooks").glob(".*"))


# ---- ours
SOURCES = ROOT / "notebooks"
BEFORE_MEASURING = r"^(?=\w+ = evaluate\()"
SMALL = {"limit": "1", "benchmarks": "tiny_ego", "frames": "8", "layers_K": "[14]", "shares_R": "[0.7]"}
SMALL |= dict.fromkeys(("budgets", "control_budgets", "further_budgets", "tower_budgets"), "[0.15]")
SMALL |= {"hieravid_shares": "[0.3]", "fastv_drops": "[0.5]", "pdrop_shares": "[0.5]", "only": "[tau, stages]"}
OWN = {
    "table1": {"benchmarks": "", "methods": "[VisionZip, HoliTom]"},  # all four benchmarks, as they are printed
    "fig_tradeoff": {"methods": "[HoliTom, FastVID, FlashVID, ToMe]"},
    "fig_frames": {"frames": "[4, 8]"},
    "later_papers": {"methods": "[MMG-Vid, FlashVID, HoliTom (w/o M)]"},
}


def small(name: str) -> dict[str, str]:
    known = notebooks.parameters(SOURCES / f"{name}.ipynb")
    return {key: text for key, text in (SMALL | OWN.get(name, {})).items() if key in known and text}


def test_there_is_a_command_for_every_notebook_and_a_notebook_for_every_command():
    assert {path.stem for path in SOURCES.glob("*.ipynb")} == set(NOTEBOOKS)


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_is_stored_without_results_and_its_parameters_can_be_handed_over(name):
    made = nbformat.read(SOURCES / f"{name}.ipynb", 4)
    assert made.metadata.kernelspec.name == "python3"
    assert not [cell for cell in made.cells if cell.get("outputs") or cell.get("execution_count")]
    text = [line for cell in made.cells if cell.cell_type == "markdown" for line in cell.source.splitlines()]
    assert not [line for line in text if line.startswith("# #")] and sum(line.startswith("# ") for line in text) == 1
    found = notebooks.parameters(SOURCES / f"{name}.ipynb")
    assert found and {kind for kind, _ in found.values()} <= {"int", "float", "bool", "str", "list", "dict"}
    for _, default in found.values():
        assert repr(ast.literal_eval(default)) == default, "a literal, which papermill can replace"
    (first,) = [cell.source for cell in made.cells if "parameters" in cell.metadata.get("tags", [])]
    for one in ast.parse(first).body:
        assert "#" in "".join(first.splitlines()[one.lineno - 1 : one.end_lineno]), "what it is, what may stand there"


@pytest.mark.slow
@pytest.mark.parametrize("name", NOTEBOOKS)
def test_every_notebook_runs_from_its_first_cell_to_its_last(name, tmp_path):
    known = notebooks.parameters(SOURCES / f"{name}.ipynb")
    done = notebooks.run(name, small(name) | ({"out": str(tmp_path)} if "out" in known else {}))
    outputs = [output for cell in nbformat.read(done.copy, 4).cells for output in cell.get("outputs", [])]
    assert "error" not in {output.output_type for output in outputs} and ("out" not in known or done.files)
    assert not done.trial or all(one.verdict in ("NOT RUN", "CHECKED", "DIFFERS") for one in done.verdicts)


@pytest.mark.slow
def test_the_method_of_the_page_gets_into_the_figure(tmp_path):
    """Every block of docs/methods.md, in its order, in front of the measurement."""
    page = (ROOT / "docs" / "methods.md").read_text(encoding="utf-8")
    blocks = "\n".join(re.findall(r"^```python\n(.*?)^```", page, flags=re.DOTALL | re.MULTILINE))
    made = nbformat.read(SOURCES / "fig_tradeoff.ipynb", 4)
    (tmp_path / "notebooks").mkdir()
    for cell in made.cells:
        if "parameters" in cell.metadata.get("tags", []):
            cell.source += "\nmy_budget: float = 0.5  # of my method"
        cell.source = re.sub(BEFORE_MEASURING, lambda _: blocks, cell.source, count=1, flags=re.MULTILINE)
    nbformat.write(made, tmp_path / "notebooks" / "fig_tradeoff.ipynb")
    given = small("fig_tradeoff") | {"my_budget": "0.25", "out": str(tmp_path / "out"), "budgets": "[0.25]"}
    given |= {"methods": "[HoliTom (w/o M)]", "controls": "[Random]", "fastv_drops": "[]", "pdrop_shares": "[]"}
    done = notebooks.run("fig_tradeoff", given, tmp_path / "notebooks")
    drawn = pd.concat([pd.read_csv(path) for path in done.files if path.suffix == ".csv"])
    assert "Newest@0.25" in set(drawn["key"]) and any(path.suffix == ".png" for path in done.files)


def test_the_numbers_of_table2_are_the_recorded_ones():
    """The file that the last complete run left (.ci/run measures it anew) beside the committed one."""
    command = ["git", "-c", "safe.directory=*", "-C", str(ROOT), "show", "HEAD:figures/tiny/table2_models.csv"]
    recorded = pd.read_csv(io.BytesIO(subprocess.run(command, capture_output=True, check=True).stdout))
    measured = pd.read_csv(paths.figures("tiny", "table2_models.csv"))
    both = recorded.merge(measured, on=["model", "key"], suffixes=("", " here"), validate="one_to_one")
    assert len(both) == len(recorded) > 10
    for column, most in (("accuracy", 0.5), ("kept_pct", 0.01)):  # another processor, at most
        assert both[f"{column} here"].to_list() == pytest.approx(both[column].to_list(), abs=most)
