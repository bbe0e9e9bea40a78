"""The key of a cell: everything that can change the result is in it, labels are not."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from holitom.errors import BadUsage, CannotRun
from holitom_repro.evaluation import cells as module
from holitom_repro.evaluation.cells import Cell, CellFiles, key, load_samples, model_path, revision
from holitom.methods import FastV, HoliTom
from holitom_repro.results import Record
from holitom.types import Reduction

HOLITOM = Reduction("HoliTom", HoliTom(tau=0.8), 0.1)


@pytest.fixture
def cell(model_folder: Path) -> Cell:
    return Cell("table1", "HoliTom", str(model_folder), HOLITOM, "tiny_ego", 32)


def record(cell: Cell) -> Record:
    return Record(
        value=50.0, unit="points", metric="accuracy", experiment=cell.experiment, row=cell.row, tier="tiny",
        source="measured", provenance={"cpu": "test"},
    )  # fmt: skip


@pytest.mark.parametrize(
    "change",
    [
        {"reduction": dataclasses.replace(HOLITOM, budget=0.15)},
        {"reduction": dataclasses.replace(HOLITOM, outer=HoliTom(tau=0.7))},
        {"reduction": dataclasses.replace(HOLITOM, inner=(FastV(layer=2, ratio=0.5),))},
        {"benchmark": "tiny_long"},
        {"frames": 16},
        {"limit": 6},
        {"saliency": "random"},
        {"pixels": "rendered"},
    ],
)
def test_what_changes_the_result_changes_the_key(cell: Cell, change: dict) -> None:
    assert key(dataclasses.replace(cell, **change), "tiny") != key(cell, "tiny")
    assert key(cell, "paper") != key(cell, "tiny")


def test_code_recipe_and_weights_change_the_key(cell: Cell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = key(cell, "tiny")
    copy = tmp_path / "model"
    copy.mkdir()
    for path in Path(cell.model).iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    assert key(dataclasses.replace(cell, model=str(copy)), "tiny") == before  # the same weights elsewhere
    (copy / "model.safetensors").write_bytes(b"other")
    revision.cache_clear()
    assert key(dataclasses.replace(cell, model=str(copy)), "tiny") != before
    for name in ("code_fingerprint", "recipe_hash"):
        with monkeypatch.context() as patch:
            patch.setattr(module if name == "code_fingerprint" else module.benchmarks, name, lambda: "other")
            assert key(cell, "tiny") != before


def test_labels_do_not_change_the_key(cell: Cell) -> None:
    other = dataclasses.replace(
        cell, experiment="fig_tradeoff", row="ours", reduction=dataclasses.replace(HOLITOM, name="ours"), limit=300
    )
    assert key(other, "tiny") == key(cell, "tiny")  # 300 questions are all there are


def test_a_saved_cell_comes_back_under_the_labels_of_the_one_who_asks(cell: Cell, tmp_path: Path) -> None:
    files = CellFiles(tmp_path, "tiny")
    assert files.load(cell) is None
    with pytest.raises(BadUsage, match="not finished"):
        load_samples(cell, "tiny", runs=tmp_path)
    files.save(cell, record(cell), [{"doc_id": 0, "correct": 1.0}])
    assert load_samples(cell, "tiny", runs=tmp_path) == [{"doc_id": 0, "correct": 1.0}]
    other = dataclasses.replace(cell, experiment="fig_tradeoff", row="ours")
    found = files.load(other)
    assert (found.experiment, found.row, found.value) == ("fig_tradeoff", "ours", 50.0)
    assert found.method == cell.reduction.describe()


@pytest.mark.parametrize("damage", ["", "{", '{"value": 1}', "\xff"])
def test_a_damaged_file_counts_as_not_finished(cell: Cell, tmp_path: Path, damage: str) -> None:
    files = CellFiles(tmp_path, "tiny")
    files.save(cell, record(cell), [])
    files.record_path(cell).write_bytes(damage.encode("latin-1"))
    assert files.load(cell) is None


def test_a_record_without_its_samples_counts_as_not_finished(cell: Cell, tmp_path: Path) -> None:
    files = CellFiles(tmp_path, "tiny")
    files.save(cell, record(cell), [])
    files.samples_path(cell).unlink()
    assert files.load(cell) is None


@pytest.mark.parametrize("line", ["a \u2028 separator", "plain"])
def test_a_log_that_is_whole_is_read(cell: Cell, tmp_path: Path, line: str) -> None:
    files = CellFiles(tmp_path, "tiny")
    samples = [{"doc_id": i, "answer": line} for i in range(3)]
    files.save(cell, dataclasses.replace(record(cell), n=3), samples)
    assert files.load(cell) is not None and load_samples(cell, "tiny", runs=tmp_path) == samples


@pytest.mark.parametrize(
    "damage",
    [
        lambda log: b"",
        lambda log: log[:-1],
        lambda log: log[:-8],
        lambda log: log[: log.index(b"\n") + 1],
        lambda log: log.replace(b'"doc_id": 1', b'"doc_id": \0'),
        lambda log: log + b'{"doc_id": 3}\n',
        lambda log: b"1\n2\n3\n",
    ],
)
def test_a_damaged_log_counts_as_not_finished(cell: Cell, tmp_path: Path, damage) -> None:
    files = CellFiles(tmp_path, "tiny")
    files.save(cell, dataclasses.replace(record(cell), n=3), [{"doc_id": i} for i in range(3)])
    path = files.samples_path(cell)
    path.write_bytes(damage(path.read_bytes()))
    assert files.load(cell) is None


def test_samples_are_on_disk_before_the_record(cell: Cell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from holitom_repro import results

    def full(path: Path, text: str) -> Path:
        if path.suffix == ".json":
            raise CannotRun("the disk is full", fix="free some space")
        return results.write_atomic(path, text)

    monkeypatch.setattr(module, "write_atomic", full)
    files = CellFiles(tmp_path, "tiny")
    with pytest.raises(CannotRun):
        files.save(cell, record(cell), [{"doc_id": 0}])
    assert json.loads(files.samples_path(cell).read_text()) == {"doc_id": 0}
    assert files.load(cell) is None


def test_a_model_is_a_folder_or_a_hub_id(model_folder: Path) -> None:
    assert model_path(str(model_folder)) == str(model_folder.resolve())
    assert model_path("ov-7b") == "llava-hf/llava-onevision-qwen2-7b-ov-hf"
    assert model_path("someone/some-model") == "someone/some-model"
