"""The registry, the cells of each experiment, what ``list`` knows of them, and how tables reach the terminal."""

from __future__ import annotations

import json
import os

import pytest

from holitom_repro import caches, machine, paper, paths, planned, runner, screen
from holitom.errors import BadUsage, CannotRun
from holitom_repro.evaluation.cells import Cell
from holitom_repro.experiments import EXPERIMENTS, cells, find, status
from holitom_repro.experiments.registry import check_tier
from holitom_repro.scores import FEWER_FRAMES

MEASURING = [name for name, experiment in EXPERIMENTS.items() if experiment.measures]


def same(cell: Cell) -> str:
    """What makes two cells one computation, without looking at weights."""
    method = {key: value for key, value in cell.reduction.describe().items() if key != "name"}
    return json.dumps([cell.model, method, cell.benchmark, cell.frames, cell.limit, cell.saliency], sort_keys=True)


@pytest.mark.parametrize("tier", ["tiny", "paper"])
@pytest.mark.parametrize("name", MEASURING)
def test_cells_are_distinct_complete_and_limited(name, tier):
    made = cells(name, tier, 5)
    assert made and all(cell.experiment == name and cell.limit == 5 for cell in made)
    assert len({same(cell) for cell in made}) == len(made)
    settings = {(c.model, c.row, json.dumps(c.reduction.describe()), c.frames, c.saliency) for c in made}
    assert len(made) == 4 * len(settings)  # every setting on every benchmark
    full = {(c.model, c.benchmark, c.frames) for c in made if c.row == "Vanilla"}
    for cell in made:  # a difference to the full model needs the full model on the same benchmark and frames
        assert cell.row == FEWER_FRAMES or (cell.model, cell.benchmark, cell.frames) in full
        assert (cell.model, cell.benchmark) in {where[:2] for where in full}


@pytest.mark.parametrize("name", [name for name in EXPERIMENTS if name not in MEASURING])
def test_what_only_calculates_has_no_cells(name):
    assert cells(name, "tiny") == []


@pytest.mark.parametrize("tier", ["tiny", "paper"])
@pytest.mark.parametrize(("table", "skipped"), [("table1", ()), ("table2", ("ov-72b", "video-7b"))])
def test_the_tables_hold_every_printed_row_that_has_a_model(table, skipped, tier):
    made = {(c.model, c.row, round(100 * c.reduction.budget)) for c in cells(table, tier)}
    models = {"ov-7b": "onevision", "video-7b": "video"} if tier == "tiny" else {"ov-7b": "ov-7b", "ov-72b": "ov-72b"}
    for row in paper.table(table).itertuples():
        if row.model in models:
            assert (models[row.model], row.method, row.retained_pct) in made
        else:
            assert row.model in skipped


def test_table1_holds_the_adverse_controls():
    made = {(c.row, c.reduction.budget) for c in cells("table1", "tiny")}
    for budget in (0.25, 0.10):
        rows = ("Random", "Uniform stride", "Average pooling", "Saliency top-k", "Saliency bottom-k")
        sources = ("random", "control")
        swapped = [f"{row}, {source} saliency" for row in ("HoliTom", "Top-k") for source in sources]
        swapped += ["VisionZip, control saliency", "FastVID, control saliency"]
        assert {(row, budget) for row in (*rows, *swapped)} <= made
    fewer = {c.frames for c in cells("table1", "tiny") if c.row == FEWER_FRAMES}
    assert fewer == {8, 4}  # 25 and 12.5 % of 32: rounded up


def test_the_tradeoff_has_every_method_at_every_budget():
    budgets: dict[str, set[float]] = {}
    for cell in cells("fig_tradeoff", "tiny"):
        budgets.setdefault(cell.row, set()).add(cell.reduction.budget)
    everywhere = {0.25, 0.20, 0.15, 0.10, 0.05, 0.02}
    for row in ("HoliTom", "HoliTom (w/o M)", "VisionZip", "PruneVid", "FastVID", "MMG-Vid", "ToMe"):
        assert budgets[row] == everywhere, row
    for row in ("Random", "Uniform stride", "Average pooling", "Saliency top-k"):
        assert budgets[row] == everywhere, row
    assert budgets["DyCoke"] == {0.25}  # one whole frame in four
    strengths = {"FastV": 4, "PDrop": 3, "HieraVid": 3}
    for row, number in strengths.items():
        inner = {json.dumps(c.reduction.describe()) for c in cells("fig_tradeoff", "tiny") if c.row == row}
        assert len(inner) == number


def test_several_stages_stay_apart_in_the_small_model():
    for cell in cells("fig_tradeoff", "tiny"):
        layers = [stage.layer for stage in cell.reduction.inner]
        assert layers == sorted(set(layers)) and all(1 <= layer < 6 for layer in layers)


def test_inner_stages_keep_their_relative_depth():
    tiny = {c.reduction.inner[0].layer for c in cells("fig_inner", "tiny") if c.reduction.inner}
    full = {c.reduction.inner[0].layer for c in cells("fig_inner", "paper") if c.reduction.inner}
    assert tiny == {1, 2, 3, 4, 5} and full == {2, 7, 14, 18, 21}


def test_figures_reuse_the_tables_cells():
    table1 = {same(cell) for cell in cells("table1", "tiny")}
    for name, at_least in (("table2", 32), ("fig_tradeoff", 130), ("fig_inner", 12), ("fig_frames", 16)):
        assert len(table1 & {same(cell) for cell in cells(name, "tiny")}) >= at_least, name


def test_nothing_stands_for_the_72b_model_in_the_tiny_tier():
    assert {c.model for c in cells("table2", "tiny")} - {"onevision-seed1"} == {"video", "onevision"}
    assert not {c.model for c in cells("table2", "paper")} & {"video", "onevision"}


def test_unknown_names_are_refused_with_the_nearest():
    with pytest.raises(BadUsage, match="nearest: table1"):
        find("tabel1")
    with pytest.raises(BadUsage, match="nearest: tiny"):
        check_tier(EXPERIMENTS["table1"], "tinny")
    with pytest.raises(BadUsage, match="no cells in the speed tier"):
        cells("table1", "speed")


@pytest.fixture
def runs(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "runs", lambda *parts: tmp_path.joinpath(*parts))
    return tmp_path


def test_status_follows_the_cells_on_disk(runs):
    table1 = EXPERIMENTS["table1"]
    made = cells("table1", "tiny", 1)[:3]
    assert status.status(table1, "tiny").words == "not run"
    status.remember_plan(table1, "tiny", made)
    assert status.status(table1, "tiny").words == "0 of 3 cells cached"
    keys = json.loads(status.plan_path(table1, "tiny").read_text())["keys"]
    (runs / "tiny" / "cells").mkdir()
    for done, key in enumerate(keys, 1):
        (runs / "tiny" / "cells" / f"{key}.json").write_text("{}")
        assert status.status(table1, "tiny").words == f"{done} of 3 cells cached"
    status.remember_run(table1, "tiny", measuring=30.0, notebook=4.0, computed=3)
    found = status.status(table1, "tiny")
    assert (found.words, found.done, found.total, found.seconds) == ("done", 3, 3, 34.0)
    assert status.seconds_per_cell(table1, "tiny") == 10.0
    status.remember_run(table1, "tiny", measuring=0.1, notebook=4.0, computed=0)
    assert status.seconds_per_cell(table1, "tiny") == 10.0  # a run that found everything finished says nothing about it
    status.remember_run(table1, "tiny", measuring=15.0, notebook=4.0, computed=3, processes=2)
    assert status.seconds_per_cell(table1, "tiny") == 10.0  # of one process, however many there were


@pytest.mark.parametrize("text", ["[]", "null", '{"keys": 5}', '{"keys": [5]}', '{"measuring_seconds": "x"}', "{"])
def test_a_damaged_plan_counts_as_none(runs, text):
    path = status.plan_path(EXPERIMENTS["table2"], "tiny")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    assert status.status(EXPERIMENTS["table2"], "tiny").words == "not run"
    assert status.seconds_per_cell(EXPERIMENTS["table2"], "tiny") is None
    status.remember_run(EXPERIMENTS["table2"], "tiny", measuring=1.0, notebook=4.0, computed=1)
    assert status.seconds_per_cell(EXPERIMENTS["table2"], "tiny") == 1.0


def test_status_knows_when_the_code_changed(runs, monkeypatch):
    status.remember_run(EXPERIMENTS["flops"], "tiny", measuring=0.0, notebook=4.0, computed=0)
    assert status.status(EXPERIMENTS["flops"], "tiny").words == "done"
    monkeypatch.setattr(status, "code_fingerprint", lambda: "another")
    assert status.status(EXPERIMENTS["flops"], "tiny").words == "not run since the code changed"


def test_dry_run_says_what_would_be_computed(monkeypatch, capsys, runs):
    from holitom_repro.evaluation import sweep

    monkeypatch.setattr(sweep, "unfinished", lambda cells, tier, *, runs, fresh: cells[10:])
    planned.show(EXPERIMENTS["table1"], runner.Options(processes=2))
    said = capsys.readouterr().out
    total = len(cells("table1", "tiny"))
    assert f"{total} cells (settings x benchmarks), 10 finished, {total - 10} to compute in 2 processes: about" in said
    assert "HoliTom (w/o M) at 25, 20, 15, 10%" in said and "figures/tiny/" in said


def test_dry_run_of_all_counts_every_shared_cell_once(monkeypatch, capsys, runs):
    from holitom_repro.evaluation import sweep
    from holitom_repro.evaluation.cells import key

    monkeypatch.setattr(sweep, "unfinished", lambda cells, tier, *, runs, fresh: list(cells))
    assert runner.run_all(runner.Options(dry_run=True, processes=2)) == 0
    said = capsys.readouterr().out
    sweeps = [cells(name, "tiny") for name, experiment in EXPERIMENTS.items() if experiment.measures]
    different = len({key(cell, "tiny") for one in sweeps for cell in one})
    assert different < sum(map(len, sweeps))
    assert f"{different} different cells (settings x benchmarks) in all, {different} to compute: about" in said
    to_compute = [int(row.split()[2]) for row in said.splitlines() if len(row.split()) > 2 and row.split()[1].isdigit()]
    assert len(to_compute) == len(sweeps) and sum(to_compute) == different
    assert all(experiment.target in said for experiment in EXPERIMENTS.values())


def test_a_dry_run_of_the_paper_tier_needs_nothing_and_says_what_lacks(monkeypatch, capsys, runs):
    from holitom_repro.paper_tier import planning

    monkeypatch.setattr(machine, "gpu", lambda: machine.Answer(False, "no NVIDIA GPU"))
    monkeypatch.setattr(machine, "hub", lambda: machine.Answer(True, "answers"))
    monkeypatch.setattr(planning, "_gib", lambda *question: None)
    with pytest.raises(CannotRun, match="CUDA GPU"):
        runner.run(EXPERIMENTS["fig_inner"], runner.Options(tier="paper"))
    assert runner.run(EXPERIMENTS["fig_inner"], runner.Options(tier="paper", dry_run=True, processes=8)) == 0
    said = capsys.readouterr().out
    assert "0 GiB and what the hub does not say to fetch in all" in said and "on 8 processes" in said
    assert said.endswith("this machine lacks a CUDA GPU (no NVIDIA GPU)\n")


def test_whoever_is_offline_by_choice_is_not_sent_to_the_hub(monkeypatch):
    monkeypatch.setattr(machine, "gpu", lambda: machine.Answer(True, "one"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    machine.hub.cache_clear()
    assert machine.lacking("paper") == []
    machine.hub.cache_clear()


def test_the_tiny_tiers_own_closing_of_the_hub_is_not_taken_for_the_users(runs, monkeypatch):
    """A page of the tiny tier says what the paper tier lacks."""
    for variable in (*caches.FOLDERS, *caches.QUIET, *caches.OFFLINE, caches.OURS, "MPLBACKEND"):
        monkeypatch.setenv(variable, "")  # so that it is put back
        monkeypatch.delenv(variable)
    monkeypatch.setattr(machine, "gpu", lambda: machine.Answer(True, "one"))
    monkeypatch.setenv("HF_ENDPOINT", "https://127.0.0.1:1")
    machine.hub.cache_clear()
    caches.keep_inside("tiny")
    assert os.environ["HF_HUB_OFFLINE"] == "1" and "127.0.0.1 does not answer" in machine.lacking("paper")[0]
    machine.hub.cache_clear()


def test_no_cell_of_the_paper_tier_asks_the_control_tower_of_the_tiny_one():
    asked = [cell for name in EXPERIMENTS for cell in cells(name, "paper") if cell.saliency == "control"]
    assert not asked
    assert any(cell.saliency == "control" for cell in cells("table1", "tiny"))


def test_caches_stay_inside_and_the_users_choice_wins(runs, monkeypatch):
    for variable in (*caches.FOLDERS, *caches.OFFLINE):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("HF_HOME", "/mine")
    caches.keep_inside("paper")

    assert os.environ["HF_HOME"] == "/mine"
    assert os.environ["JUPYTER_DATA_DIR"].startswith(str(runs))
    assert "HF_HUB_OFFLINE" not in os.environ
    caches.keep_inside("tiny")
    assert os.environ["HF_HUB_OFFLINE"] == "1"


TABLE = """**Table 1**, tiny tier

| Method | FLOPs (T) | score · tiny_ego | verdict |
|:--|--:|--:|:--|
| **LLaVA, 32 frames: a heading that is longer than its column** | | | |
| **HoliTom** | 2.8 | 57.9 [56.7, 59.1] (−0.5 ±0.8*) | ✓ REPRODUCED |
| a\\|b | 40.8 | 58.4 [57.1, 59.6] | ✓ REPRODUCED |

note"""


def test_markdown_tables_are_drawn():
    lines = screen.draw(TABLE, 100).splitlines()
    assert lines[0] == "Table 1, tiny tier" and lines[-1] == "note"
    assert "LLaVA, 32 frames: a heading that is longer than its column" in lines
    (row,) = [line for line in lines if line.startswith("HoliTom")]
    assert row.split() == ["HoliTom", "2.8", "57.9", "[56.7,", "59.1]", "(−0.5", "±0.8*)", "✓", "REPRODUCED"]
    assert any(line.startswith("a|b") for line in lines)
    assert len({line.index("✓") for line in lines if "✓" in line}) == 1


@pytest.mark.parametrize(
    ("width", "left"), [(50, "57.9 [56.7, 59.1] (−0.5*)  ✓"), (38, "57.9 (−0.5*)  ✓"), (30, "57.9  ✓")]
)
def test_a_narrow_terminal_costs_intervals_and_never_a_digit(width, left):
    lines = screen.draw(TABLE, width).splitlines()
    (row,) = [line for line in lines if line.startswith("HoliTom")]
    assert row.endswith(left) and "2.8" in row
    assert "(shortened to fit this terminal)" in lines


@pytest.mark.parametrize(("seconds", "words"), [(9.6, "10 s"), (200, "3 min 20 s"), (7500, "2 h 5 min")])
def test_durations(seconds, words):
    assert screen.duration(seconds) == words


def test_what_a_run_wrote_is_shown(runs, monkeypatch, capsys):
    monkeypatch.setattr(paths, "root", lambda: runs)
    monkeypatch.setattr(paths, "figures", lambda *parts: runs.joinpath("figures", *parts))
    (runs / "figures" / "tiny").mkdir(parents=True)
    for name in ("old.md", "table1.md", "table1.csv"):
        (runs / "figures" / "tiny" / name).write_text(TABLE)
    for second, name in enumerate(("old.md", "table1.md", "table1.csv")):
        os.utime(runs / "figures" / "tiny" / name, (1000 * second, 1000 * second))
    screen.show(screen.written_since("tiny", 999.0))
    said = capsys.readouterr().out
    assert said.startswith(TABLE)  # not a terminal: the Markdown itself
    assert "wrote figures/tiny/table1.md .csv" in said
    assert "old" not in said
