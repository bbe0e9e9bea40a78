"""The inference figure: bars and sweeps from records, what stands there without any, and how the target says so."""

import json

import pandas as pd
import pytest

from holitom_repro import machine, paper, paths
from holitom.errors import BadUsage, CannotRun
from holitom_repro.experiments import find, inference
from holitom_repro.figures.inference import (
    GROUPS,
    ORDER,
    bars_figure,
    kept_share,
    measured_bars,
    quoted_bars,
)
from holitom_repro.figures.remarks import between_panels, left_out
from holitom_repro.figures.stages import stage_frame, stages_figure
from holitom_repro.figures.style import look
from holitom_repro.figures.sweeps import sweep_figure, sweep_frame
from holitom_repro.figures.timing import against_full, cost_table, timing_stamp
from holitom.flops import LLMShape
from holitom_repro.latency.passes import STAGES
from holitom_repro.latency.records import spread

PRINTED = paper.table("fig_inference")


def record(row="HoliTom", at="10%", part="rows", ms=100.0, **changes):
    stages = {name: spread([ms / len(STAGES)]) for name in STAGES}
    made = {
        "tier": "speed",
        "row": row,
        "at": at,
        "part": part,
        "outcome": "measured",
        "frames": 4,
        "cells_per_frame": 10,
        "batch": 1,
        "tokens_per_layer": [10, 5],
        "realised_tokens": 10,
        "text_tokens": 2,
        "repeats": 20,
        "summary": {
            "ttft_ms": {"median": ms, "q1": ms - 1, "q3": ms + 1, "n": 20},
            "stages_ms": stages,
            "added_ms": spread([3 * ms / len(STAGES)]),
            "decode_tok_s": None,
            "videos_per_s": 1000 / ms,
        },
        "memory": {"above_bytes": 2**20, "kv_bytes_per_layer": [2**19, 2**19]},
        "host_syncs": {"count": 3},
        "created": "2026-11-21T00:00:00+00:00",
        "device": "a GPU",
        "dtype": "bfloat16",
        "clock": "CUDA events",
        "state": {"idle": False, "reason": "busy"},
        "provenance": {"gpu": "a GPU", "packages": {"torch": "2"}, "git": {"commit": "0123456789ab", "dirty": True}},
    }
    return made | changes


def records():
    full = [record("Vanilla", "all tokens", part, 200.0) for part in ("rows", "frames")]
    failed = record("Vanilla", "all tokens", "frames", frames=8, outcome="out of memory", summary={}, memory={})
    return [
        *full,
        failed,
        record(),
        record(at="printed", ms=80.0),
        record(part="frames"),
        record(part="frames", frames=8),
    ]


def test_the_printed_bars_are_the_papers():
    bars = quoted_bars(paper.table("fig_inference"))
    assert tuple(bars["method"]) == ORDER and set(bars["source"]) == {"quoted"}
    assert (bars[list(GROUPS)].sum(axis=1) == bars["ttft_ms"]).all()
    holitom = bars.set_index("method").loc["HoliTom"]
    assert round(holitom["speedup"], 2) == 2.28 and holitom["at"] == "10 %" and holitom["score"] == "57.9"


def test_measured_bars_sum_their_stages_and_compare_within_the_run():
    bars = measured_bars(records(), "10%").set_index("method")
    assert list(bars.index) == ["Vanilla", "HoliTom"]
    assert bars.loc["HoliTom", list(GROUPS)].sum() == pytest.approx(100)
    assert bars.loc["HoliTom", "speedup"] == 2 and bars.loc["HoliTom", "low"] == 99
    assert kept_share(record()) == "25 % (19 %)" and kept_share(record(tokens_per_layer=[4, 4])) == "10 %"
    assert measured_bars([], "10%").empty


def rated(row, at, rate, **changes):
    """A record with a decode rate and its quartiles."""
    made = record(row, at, **changes)
    return made | {"summary": made["summary"] | {"decode_tok_s": {"median": rate, "q1": rate - 9, "q3": rate + 30.4}}}


def test_decode_rates_are_whole_with_quartiles_and_one_setting_in_two_panels_is_compared():
    full = rated("Vanilla", "all tokens", 401.5, ms=200.0)
    pairs = [rated("HoliTom", "printed", 440.2, ms=100.0), rated("HoliTom", "10%", 400.2, ms=105.0)]
    panels = [(at, measured_bars([full, *pairs], at)) for at in ("printed", "10%")]
    figure, data = bars_figure(panels, remark="Left out: nobody.")
    beside = [text.get_text() for text in figure.axes[1].texts]
    assert "440 (431–471)" in beside and "440.2" not in " ".join(beside)
    assert data["decode_low"].notna().all()
    said = figure.legends[0].get_title().get_text()
    assert "up to 5 % in the first token and up to 10 % in decoding" in said.replace("\n", " ")
    assert said.endswith("Left out: nobody.")
    slow = measured_bars([rated("Vanilla", "all tokens", 0.43)], "10%").assign(decode_low=0.4291, decode_high=0.4312)
    wide = bars_figure([("slow", slow.assign(high=150.0))])[0].axes
    assert "0.43" in [text.get_text() for text in wide[1].texts] and wide[0].get_xlim()[1] > 150  # no whisker is cut
    assert between_panels(panels[:1]) == "" and between_panels([("printed", quoted_bars(PRINTED))] * 2) == ""


def test_who_cannot_be_asked_for_a_budget_is_named_with_what_it_says():
    layers = [10] * 6
    found = [record(row, "10%", tokens_per_layer=layers) for row in ORDER if row not in ("FastV", "PDrop")]
    said = left_out(found, "10%")
    assert "FastV and PDrop cannot keep 10 % in the mean over 6 layers" in said
    assert "DyCoke keeps one whole frame in 4" in said
    assert "FastVID and MMG-Vid and HieraVid and ToMe not recorded" in said
    assert "HoliTom" not in said and left_out([], "10%") == ""


def test_figures_are_drawn_and_empty_ones_refused():
    printed = quoted_bars(paper.table("fig_inference"))
    figure, data = bars_figure(
        [("printed", printed), ("ours", measured_bars(records(), "10%")), ("none", pd.DataFrame())]
    )
    assert set(data["panel"]) == {"printed", "ours"} and len(figure.axes) == 4
    with pytest.raises(BadUsage, match="no bars"):
        bars_figure([("none", pd.DataFrame())])
    stages = stage_frame(records(), "10%")
    assert stages.groupby("method")["share"].sum().round(6).eq(100).all()
    assert stages_figure(stages)[1] is stages


def test_what_ran_out_of_memory_stays_in_the_figure():
    frame = sweep_frame(records(), "frames")
    lost = frame[frame["outcome"] == "out of memory"]
    assert len(lost) == 1 and lost["ttft_ms"].isna().all()
    figure, _ = sweep_figure(frame, "frames", [("ttft_ms", "ms")], xlabel="frames", log=True)
    assert any("out of memory" in text.get_text() for text in figure.axes[0].texts)
    assert sweep_frame([], "frames").empty


def test_a_budget_is_a_dash_and_never_a_hollow_marker():
    batches = [record("Vanilla", "all tokens", "batches", 200.0, batch=size) for size in (1, 2)]
    batches += [record("HoliTom", at, "batches", batch=size) for at in ("25%", "10%") for size in (1, 2)]
    figure, _ = sweep_figure(sweep_frame(batches, "batches"), "batch", [("ttft_ms", "ms")], xlabel="videos", log=True)
    lines = {one.get_label(): one.lines[0] for one in figure.axes[0].containers}
    both = lines["HoliTom, 25 %"], lines["HoliTom, 10 %"]
    assert both[0].get_linestyle() != both[1].get_linestyle()
    assert {line.get_markerfacecolor() for line in both} == {look("HoliTom").colour}
    assert both[0].get_xdata()[0] != both[1].get_xdata()[0]  # one would hide the other
    named = [text.get_text() for text in figure.legends[0].texts]
    assert set(named) == set(lines) and any("whiskers: quartiles" in text.get_text() for text in figure.axes[0].texts)


def test_stages_differ_without_colour():
    figure, _ = stages_figure(stage_frame(records(), "10%"))
    legend = figure.legends[0]
    hatches = {text.get_text(): bar.get_hatch() for text, bar in zip(legend.texts, legend.get_patches(), strict=True)}
    added = [hatches[name] for name in ("saliency", "outer reduction", "inner stage")]
    assert all(added) and len(set(added)) == 3
    assert "splice (builds the prompt)" in hatches


def test_the_stamp_and_the_costs():
    stamp = timing_stamp(records(), "speed")
    assert "a GPU, bfloat16, 2026-11-21, MACHINE NOT IDLE" in stamp.footer and "012345678+" in stamp.footer
    assert "nothing recorded yet" in timing_stamp([], "speed").headline
    table = cost_table(records())
    assert list(table["method"]) == ["Vanilla", "HoliTom", "HoliTom"] and set(table["host waits"]) == {"3"}
    assert cost_table([]).empty


def test_a_record_of_a_cpu_never_carries_the_name_of_its_hosts_gpu():
    host = {"gpu": "NVIDIA H100", "cpu": "AMD EPYC", "threads": 1, "git": {}}
    on_cpu = timing_stamp([record(device="CPU", provenance=host)], "speed")
    assert "H100" not in on_cpu.footer and "AMD EPYC, 1 thread(s)" in on_cpu.footer
    assert "NVIDIA H100" in timing_stamp([record(device="NVIDIA H100", provenance=host)], "speed").footer


@pytest.fixture
def no_gpu(monkeypatch, tmp_path):
    monkeypatch.setattr(machine, "gpu", lambda: machine.Answer(False, "no NVIDIA GPU"))
    monkeypatch.setattr(paths, "data", lambda *parts: tmp_path.joinpath("data", *parts))
    return tmp_path / "data" / "measured"


def test_without_gpu_and_records_the_command_is_named(no_gpu):
    found, origin = inference.available("speed")
    assert found == [] and inference.COMMAND in origin.words and not origin.here
    with pytest.raises(CannotRun, match="nothing is recorded in data/measured yet") as caught:
        inference.require("speed")
    assert inference.COMMAND in caught.value.fix
    with pytest.raises(BadUsage, match="paper tier"):
        inference.available("paper")


def test_without_a_gpu_recorded_times_are_shown_with_their_origin(no_gpu):
    shipped = paths.root() / "data" / "measured" / "tiny_cpu.jsonl"
    lines = [json.loads(line) | {"tier": "speed", "device": "a GPU"} for line in shipped.read_text().splitlines()]
    no_gpu.mkdir(parents=True)
    (no_gpu / "h200.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    inference.require("speed")
    found, origin = inference.available("speed")
    assert len(found) == len(lines) and origin.words.startswith("recorded elsewhere") and "2026-" in origin.words


def test_what_a_cpu_recorded_at_full_size_is_not_what_the_gpu_tier_shows(no_gpu):
    shipped = paths.root() / "data" / "measured" / "tiny_cpu.jsonl"
    no_gpu.mkdir(parents=True)
    lines = [json.loads(line) | {"tier": "speed"} for line in shipped.read_text().splitlines()]
    (no_gpu / "ov7b_cpu.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert inference.recorded("speed") == [] and len(inference.recorded("speed", cpu=True)) == len(lines)
    with pytest.raises(CannotRun, match="nothing is recorded"):
        inference.require("speed")


def test_of_each_size_the_newest_code_counts(no_gpu):
    shipped = paths.root() / "data" / "measured" / "tiny_cpu.jsonl"
    new = [json.loads(line) for line in shipped.read_text().splitlines()]
    old = [record | {"code": "older", "created": "2026-01-01T00:00:00+00:00"} for record in new]
    only_old = [record | {"model": "another"} for record in old[:2]]
    no_gpu.mkdir(parents=True)
    lines = "".join(json.dumps(record) + "\n" for record in [*old, *only_old, *new])
    (no_gpu / "tiny_cpu.jsonl").write_text(lines)
    assert inference.recorded("tiny") == [*only_old, *new]


def test_what_a_cpu_timed_names_no_gpu():
    facts = record()["provenance"] | {"cpu": "a processor"}
    assert inference.where([record(device="CPU", provenance=facts)]).startswith("a processor, bfloat16")
    assert inference.where([record(provenance=facts)]).startswith("a GPU, bfloat16")


def test_against_the_full_model_times_and_flops_have_their_own_ratios():
    shape = LLMShape("two layers", 8, 16, 2, 2, 1, head_dim=4)
    full = record("Vanilla", "all tokens", "aims", 60_000.0, tokens_per_layer=[40, 40], device="CPU")
    cut = record(part="aims", ms=30_000.0, device="CPU")
    table = against_full([full, cut], shape).set_index("method")
    assert table.loc["HoliTom", "ttft_x"] == table.loc["HoliTom", "prefill_x"] == 2
    expected = shape.exact([40, 40], 3) / shape.exact([10, 5], 3)
    assert table.loc["HoliTom", "flops_x"] == pytest.approx(expected) and table.loc["Vanilla", "flops_x"] == 1
    assert table.loc["HoliTom", "added"] == pytest.approx(30 * 3 / len(STAGES))
    stamp = timing_stamp([full, cut], "speed")
    assert "not a GPU's times" in stamp.headline and not stamp.trial
    figure, _ = bars_figure([("on a CPU", measured_bars([full, cut], "10%", "aims"))])
    assert figure.axes[0].get_xlabel() == "s to the first token"
    assert any(text.get_text() == "30.0 (2.00x)" for text in figure.axes[1].texts)


def test_the_target_and_its_parts():
    experiment = find("fig-inference")
    assert experiment.times and set(experiment.costs) == {"tiny", "speed"} and not experiment.measures
