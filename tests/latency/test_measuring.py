"""Records: complete statistics, failures as results, refusals in words."""

import json

import pytest
import torch
from ticking import Ticking

from holitom_repro import paths
from holitom.errors import BadUsage, CannotRun
from holitom_repro.latency import backends, measuring, records
from holitom_repro.latency.content import forced
from holitom_repro.latency.measuring import Protocol, measure
from holitom_repro.latency.passes import STAGES
from holitom_repro.latency.records import check, extrapolated, read, spread, summarise, write
from holitom_repro.latency.settings import setting
from holitom.methods import HoliTom
from holitom.types import Reduction

FULL = ("all tokens", Reduction("Vanilla"))


@pytest.fixture
def measured(tiny, quick, monkeypatch):
    monkeypatch.setattr(measuring, "machine_state", lambda device: {"idle": None, "reason": "a test"})

    def run(settings, frames=6, batch=1, protocol=quick):
        return measure(
            tiny,
            settings,
            frames=frames,
            batch=batch,
            similarity=forced(0.5),
            protocol=protocol,
            clock=Ticking(),
        )

    return run


def test_a_record_is_complete_and_checked(measured, tiny):
    full, reduced = measured([FULL, ("25%", setting("HoliTom", 0.25, "ov-7b", tiny.layers))])
    for record in (full, reduced):
        assert check(json.loads(json.dumps(record))) == json.loads(json.dumps(record))
        assert record["outcome"] == "measured" and record["device"] == "CPU" and record["tier"] == "tiny"
        assert record["summary"]["ttft_ms"]["n"] == 2 and record["summary"]["decode_tok_s"]["n"] == 1
        assert record["summary"]["stages_over_total"]["median"] == 1
    assert full["path"] == "stock transformers" and full["calls"] == {}
    assert full["tokens_per_layer"] == [96] * tiny.layers and full["realised_tokens"] == 96
    assert reduced["calls"] == {"outer": 1, "inner@4": 1}
    assert reduced["tokens_per_layer"][0] == reduced["realised_tokens"] < 96
    assert reduced["tokens_per_layer"][-1] < reduced["tokens_per_layer"][0]
    assert reduced["memory"]["above_bytes"] > 0 and len(reduced["memory"]["kv_bytes_per_layer"]) == tiny.layers
    assert reduced["host_syncs"]["count"] > 0 and full["host_syncs"] == {}
    assert reduced["provenance"]["packages"]["torch"] and reduced["code"]


def test_batches_have_videos_of_their_own(measured):
    (record,) = measured([("25%", Reduction("HoliTom (w/o M)", HoliTom(), 0.25))], batch=3)
    assert record["batch"] == 3
    ttft = record["summary"]["ttft_ms"]["median"]
    assert record["summary"]["videos_per_s"] == pytest.approx(3000 / ttft)


class _Hungry(HoliTom):
    def __call__(self, video, budget):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 3.00 GiB\nmore words")


class _Refusing(HoliTom):
    def __call__(self, video, budget):
        raise CannotRun("this stage cannot be served", fix="use another")


def test_out_of_memory_and_refusal_are_results(measured):
    settings = [
        FULL,
        ("25%", Reduction("HoliTom (w/o M)", _Hungry(), 0.25)),
        ("25%", Reduction("x", _Refusing(), 0.25)),
    ]
    full, hungry, refusing = measured(settings)
    assert full["outcome"] == "measured"
    assert (hungry["outcome"], hungry["reason"]) == (
        "out of memory",
        "CUDA out of memory. Tried to allocate 3.00 GiB",
    )
    assert refusing["outcome"] == "unsupported" and "cannot be served" in refusing["reason"]
    for record in (hungry, refusing):
        assert check(record)["samples"] == {} and record["summary"] == {}


def test_out_of_memory_of_the_inputs_and_of_the_full_model(measured, monkeypatch):
    def full(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(measuring, "make_inputs", full)
    assert [r["outcome"] for r in measured([FULL, FULL])] == ["out of memory"] * 2
    monkeypatch.undo()


def test_every_backend_is_tried_once_and_the_fastest_named(tiny, inputs, monkeypatch):
    taken = {"sdpa": 3.0, "eager": 1.0}
    seen = []

    def run(loaded, reduction, given, clock):
        name = loaded.model.config._attn_implementation
        seen.append(name)
        if name == "eager" and len(seen) < 2:
            raise torch.OutOfMemoryError("x")
        return type("Done", (), {"ttft": taken[name]})

    monkeypatch.setattr(backends, "run_pass", run)
    best, tried = backends.choose_backend(tiny, inputs, Ticking())
    assert best == "eager" and tried["sdpa"] == 3.0 and tried["eager"] == 1.0
    assert isinstance(tried["flash_attention_2"], str | float)

    seen.clear()
    skip = {"eager": "too large", "flash_attention_2": "-"}
    best, tried = backends.choose_backend(tiny, inputs, Ticking(), skip=skip)
    assert best == "sdpa" == tiny.model.config._attn_implementation and not seen
    assert tried["eager"] == "too large" and "only one" in tried["sdpa"]

    def always_full(*_):
        raise torch.OutOfMemoryError("x")

    monkeypatch.setattr(backends, "run_pass", always_full)
    best, tried = backends.choose_backend(tiny, inputs, Ticking())
    assert best == "sdpa" and tried["sdpa"] == tried["eager"] == "out of memory"


def test_statistics():
    assert spread([1.0, 2.0, 3.0, 4.0, 5.0], 2) == {"median": 6, "q1": 4, "q3": 8, "n": 5}
    assert spread([7.0]) == {"median": 7, "q1": 7, "q3": 7, "n": 1}
    with pytest.raises(BadUsage, match="no samples"):
        spread([])
    stages = {name: [1.0, 3.0] for name in STAGES}
    whole = [8.0, 24.0]
    summary = summarise({"ttft": [4.0, 4.0], "staged_ttft": whole, "stages": stages, "decode": [2.0]}, 2, 10)
    assert summary["added_ms"]["median"] == 6000 and summary["stages_over_total"]["median"] == 1
    assert summary["decode_tok_s"]["median"] == 10 and summary["videos_per_s"] == 0.5
    assert summary["answers_per_s"] == pytest.approx(2 / 6)
    assert extrapolated(summary, 4, 4) is None
    made = extrapolated(summary, 4, 8)
    assert made["ttft_ms"] == 16000 + 2 * 2000 and "4 of 8 decoder layers" in made["how"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"row": None}, "row of a latency record"),
        ({"version": 0}, "version 0"),
        ({"outcome": "guessed"}, "outcome 'guessed'"),
        ({"provenance": {}}, "without provenance"),
        ({"repeats": 5}, "samples"),
        ({"memory": {}}, "cache per layer"),
    ],
)
def test_what_a_record_must_hold(measured, change, words):
    (record,) = measured([("25%", Reduction("HoliTom (w/o M)", HoliTom(), 0.25))])
    with pytest.raises(BadUsage, match=words):
        check(record | change)
    shifted = json.loads(json.dumps(record))
    shifted["summary"]["ttft_ms"]["median"] += 1
    with pytest.raises(BadUsage, match="does not follow"):
        check(shifted)
    gap = json.loads(json.dumps(record))
    gap["summary"]["stages_over_total"]["median"] = 0.8
    with pytest.raises(BadUsage, match="do not add up"):
        check(gap)
    del record["code"]
    with pytest.raises(BadUsage, match="lacks 'code'"):
        check(record)


def test_files_hold_whole_records(measured, tmp_path):
    made = measured([FULL])
    path = write(tmp_path / "x.jsonl", made)
    write(path, made, append=True)
    assert len(read(path)) == 2
    path.write_text(path.read_text() + "{}\n")
    with pytest.raises(CannotRun, match="line 3"):
        read(path)
    with pytest.raises(CannotRun, match="no file"):
        read(tmp_path / "none.jsonl")


def test_recorded_files_pass_the_check():
    files = sorted(paths.data("measured").glob("*.jsonl"))
    for path in files:
        if json.loads(path.read_text().splitlines()[0])["kind"] == "latency":
            assert records.read(path)


def test_protocol_counts_its_passes():
    assert Protocol(repeats=20, warmup=5).passes == 45
    assert Protocol(repeats=20, warmup=2, staged_repeats=5).passes == 27
