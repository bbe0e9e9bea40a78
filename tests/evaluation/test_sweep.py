"""The sweep: computed once, resumable at every point, and every number with its source."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from holitom.errors import BadUsage, CannotRun
from holitom_repro.evaluation import lmms, measuring, sweep
from holitom_repro.evaluation.sweep import Cell, load_samples, run_cells
from holitom.methods import HoliTom, HoliTomMerge, RandomDrop, SaliencyTopK
from holitom_repro.tiny import benchmarks
from holitom.types import Reduction

FULL = Reduction("Vanilla")
BOTH = Reduction("HoliTom", HoliTom(tau=0.8), 0.25, (HoliTomMerge(layer=4, ratio=0.5),))
LIMIT = 6


def cell(model: Path, reduction: Reduction = FULL, benchmark: str = "tiny_ego", **values: object) -> Cell:
    return Cell("table1", reduction.name, str(model), reduction, benchmark, 8, LIMIT, **values)


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The settings whose questions were really put to a model, in order."""
    asked: list[str] = []
    original = lmms.ReducedVideoModel.generate_until

    def generate_until(self: lmms.ReducedVideoModel, requests: list) -> list:
        asked.append(self.reduction.name)
        return original(self, requests)

    monkeypatch.setattr(lmms.ReducedVideoModel, "generate_until", generate_until)
    return asked


def test_a_cell_gives_a_complete_record_and_a_log_of_every_question(model_folder: Path, tmp_path: Path) -> None:
    wanted = cell(model_folder, BOTH)
    (record,) = run_cells([wanted], "tiny", runs=tmp_path, progress=False)
    samples = load_samples(wanted, "tiny", runs=tmp_path)
    assert [s["doc_id"] for s in samples] == list(range(LIMIT))
    docs = benchmarks.questions("tiny_ego")[:LIMIT]
    for sample, doc in zip(samples, docs, strict=True):
        assert (sample["video"], sample["type"], sample["question"]) == (doc["video"], doc["type"], doc["question"])
        assert sample["target"] == doc["answer"]
        assert sample["correct"] == float(sample["answer"].strip() == doc["answer"])
        assert 0 < sample["kept"] < sample["prompt"]
    assert record.value == pytest.approx(100 * sum(s["correct"] for s in samples) / LIMIT)
    assert record.low <= record.value <= record.high and record.n == LIMIT and record.extra["videos"] == 2
    assert (record.experiment, record.row, record.benchmark, record.frames) == ("table1", "HoliTom", "tiny_ego", 8)
    assert record.method == BOTH.describe() and record.requested_tokens == 32  # a quarter of 8 x 16
    assert record.realised_tokens == pytest.approx(sum(s["kept"] for s in samples) / LIMIT)
    budget, layers = record.budget, record.tokens_per_layer
    assert (budget.asked_share, budget.asked_tokens, budget.full_tokens, budget.full_newlines) == (0.25, 32, 128, 1)
    assert (budget.kept_tokens, budget.kept_newlines, budget.frames) == (record.realised_tokens, 1, 8)
    assert budget.layer_share == pytest.approx(sum(layers) / 6 / 128)
    assert budget.layer_share_with_newlines == pytest.approx((sum(layers) / 6 + 1) / 129)
    assert budget.off_per_frame == pytest.approx((record.realised_tokens - 32) / 8)
    assert abs(budget.farthest_off) >= abs(budget.off_per_frame)
    assert len(layers) == 6 and layers[0] == layers[3] == record.realised_tokens and layers[4] == layers[5] < layers[3]
    assert (record.dtype, record.attention, record.tier, record.source) == ("float32", "sdpa", "tiny", "measured")
    assert record.decoder.startswith("pyav") and "exact match" in record.scorer and record.model_revision
    assert record.provenance["packages"]["torch"] and record.code
    assert record.extra["flops_paper"] > 0 and record.extra["recipe"] == benchmarks.recipe_hash()
    assert set(record.extra["by_type"]) == {doc["type"] for doc in docs}


def test_a_finished_cell_is_never_computed_twice(model_folder: Path, tmp_path: Path, counted: list[str]) -> None:
    cells = [cell(model_folder), cell(model_folder, BOTH)]
    first = run_cells(cells, "tiny", runs=tmp_path, progress=False)
    assert counted == ["Vanilla", "HoliTom"] and sweep.finished(cells, "tiny", runs=tmp_path) == 2
    renamed = dataclasses.replace(cells[1], experiment="fig_tradeoff", row="ours")
    again = run_cells([*cells, renamed], "tiny", runs=tmp_path, progress=False)
    assert counted == ["Vanilla", "HoliTom"] and again[:2] == first
    assert (again[2].experiment, again[2].row, again[2].value) == ("fig_tradeoff", "ours", first[1].value)
    run_cells(cells[1:], "tiny", runs=tmp_path, progress=False, fresh=True)
    assert counted == ["Vanilla", "HoliTom", "HoliTom"]


def test_equal_cells_of_one_call_are_computed_once(model_folder: Path, tmp_path: Path, counted: list[str]) -> None:
    one = cell(model_folder)
    records = run_cells([one, dataclasses.replace(one, row="again")], "tiny", runs=tmp_path, progress=False)
    assert counted == ["Vanilla"] and [r.row for r in records] == ["Vanilla", "again"]


def test_an_interrupted_sweep_keeps_what_was_finished(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cells = [cell(model_folder), cell(model_folder, BOTH)]
    with monkeypatch.context() as patch:
        original = lmms.ReducedVideoModel._answer

        def answer(self: lmms.ReducedVideoModel, run: object, batch: list) -> list:
            if self.reduction is BOTH:
                raise KeyboardInterrupt
            return original(self, run, batch)

        patch.setattr(lmms.ReducedVideoModel, "_answer", answer)
        with pytest.raises(KeyboardInterrupt):
            run_cells(cells, "tiny", runs=tmp_path, progress=False)
    assert sweep.finished(cells, "tiny", runs=tmp_path) == 1
    run_cells(cells, "tiny", runs=tmp_path, progress=False)
    assert sweep.finished(cells, "tiny", runs=tmp_path) == 2
    assert not [p for p in (tmp_path / "tiny" / "cells").iterdir() if p.name.startswith(".")]


def test_batches_give_the_answers_of_single_questions(model_folder: Path, tmp_path: Path) -> None:
    wanted = cell(model_folder, BOTH, "tiny_general")
    logs = []
    for size in (1, 4):
        run_cells([wanted], "tiny", runs=tmp_path, progress=False, fresh=True, batch_size=size)
        logs.append(load_samples(wanted, "tiny", runs=tmp_path))
    assert logs[0] == logs[1] and len({s["answer"] for s in logs[0]}) > 1


def test_the_tower_sees_a_video_once(model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from holitom_repro.evaluation.features import FeatureStore

    seen: list[str] = []
    original = FeatureStore._encode

    def encode(self: FeatureStore, path: str, *rest: object) -> object:
        seen.append(Path(path).name)
        return original(self, path, *rest)

    monkeypatch.setattr(FeatureStore, "_encode", encode)
    settings = [FULL, BOTH, Reduction("TopK", SaliencyTopK(), 0.25)]
    run_cells([cell(model_folder, r) for r in settings], "tiny", runs=tmp_path, progress=False)
    assert seen == ["000.mp4", "001.mp4"]


def test_saliency_can_be_random_or_of_another_tower(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measuring, "CONTROL_TOWER", (str(model_folder.parent / "tower"),))
    monkeypatch.setattr("holitom_repro.evaluation.cells.CONTROL_TOWER", (str(model_folder.parent / "tower"),))
    top = Reduction("TopK", SaliencyTopK(), 0.25)
    cells = [cell(model_folder, top, saliency=s) for s in ("own", "random", "control")]
    records = run_cells(cells, "tiny", runs=tmp_path, progress=False)
    assert [r.extra["saliency"] for r in records] == ["own", "random", "control"]
    assert len({r.extra["cell"] for r in records}) == 3
    assert len({r.realised_tokens for r in records}) == 1


def test_rendered_frames_are_a_cell_of_their_own(model_folder: Path, tmp_path: Path) -> None:
    cells = [cell(model_folder, pixels=pixels) for pixels in ("file", "rendered", "file")]
    file, rendered, again = run_cells(cells, "tiny", runs=tmp_path, progress=False)
    assert file == again and rendered.extra["cell"] != file.extra["cell"]
    assert (rendered.extra["pixels"], rendered.decoder) == ("rendered", "none (rendered)")
    with pytest.raises(BadUsage, match="video files only"):
        run_cells([dataclasses.replace(cells[1], benchmark="videomme")], "paper", runs=tmp_path)


def test_a_seed_is_recorded(model_folder: Path, tmp_path: Path) -> None:
    (record,) = run_cells(
        [cell(model_folder, Reduction("RandomDrop", RandomDrop(seed=3), 0.25))], "tiny", runs=tmp_path, progress=False
    )
    assert record.seed == 3


def test_wrong_requests_are_refused_before_anything_runs(
    model_folder: Path, tmp_path: Path, counted: list[str]
) -> None:
    good = cell(model_folder)
    for cells, tier in (
        ([good], "speed"),
        ([good, dataclasses.replace(good, benchmark="tiny_sports")], "tiny"),
        ([good, dataclasses.replace(good, limit=0)], "tiny"),
        ([good, dataclasses.replace(good, saliency="loud")], "tiny"),
    ):
        with pytest.raises(BadUsage):
            run_cells(cells, tier, runs=tmp_path, progress=False)
    assert counted == []
    with pytest.raises(CannotRun):
        run_cells([dataclasses.replace(good, model="nobody/nothing")], "tiny", runs=tmp_path, progress=False)


def test_nothing_of_a_sweep_reaches_the_terminal_but_its_own_bar(
    model_folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run_cells([cell(model_folder, benchmark="tiny_long")], "tiny", runs=tmp_path)
    out, err = capfd.readouterr()
    assert out == ""
    lines = {line.split(":")[0].strip() for line in err.replace("\r", "\n").splitlines() if line.strip()}
    assert lines <= {
        "0%|          | 0/6 [00",
        f"loading {model_folder}",
        "Vanilla, tiny_long",
        "writing the tiny benchmarks",
    }


@pytest.mark.slow
def test_a_killed_sweep_goes_on_where_it_stopped(
    model_folder: Path, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = f"""
from pathlib import Path
from holitom_repro import paths
from holitom_repro.tiny import benchmarks
folder = benchmarks.folder
benchmarks.folder = lambda name, root=None: folder(name, root or Path({str(cache)!r}))
from holitom_repro.evaluation.sweep import Cell, run_cells
from holitom.methods import HoliTom
from holitom.types import Reduction
settings = [Reduction("HoliTom", HoliTom(tau=0.8), b / 100) for b in range(10, 90)]
cells = [Cell("table1", "row", {str(model_folder)!r}, setting, "tiny_ego", 8, {LIMIT}) for setting in settings]
run_cells(cells, "tiny", runs={str(tmp_path)!r}, progress=False)
"""
    done = tmp_path / "tiny" / "cells"
    process = subprocess.Popen([sys.executable, "-c", code], env={**os.environ, "OMP_NUM_THREADS": "1"})
    deadline = time.monotonic() + 120
    while len(list(done.glob("[!.]*.json"))) < 2 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    finished = sorted(p for p in done.glob("[!.]*.json"))
    assert 2 <= len(finished) < 80
    records = [json.loads(path.read_text()) for path in finished]
    for record in records:  # whole, and with its samples
        assert len((done / f"{record['extra']['cell']}.samples.jsonl").read_text().splitlines()) == LIMIT
    # a run that goes on finds them; the sources may have been edited since the other process read them
    monkeypatch.setattr("holitom_repro.evaluation.cells.code_fingerprint", lambda: records[0]["code"])
    settings = [Reduction("HoliTom", HoliTom(tau=0.8), b / 100) for b in range(10, 90)]
    cells = [dataclasses.replace(cell(model_folder, setting), row="row") for setting in settings]
    assert sweep.finished(cells, "tiny", runs=tmp_path) == len(finished)
    assert sweep.finished(cells[:2], "tiny", runs=tmp_path) == 2  # in the order of the cells
