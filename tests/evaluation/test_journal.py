"""A killed run: what is answered stays answered, what was cut short is asked again, and stages must have acted."""

from __future__ import annotations

from pathlib import Path

import pytest

from holitom.errors import CannotRun
from holitom_repro.evaluation.cells import CellFiles
from holitom_repro.evaluation.journal import Journal
from holitom_repro.evaluation.lmms import ReducedVideoModel
from holitom_repro.evaluation.sweep import BATCH, Cell, load_samples, run_cells
from holitom.methods import HoliTom
from holitom.types import Reduction

FRAMES, QUESTIONS = 8, 7


class Killed(Exception):
    """In place of a kill: raised when the model is asked a question too many."""


@pytest.fixture
def cell(model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Cell:
    monkeypatch.setattr("holitom_repro.evaluation.sweep.BATCH", BATCH | {"paper": 1})
    setting = Reduction("HoliTom", HoliTom(tau=0.8), 0.25)
    return Cell("table1", "HoliTom", str(model_folder), setting, "tiny_ego", FRAMES, limit=QUESTIONS)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of questions of every batch that reached the model; more than asked[0] in all are refused."""
    told: list[int] = []
    answer = ReducedVideoModel._answer

    def counted(self, run, batch):
        if len(told) > 3 and not (told[0] < 0):
            raise Killed
        told.append(len(batch))
        return answer(self, run, batch)

    monkeypatch.setattr(ReducedVideoModel, "_answer", counted)
    return told


def test_a_killed_run_continues_with_the_same_answers(
    cell: Cell, tmp_path: Path, asked: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked.append(-1)  # never killed
    (whole,) = run_cells([cell], "paper", runs=tmp_path / "whole", progress=False)
    assert sum(asked[1:]) == QUESTIONS
    asked.clear()
    with pytest.raises(Killed):
        run_cells([cell], "paper", runs=tmp_path / "cut", progress=False)
    assert sum(asked) == 4
    folder = CellFiles(tmp_path / "cut", "paper").journal_path(cell)
    (journal,) = folder.glob("*.jsonl")
    text = journal.read_text()
    journal.write_text(text[: len(text) - 40])  # the kill fell into the fourth line
    asked[:] = [-1]
    (continued,) = run_cells([cell], "paper", runs=tmp_path / "cut", progress=False)
    assert sum(asked[1:]) == QUESTIONS - 3
    samples = load_samples(cell, "paper", runs=tmp_path / "whole")
    assert load_samples(cell, "paper", runs=tmp_path / "cut") == samples
    assert len(samples) == QUESTIONS
    assert (continued.value, continued.budget, continued.tokens_per_layer) == (
        whole.value,
        whole.budget,
        whole.tokens_per_layer,
    )
    assert not folder.exists()


def test_fresh_forgets_the_journal(cell: Cell, tmp_path: Path, asked: list[int]) -> None:
    with pytest.raises(Killed):
        run_cells([cell], "paper", runs=tmp_path, progress=False)
    asked[:] = [-1]
    run_cells([cell], "paper", runs=tmp_path, progress=False, fresh=True)
    assert sum(asked[1:]) == QUESTIONS


def test_a_stage_that_never_acted_is_refused_on_every_try(
    cell: Cell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also when every answer comes out of the journal: the counters are kept beside the answers."""
    monkeypatch.setattr(Journal, "add", _without_counters(Journal.add))
    journal = Journal(tmp_path / "part")
    lm = ReducedVideoModel(cell.model, frames=FRAMES, device="cpu")
    lm.reduction, lm.journal = cell.reduction, journal
    requests = _requests(lm)
    lm.generate_until(requests)
    with pytest.raises(CannotRun, match="never ran"):
        lm.generate_until(requests)


def _without_counters(add):
    return lambda self, entries, calls, removed: add(self, entries, {}, {})


def _requests(lm: ReducedVideoModel) -> list:
    from lmms_eval.api.instance import Instance

    from holitom_repro.tiny import benchmarks

    benchmarks.prepare(2, ["tiny_ego"], progress=False)
    docs = [doc | {"benchmark": "tiny_ego"} for doc in benchmarks.questions("tiny_ego")[:2]]
    lm.task_dict = {"tiny_ego": {"test": docs}}

    def visual(doc: dict) -> list[str]:
        return [str(benchmarks.video_path(doc["benchmark"], doc["video"]))]

    return [
        Instance(
            request_type="generate_until",
            arguments=(doc["question"], {"max_new_tokens": 4}, visual, doc["doc_id"], "tiny_ego", "test"),
            idx=0,
            metadata={"task": "tiny_ego", "doc_id": doc["doc_id"], "repeats": 1},
        )
        for doc in docs
    ]
