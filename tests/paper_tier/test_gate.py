"""The baseline gate against printed scores made up for the test, and the words it stops with."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import yaml

from holitom_repro import paper, paths
from holitom_repro.claims.judging import Verdict
from holitom.errors import CannotRun
from holitom_repro.evaluation.cells import Cell
from holitom.methods import HoliTom
from holitom_repro.paper_tier import gate
from holitom_repro.results import Record
from holitom.types import Reduction

TASKS = {"mvbench": "mvbench", "longvideobench": "longvideobench_val_v", "videomme": "videomme"}


def vanilla(benchmark: str, model: str = "ov-7b", frames: int = 32, **more) -> Cell:
    return Cell("table1", "Vanilla", model, Reduction("Vanilla"), benchmark, frames, **more)


def record(cell: Cell, value: float, half: float = 1.0) -> Record:
    return Record(
        value=value,
        low=value - half,
        high=value + half,
        n=1000,
        unit="points",
        metric="accuracy",
        experiment=cell.experiment,
        row=cell.row,
        model=cell.model,
        benchmark=cell.benchmark,
        frames=cell.frames,
        tier="paper",
        source="measured",
        provenance={"made": "up for a test"},
    )


@pytest.fixture
def printed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A copy of data/papers in which the unreduced OV-7B scores 50 everywhere."""
    shutil.copytree(paths.data("papers"), tmp_path / "papers")
    file = tmp_path / "papers" / "table1.csv"
    frame = pd.read_csv(file, dtype=str)
    own = (frame["model"] == "ov-7b") & (frame["method"] == "Vanilla")
    assert own.any()
    frame.loc[own, list(paper.BENCHMARKS)] = "50.0"
    frame.to_csv(file, index=False)
    monkeypatch.setattr(paths, "data", lambda *parts: tmp_path.joinpath(*parts))
    paper._read.cache_clear()
    gate._known.cache_clear()
    yield file
    paper._read.cache_clear()
    gate._known.cache_clear()


@pytest.mark.parametrize(
    ("value", "half", "verdict"),
    [
        (50.4, 0.1, Verdict.REPRODUCED),  # within the tolerance
        (51.8, 2.0, Verdict.WITHIN_NOISE),  # further, but its interval reaches the printed score
        (52.0, 1.0, Verdict.NOT_REPRODUCED),
        (48.0, 1.0, Verdict.NOT_REPRODUCED),
        (60.0, 20.0, Verdict.NOT_RUN),  # too few questions to say anything
    ],
)
def test_the_tolerance(printed, value: float, half: float, verdict: Verdict) -> None:
    cell = vanilla("videomme")
    (judged,) = gate.judge([cell], [record(cell, value, half)])
    assert (judged.verdict, judged.printed) == (verdict, 50.0)
    if verdict is Verdict.NOT_REPRODUCED:
        with pytest.raises(CannotRun):
            gate.require([judged])
    else:
        gate.require([judged])


def test_it_stops_with_what_is_known(printed) -> None:
    cells = [vanilla("videomme"), vanilla("mvbench")]
    judged = gate.judge(cells, [record(cells[0], 53.9), record(cells[1], 50.1)])
    with pytest.raises(CannotRun) as stopped:
        gate.require(judged)
    text = str(stopped.value)
    assert "LLaVA-OneVision-7B, VideoMME: 53.9 against 50.0 (+3.9 points)" in text
    assert "MVBench:" not in text, "a baseline that fits needs no explanation"
    assert "others measured 63.9" in text
    assert "frame decoder" in text
    assert "port of the checkpoint" in text
    assert "question set of EgoSchema" not in text
    assert "--no-gate" in text


def test_questions_that_the_paper_did_not_ask_are_not_judged(printed) -> None:
    cell = vanilla("egoschema_subset")
    (judged,) = gate.judge([cell], [record(cell, 5.0)])
    assert judged.verdict is Verdict.QUOTED
    trial = replace(vanilla("videomme"), limit=8)
    (judged,) = gate.judge([trial], [record(trial, 5.0)])
    assert judged.verdict is Verdict.NOT_RUN
    gate.require([judged])


def test_only_whole_models_at_the_papers_frames_are_baselines() -> None:
    full = vanilla("videomme")
    reduced = Cell("table1", "HoliTom", "ov-7b", Reduction("HoliTom", HoliTom(), 0.1), "videomme", 32)
    cells = [reduced, full, replace(full, row="again"), vanilla("videomme", frames=64), vanilla("tiny_ego")]
    assert gate.baselines(cells) == [full]


def test_the_experiments_have_their_baselines() -> None:
    from holitom_repro.experiments import cells

    found = gate.baselines(cells("table1", "paper"))
    assert {(cell.model, cell.benchmark) for cell in found} == {("ov-7b", task) for task in paper.TASKS.values()}


def test_known_offsets_have_their_sources() -> None:
    known = yaml.safe_load(paths.data("papers", "known_offsets.yaml").read_text())
    for entry in known["measured"]:
        assert entry["source"].startswith("https://")
        assert entry["model"] in paper.MODELS
        assert entry["benchmark"] in paper.BENCHMARKS
        assert 0 < entry["value"] < 100
    for cause in known["causes"]:
        assert cause["why"]
        assert cause["source"].startswith("https://")
        assert set(cause["benchmarks"]) <= set(paper.BENCHMARKS)
