"""Records refuse what cannot be judged, and files survive what disks and users do."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest

from holitom_repro import provenance as provenance_module
from holitom.budgets import TokenBudget
from holitom.errors import BadUsage, CannotRun
from holitom_repro.provenance import meaning
from holitom_repro.results import Record, code_fingerprint, load_records, provenance, save_records, write_atomic

BASE = {"value": 57.9, "unit": "%", "metric": "score", "experiment": "table1", "row": "HoliTom@10%", "tier": "tiny"}


def record(**changes) -> Record:
    return Record(**{**BASE, "source": "derived", **changes})


def test_round_trip() -> None:
    full = record(
        source="measured",
        low=55.0,
        high=60.5,
        n=300,
        method={"name": "HoliTom", "inner": [{"layer": 4}]},
        tokens_per_layer=(52, 52, 26.0),
        provenance={"python": "3.11"},
        extra={"groups": 100},
    )
    assert Record.from_json(full.to_json()) == full
    assert "\n" not in full.to_json()


@pytest.mark.parametrize(
    "changes",
    [
        {"tier": "smoke"},
        {"source": "reported"},
        {"source": "measured"},
        {"value": float("nan")},
        {"value": True},
        {"low": 1.0},
        {"low": 2.0, "high": 1.0},
        {"n": -1},
        {"unit": ""},
    ],
)
def test_refused_records(changes: dict) -> None:
    with pytest.raises(BadUsage):
        record(**changes)


def test_unknown_and_missing_fields_are_refused_by_name() -> None:
    line = json.loads(record().to_json())
    with pytest.raises(BadUsage, match="'speedup'"):
        Record.from_dict({**line, "speedup": 2})
    del line["unit"]
    with pytest.raises(BadUsage, match="'unit'"):
        Record.from_dict(line)
    with pytest.raises(BadUsage, match="not a JSON line"):
        Record.from_json("{")
    with pytest.raises(BadUsage, match="JSON object"):
        Record.from_json("[1]")


@pytest.mark.parametrize(
    "changes",
    [
        {"extra": 1}, {"extra": None}, {"provenance": [1]}, {"method": "HoliTom"}, {"tokens_per_layer": 5},
        {"tokens_per_layer": ["5"]}, {"budget": 5}, {"model": None}, {"created": 5}, {"frames": "32"}, {"code": []},
    ],
)  # fmt: skip
def test_another_kind_of_value_in_a_file_is_refused(changes: dict) -> None:
    line = json.dumps(json.loads(record().to_json()) | changes)
    with pytest.raises(BadUsage, match=next(iter(changes))):
        Record.from_json(line)


def test_what_is_not_json_is_refused_when_written() -> None:
    with pytest.raises(BadUsage, match="not JSON"):
        record(extra={"where": Path("x")}).to_json()


def test_the_key_names_the_result_not_the_occasion() -> None:
    one = record(created="2026-01-01T00:00:00+00:00")
    assert one.key == record(created="2027-01-01T00:00:00+00:00", provenance={"python": "3.12"}).key
    assert one.key != record(value=58.0).key


def test_save_load_append(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "a.jsonl"
    save_records(path, [record(row="a")])
    save_records(path, [record(row="b")], append=True)
    assert [r.row for r in load_records(path)] == ["a", "b"]
    save_records(path, [record(row="c")])
    assert [r.row for r in load_records(path)] == ["c"]
    assert [p.name for p in path.parent.iterdir()] == ["a.jsonl"]  # no drafts, no locks left


def test_append_mends_a_missing_last_newline(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(record(row="a").to_json())
    save_records(path, [record(row="b")], append=True)
    assert [r.row for r in load_records(path)] == ["a", "b"]


def test_a_folder_is_read_without_its_sample_logs(tmp_path: Path) -> None:
    save_records(tmp_path / "x" / "1.json", [record(row="a")])
    save_records(tmp_path / "2.jsonl", [record(row="b")])
    (tmp_path / "1.samples.jsonl").write_text('{"doc_id": 1}\n')
    assert sorted(r.row for r in load_records(tmp_path)) == ["a", "b"]
    assert load_records(tmp_path / "nothing-yet") == []


def test_a_damaged_file_is_named_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(record().to_json() + "\n" + '{"value": 1')
    with pytest.raises(CannotRun, match=r"a\.jsonl, line 2"):
        load_records(path)
    with pytest.raises(CannotRun, match="no records file"):
        load_records(tmp_path / "missing.jsonl")


def test_a_budget_is_part_of_the_line_and_older_lines_are_still_read() -> None:
    budget = TokenBudget(
        asked_share=0.1, asked_tokens=51, full_tokens=512, full_newlines=1, kept_tokens=59.5, kept_newlines=1,
        layer_tokens=40.0, layer_newlines=1, frames=32, off_per_frame=0.265625, farthest_off=0.5,
    )  # fmt: skip
    full, bare = record(budget=budget), record()
    assert Record.from_json(full.to_json()) == full and Record.from_json(full.to_json()).budget == budget
    assert Record.from_dict(json.loads(full.to_json())).budget.share == 59.5 / 512
    assert full.key == record(budget=budget.as_dict()).key != bare.key
    assert "budget" not in json.loads(bare.to_json())  # a record without one keeps the line, and the key, it had
    assert Record.from_json(bare.to_json()).budget is None
    with pytest.raises(BadUsage, match="frames"):
        record(budget={"asked_share": 0.1})


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_full_disk_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    path = save_records(tmp_path / "a.jsonl", [record(row="old")])

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, step, full)
    with pytest.raises(CannotRun, match="disk is full") as caught:
        save_records(path, [record(row="new")])
    monkeypatch.undo()
    assert "same command again" in str(caught.value)
    assert [r.row for r in load_records(path)] == ["old"]
    assert [p.name for p in tmp_path.iterdir()] == ["a.jsonl"]


def test_an_interrupt_while_writing_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_atomic(tmp_path / "a.txt", b"old")

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_atomic(path, "new")
    assert path.read_text() == "old" and len(list(tmp_path.iterdir())) == 1


def test_a_path_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for append in (False, True):
        with pytest.raises(CannotRun, match="cannot be written"):
            save_records(tmp_path / "file" / "a.jsonl", [record()], append=append)


def test_provenance_names_versions_and_machine_but_no_person_or_path() -> None:
    found = provenance()
    assert found["packages"]["torch"] and found["cores"] >= 1 and found["threads"] >= 1
    text = json.dumps(found)
    assert str(Path.home()) not in text and str(Path.cwd()) not in text


def test_provenance_without_git(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: object, **__: object) -> None:
        raise FileNotFoundError("git")

    monkeypatch.setattr(provenance_module.subprocess, "run", missing)
    assert provenance_module._git() is None


def test_only_a_change_of_meaning_changes_the_fingerprint() -> None:
    plain = meaning("def f(x):\n    return x + 1\n")
    assert plain == meaning('"""Doc."""\n# why\ndef f(x):\n    """Add."""\n    return (x\n            + 1)\n')
    assert plain != meaning("def f(x):\n    return x + 2\n")
    assert plain != meaning("def f(x, y=1):\n    return x + 1\n")


def test_the_fingerprint_covers_the_algorithm_and_not_the_pages() -> None:
    package = Path(provenance_module.__file__).parent
    covered = {path.relative_to(package).as_posix() for path in provenance_module.influential_sources()}
    assert {
        "types.py",
        "flops.py",
        "ops/segmentation.py",
        "methods/holitom.py",
        "tiny/world.py",
        "evaluation/lmms.py",
    } <= covered
    assert any(name.startswith("tiny/tasks/") and name.endswith(".yaml") for name in covered)
    assert not covered & {"cli.py", "figures/style.py", "paper.py", "tiny/train.py"}
    assert len(code_fingerprint()) == 16
