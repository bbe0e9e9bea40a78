"""Finished cells on disk, and the hash of the code that made them."""

import errno
import json
import os
import shutil
import sys
import types
from pathlib import Path

import pytest

import holitom
from holitom.methods import FastV, HoliTom, VisionZip
from holitom_repro import code
from holitom_repro.code import MEASURING, code_hash, meaning
from holitom_repro.machine import provenance
from holitom_repro.records import Record, Store, write_atomic

SAMPLES = [{"doc_id": k, "correct": float(k % 2), "answer": "r\u00f6t\u2028"} for k in range(4)]


def record(**more) -> Record:
    values = {
        **dict.fromkeys(("revision", "protocol", "dtype", "device", "attention", "code", "created"), "x"),
        **{"key": "HoliTom@0.10", "model": "onevision", "benchmark": "tiny_ego", "tier": "tiny", "reduction": {}},
        **{"frames": 32, "limit": None, "value": 50.0, "lmms_eval": 50.0, "n": 4, "videos": 2, "tokens": {}},
        **{"tokens_per_layer": [1.0], "flops_paper": 1.0, "flops_exact": 2.0, "seconds": 0.1, "provenance": {"a": 1}},
    }
    return Record(**values | more)


def test_a_finished_cell_is_read_as_it_was_written(tmp_path: Path) -> None:
    store = Store("tiny", tmp_path)
    assert store.load("abc") is None
    store.save("abc", record(notes=("caf\u00e9",)), SAMPLES)
    assert store.load("abc") == (record(notes=("caf\u00e9",)), SAMPLES)
    assert not list(store.folder.glob(".*"))


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-5])


@pytest.mark.parametrize("suffix", ["json", "samples.jsonl"])
@pytest.mark.parametrize(
    "harm", [cut, lambda f: f.write_text("[]\n"), lambda f: f.write_bytes(b"\xff\xfe"), lambda f: f.write_text("")]
)
def test_a_damaged_cell_counts_as_not_finished(tmp_path: Path, suffix: str, harm) -> None:
    store = Store("tiny", tmp_path)
    store.save("abc", record(), SAMPLES)
    harm(store.folder / f"abc.{suffix}")
    assert store.load("abc") is None
    store.forget("abc")
    assert not list(store.folder.iterdir())


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), KeyboardInterrupt()])
def test_a_file_that_cannot_be_written_leaves_the_old_one(tmp_path: Path, monkeypatch, error) -> None:
    def fails(descriptor: int) -> None:
        raise error

    file = write_atomic(tmp_path / "a.json", "old")
    monkeypatch.setattr(os, "fsync", fails)
    with pytest.raises(type(error)):
        write_atomic(file, "new")
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"] and file.read_text() == "old"


def test_provenance_names_no_person_and_no_place() -> None:
    told = json.dumps(provenance())
    assert provenance()["packages"]["torch"] and provenance()["threads"] >= 1
    assert str(Path.home()) not in told and os.uname().nodename not in told


def test_meaning_is_what_code_does() -> None:
    plain = "def f(a):\n    return a + 1\n"
    assert meaning(plain) == meaning('"""Doc."""\n# a comment\ndef f( a ):\n    """More."""\n    return (a + 1)\n')
    assert meaning(plain) != meaning(plain.replace("1", "2"))


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of src/holitom, which the hash reads in place of the real one."""
    folder = tmp_path / "holitom"
    real = Path(holitom.__file__).parent
    shutil.copytree(real, folder, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(code.holitom, "__file__", str(folder / "__init__.py"))
    own = code.inspect.getfile
    monkeypatch.setattr(
        code.inspect, "getfile", lambda cls: str(folder / Path(own(cls)).resolve().relative_to(real.resolve()))
    )
    return folder


def test_the_hash_covers_the_sources_that_a_setting_uses(package: Path) -> None:
    used, others = (HoliTom(), FastV(2, 0.5)), (VisionZip(),)
    before = code_hash(used), code_hash(others)
    (package / "methods" / "another.py").write_text("x = 1\n")
    (package / "methods" / "visionzip.py").open("a").write("# a remark\n")
    assert (code_hash(used), code_hash(others)) == before
    (package / "methods" / "fastv.py").open("a").write("x = 1\n")
    after = code_hash(used), code_hash(others)
    assert after[0] != before[0] and after[1] == before[1]
    (package / "errors.py").open("a").write("x = 1\n")
    assert code_hash(others) != before[1]
    assert code_hash((), MEASURING) != code_hash(())


NOTEBOOK = """
from dataclasses import dataclass

SHARE = {share}

def half(n):
    return n {operation} 2

@dataclass(frozen=True)
class Mine:
    seed: int = {seed}

    def __call__(self, video, budget):
        return half(SHARE * video.frames)
"""


def own(**values) -> object:
    """The class of a notebook's cell, run again as an edited cell is."""
    module = types.ModuleType("a_notebook")
    sys.modules["a_notebook"] = module
    exec(NOTEBOOK.format(**{"share": 0.5, "operation": "//", "seed": 0} | values), module.__dict__)
    return module.Mine()


def test_a_method_of_a_notebook_counts_with_the_code_that_it_reaches() -> None:
    first = code_hash([own()])
    assert code_hash([own()]) == first != code_hash(())
    for change in ({"share": 0.25}, {"operation": "*"}, {"seed": 1}):
        assert code_hash([own(**change)]) != first, change
