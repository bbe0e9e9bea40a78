"""Timing: stages that add up, rows that say what they are, plans that can be stopped, and the scripts beside them."""

import importlib.util
import json
import subprocess
import sys
from dataclasses import replace
from itertools import count
from pathlib import Path

import pandas as pd
import pytest
import torch
from seam import marks

from holitom import Reduction, reduce_tokens
from holitom.errors import BadUsage, CannotRun
from holitom.methods import AveragePool, EarlyTom, HoliTom, HoliTomMerge
from holitom.methods.presets import preset
from holitom.models import llava_onevision
from holitom_repro import claims as ledger
from holitom_repro import machine, paths
from holitom_repro.timing import measure as measuring
from holitom_repro.timing import shapes, stages
from holitom_repro.timing.measure import FULL, OWN, PRINTED, Task, measure, measure_all, plan, setting
from holitom_repro.timing.rows import ADDED, STAGES, append, in_words, read, spread, summary, table
from holitom_repro.timing.shapes import Model, drawn_video, make_inputs
from holitom_repro.timing.stages import run_pass

FRAMES = 6
BOTH = Reduction("both", HoliTom(), 0.25, (HoliTomMerge(3, 0.5),))


@pytest.fixture(scope="module")
def tiny():
    return Model("tiny", dtype="float32").load()


def measured(model, reduction, frames=FRAMES, batch=1):
    return measure(Task(model, reduction, "in words", frames, batch, repeats=3, new_tokens=2))


@pytest.fixture
def narrow(monkeypatch):
    """The 7B model's shape, so narrow and shallow that a CPU runs it."""
    monkeypatch.setattr(shapes, "SIGLIP", dict(zip(shapes.SIGLIP, (48, 64, 2, 2), strict=True)))
    monkeypatch.setattr(shapes, "QWEN2", dict(zip(shapes.QWEN2, (32, 48, 4, 4, 2), strict=True)))


WORKING = {FULL: "", "FastV": "inner", "PDrop": "inner", "PruneVid": "outer", "HoliTom": "saliency outer inner"}


@pytest.mark.parametrize("row", [FULL, *PRINTED])
def test_every_moment_of_a_pass_belongs_to_one_stage(row, tiny, monkeypatch):
    seconds = count()  # every look at the clock is one second after the last
    monkeypatch.setattr(stages, "clock_of", lambda device: ("ticks", lambda: float(next(seconds))))
    done = run_pass(tiny, setting(row, None, tiny.depth), make_inputs(tiny, FRAMES))
    assert tuple(done.stages) == STAGES and sum(done.stages.values()) == done.ttft
    working = WORKING.get(row, "saliency outer").split()
    assert {name for name in STAGES if done.stages[name]} == {*STAGES} - {*ADDED} | {*working}


@pytest.fixture
def slowly(monkeypatch):
    """slowly(kind, name, seconds): a call of this method takes so long, and nothing else any time."""
    now = [0.0]
    monkeypatch.setattr(stages, "clock_of", lambda device: ("by hand", lambda: now[0]))

    def make(kind, name, seconds):
        original = getattr(kind, name)

        def slow(*args, **kwargs):
            now[0] += seconds
            return original(*args, **kwargs)

        monkeypatch.setattr(kind, name, slow)

    return make


def test_what_takes_long_is_booked_to_its_stage(tiny, slowly):
    slowly(HoliTom, "__call__", 5.0)
    slowly(HoliTomMerge, "__call__", 7.0)
    slowly(type(tiny.module.model.language_model.layers[0]), "forward", 1.0)
    slowly(type(tiny.module.model.multi_modal_projector), "forward", 11.0)
    slowly(llava_onevision, "received_attention", 3.0)
    done = run_pass(tiny, BOTH, make_inputs(tiny, FRAMES), new_tokens=2)
    spent = {name: seconds for name, seconds in done.stages.items() if seconds}
    assert spent == {"vision": 11.0, "saliency": 3.0, "outer": 5.0, "inner": 7.0, "prefill": float(tiny.depth)}
    assert done.ttft == 26.0 + tiny.depth and done.decode == 2 * tiny.depth


def test_marks_change_no_result_and_leave_nothing_behind(tiny):
    inputs, logits, method = make_inputs(tiny, FRAMES), [], HoliTom.__call__
    handle = tiny.module.lm_head.register_forward_hook(lambda module, args, output: logits.append(output.clone()))
    with torch.inference_mode(), reduce_tokens(tiny.module, reduction=BOTH) as run:
        run.provide(inputs[2])
        tiny.module(input_ids=inputs[1], use_cache=True, logits_to_keep=1)
    before = marks(tiny.module)
    run_pass(tiny, BOTH, inputs)
    run_pass(tiny, Reduction(FULL), inputs)
    assert torch.equal(logits[0], logits[1]) and not torch.equal(logits[1], logits[2])
    with pytest.raises(RuntimeError, match="broken"):
        run_pass(tiny, Reduction("broken", _Broken(), 0.25), inputs)
    assert marks(tiny.module) == before and HoliTom.__call__ is method
    handle.remove()


class _Broken(HoliTom):
    error = RuntimeError("broken")

    def __call__(self, video, budget):
        raise self.error


def test_a_row_says_what_was_done(tiny):
    full, mine = measured(tiny, Reduction(FULL)), measured(tiny, BOTH, batch=2)
    visual, first, last = FRAMES * 16, mine["tokens_per_layer"][0], mine["tokens_per_layer"][-1]
    assert full["tokens_per_layer"] == [visual] * 6
    assert full["summary"]["kept_pct"] == full["summary"]["mean_pct"] == 100
    assert mine["tokens_per_layer"] == [first] * 3 + [last] * 3 and last < first < visual
    facts = {"outcome": "measured", "device": "CPU", "tier": "tiny", "batch": 2, "attention": "sdpa"}
    assert facts.items() <= mine.items() and mine["setting"] == BOTH.describe()
    assert [len(mine["samples"][name]) for name in ("ttft", "stages", "decode")] == [3, len(STAGES), 2]
    assert full["provenance"]["packages"]["torch"] and full["code"]


def test_a_stage_in_the_tower_is_timed_with_the_tower(tiny, slowly):
    """Fewer frames reach the projector, the drawn features are theirs, and the merging is part of "vision"."""
    torch.manual_seed(0)
    slowly(EarlyTom, "__call__", 3.0)
    reduction = replace(BOTH, outer=AveragePool(), tower=EarlyTom((0,), 0.0))
    done = run_pass(tiny, reduction, make_inputs(tiny, 24, 2))
    assert {name: spent for name, spent in done.stages.items() if spent} == {"vision": 6.0}
    assert all(s.tower_frames[-1] < 24 and s.requested == s.kept == 24 * 16 / 4 for s in done.stats.samples)
    done.stats.check_acted()


STOPS = [
    (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 3 GiB"), "out of memory", "3 GiB"),
    (RuntimeError("CUBLAS_STATUS_ALLOC_FAILED"), "out of memory", "CUBLAS"),
    (CannotRun("this stage cannot be served", fix="use another"), "unsupported", "cannot be served"),
]


@pytest.mark.parametrize(("error", "outcome", "words"), STOPS)
def test_what_cannot_be_measured_is_a_row_with_its_reason(tiny, monkeypatch, error, outcome, words):
    monkeypatch.setattr(_Broken, "error", error)
    row = measured(tiny, Reduction("mine", _Broken(), 0.25))
    assert row["outcome"] == outcome and words in row["reason"] and row["samples"] == {} == row["summary"]
    assert words in in_words(row)


def test_faults_and_methods_that_do_nothing_are_no_rows(tiny):
    with pytest.raises(RuntimeError, match="broken"):
        measured(tiny, Reduction("mine", _Broken(), 0.25))
    with pytest.raises(CannotRun, match="outer"):
        measured(tiny, Reduction("mine", HoliTom(), 0.999), 1)


def test_a_cpu_row_never_bears_a_gpus_name(tiny, monkeypatch):
    facts = {"gpu": "H200", "gpus": 1, "cuda": "13.0", "packages": {}}
    monkeypatch.setattr(machine, "provenance", lambda: facts)
    row = measured(tiny, Reduction(FULL), 2)
    assert row["device"] == "CPU" and "H200" not in json.dumps(row)


@pytest.fixture
def row():
    """Two passes, whose stages took 1, 2, ... and 2, 4, ... seconds; a quarter of the decoder layers ran."""
    parts = {name: [float(i), 2.0 * i] for i, name in enumerate(STAGES, start=1)}
    made = dict.fromkeys(("model", "device", "dtype", "attention", "code"), "x") | {"row": "HoliTom", "at": "10%"}
    made |= {"frames": 2, "cells": 10, "batch": 3, "layers": 2, "new_tokens": 4, "tokens_per_layer": [10.0, 5.0]}
    made |= {"samples": {"ttft": [28.0, 56.0], "stages": parts, "decode": [2.0]}}
    return made | {"summary": summary(made)}


def test_a_summary_follows_from_the_samples(row):
    made = row["summary"]
    assert spread([1.0, 2.0, 3.0, 4.0, 5.0], 2) == {"median": 6, "q1": 4, "q3": 8, "n": 5}
    assert spread([7.0]) == {"median": 7, "q1": 7, "q3": 7, "n": 1}
    assert made["ttft_ms"] == {"median": 42000, "q1": 35000, "q3": 49000, "n": 2}
    assert (made["prefill_ms"]["median"], made["added_ms"]["median"]) == (1500 * (5 + 6), 1500 * (2 + 3 + 6))
    assert made["decode_tok_s"]["median"] == 3 * 4 / 2
    assert made["kept_pct"] == 50 and made["mean_pct"] == 37.5


def test_lines_are_read_as_they_were_written_and_torn_ones_are_left_out(row, tmp_path, capsys):
    file = tmp_path / "new" / "rows.jsonl"
    assert read(file) == []
    append(file, row | {"summary": {"ttft_ms": {"median": 1}}})
    append(file, row)
    file.write_text(file.read_text()[:-40])  # interrupted
    assert read(file) == [row] and "line 2 is no timed row" in capsys.readouterr().err
    file.write_text(json.dumps(row) + "\n{}\n[]\n")
    assert read(file) == [row]


def test_the_recorded_lines_are_read():
    rows = read(paths.data("measured", "ov7b_cpu.jsonl"))
    assert [row["row"] for row in rows] == ["Vanilla", "HoliTom (w/o M)", "HoliTom"]
    assert table(rows)["x_full"].round(2).tolist() == [1, 3.47, 3.57]  # data/measured/NOTES.md


def test_the_table_compares_with_the_full_model_of_the_same_run(row):
    full = row | {"row": FULL, "at": "all tokens", "summary": {"ttft_ms": {"median": 84000.0}}}
    failed = row | {"frames": 99, "summary": {}, "reason": "no"}
    frame = table([row, full, full | {"batch": 4}, row | {"code": "other"}, failed])
    assert frame["x_full"].round(6).tolist()[:3] == [2, 1, 1] and frame["x_full"][3:].isna().all()
    assert frame["summary.stages_ms.vision.q3"][0] == 1750 and frame["reason"][4] == "no"


def test_rows_are_the_papers_settings():
    for name, budget in PRINTED.items():
        assert setting(name) == preset("fig-inference", name, budget).reduction
    for name in ("HoliTom (w/o M)", "HoliTom", "VisionZip", "PruneVid"):
        assert setting(name, 0.15) == replace(preset("table1", name, 0.15).reduction, budget=0.15)
    assert setting("HoliTom", 0.05) == replace(setting("HoliTom", 0.10), budget=0.05)


def test_fastv_keeps_its_budget_in_the_mean_over_the_layers(tiny):
    row = measured(tiny, setting("FastV", 0.5, tiny.depth), 32)
    assert row["tokens_per_layer"][0] == 512 and row["summary"]["mean_pct"] == pytest.approx(50, abs=0.1)
    with pytest.raises(BadUsage, match="outside"):
        setting("FastV", 0.1, tiny.depth)


def test_the_most_valuable_rows_come_first_and_none_twice(monkeypatch):
    with pytest.raises(BadUsage, match="paper tier"):
        plan("paper")
    monkeypatch.setattr(machine, "gpu", lambda: machine.Answer(False, "none"))
    with pytest.raises(CannotRun, match="CUDA GPU"):
        plan("speed")
    monkeypatch.setattr(machine, "gpu", lambda: machine.Answer(True, "one"))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "H200")
    tasks = plan("speed")
    assert [task.reduction.name for task in tasks[:3]] == [FULL, "HoliTom (w/o M)", "HoliTom"]
    assert all((task.model.name, task.frames, task.batch) == ("ov-7b", 32, 1) for task in tasks[:3])
    assert len({task.key for task in tasks}) == len(tasks) > len(plan("speed", limit=1)) and "H200" in tasks[0].key
    assert {task.reduction.name for task in tasks} == {FULL, *PRINTED, *OWN, "DyCoke", "HieraVid"}
    with_full = {(task.frames, task.batch) for task in tasks if task.at == "all tokens"}
    assert with_full == {(task.frames, task.batch) for task in tasks}


def test_every_claim_about_times_finds_its_row_in_the_plan(monkeypatch):
    """The words for a budget are the plan's and the ledger's alike."""
    monkeypatch.setattr(machine, "gpu", lambda: machine.Answer(True, "one"))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "H200")
    rows = [{**task.model.facts(), "row": task.reduction.name, "at": task.at} for task in plan("speed")]
    spread = {f"summary.{name}.{part}": 1.0 for name in ("ttft_ms", "decode_tok_s") for part in ("q1", "median", "q3")}
    times = pd.DataFrame(rows[:3]).assign(frames=32, batch=1, code="c", outcome="measured", **spread)
    claims = [claim for claim in ledger.load() if claim.kind == "time"]
    assert claims and all(ledger.judge(claim, times=times).ours == 1 for claim in claims)


def test_a_stopped_plan_goes_on_where_it_stopped(tmp_path, monkeypatch):
    file, seen, original = tmp_path / "rows.jsonl", [], measuring.measure
    tasks = [replace(task, frames=2) for task in plan("tiny", limit=1)[:4]]

    def stopping(task):
        seen.append(task.reduction.name)
        if seen == [FULL, "HoliTom (w/o M)", "HoliTom"]:
            raise KeyboardInterrupt
        return original(task)

    monkeypatch.setattr(measuring, "measure", stopping)
    with pytest.raises(KeyboardInterrupt):
        measure_all(file, tasks)
    assert [row["row"] for row in read(file)] == [FULL, "HoliTom (w/o M)"]
    rows = measure_all(file, tasks)
    assert [row["row"] for row in rows] == [FULL, "HoliTom (w/o M)", "HoliTom", "FastV"] and rows == read(file)
    assert seen == [FULL, "HoliTom (w/o M)", "HoliTom", "HoliTom", "FastV"]
    assert rows[0]["clock"] == "CPU seconds, one thread"
    assert plan("tiny")[0].key not in {task.key for task in plan("tiny", limit=1)}, "a trial is no measurement"
    monkeypatch.setattr(measuring, "present_code", lambda: "another")
    measure_all(file, tasks[:1])
    assert seen[-1] == FULL and len(read(file)) == 5


def test_the_shape_has_the_size_of_the_published_model():
    with torch.device("meta"):
        model = shapes.AutoModelForImageTextToText.from_config(Model("ov-7b").config)
    assert sum(p.numel() for p in model.parameters()) / 1e9 == pytest.approx(8.03, rel=0.005)


def test_a_random_model_runs(narrow):
    row = measured(Model("ov-7b").load(), BOTH, 2)
    facts = {"outcome": "measured", "tier": "speed", "layers": 4, "dtype": "bfloat16", "cells": 196}
    assert facts.items() <= row.items(), row["reason"]
    with pytest.raises(CannotRun, match="no nothing attention"):
        Model("ov-7b", attention="nothing").load()


def test_half_of_the_cells_of_a_drawn_video_stay_within_a_scene():
    video, same, other = (drawn_video(20, (4, 4), 256, seed=seed, dtype=torch.bfloat16).tokens for seed in (0, 0, 1))
    still = torch.cosine_similarity(video[1:].float(), video[:-1].float(), dim=-1) > 0.9
    assert still.sum(1).tolist() == [0 if pair in (7, 15) else 8 for pair in range(19)]
    assert torch.equal(video, same) and not torch.equal(video, other)


@pytest.mark.gpu
def test_on_a_gpu_events_add_up(narrow):
    row = measured(Model("ov-7b", "cuda").load(), BOTH, 4)
    sums = [sum(parts) for parts in zip(*row["samples"]["stages"].values(), strict=True)]
    assert row["clock"] == "CUDA events" and row["device"] == torch.cuda.get_device_name()
    assert sums == pytest.approx(row["samples"]["ttft"], rel=0.02)


def test_it_imports_with_torch_and_transformers_alone():
    kit = ["pandas", "av", "matplotlib", "seaborn", "pydantic", "papermill", "lmms_eval", "accelerate", "datasets"]
    code = f"import sys\nsys.modules.update(dict.fromkeys({kit}))\nimport holitom_repro.timing.measure"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def script(name):
    spec = importlib.util.spec_from_file_location(name, Path(__file__).parents[2] / "scripts" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_speed_prints_every_method_and_counts_memory(monkeypatch, capsys):
    speed, many = script("speed"), 1_000_000
    assert speed.peak_bytes(lambda: torch.zeros(many) + torch.zeros(many), "cpu") == pytest.approx(12e6, rel=0.02)
    assert speed.peak_bytes(lambda: [torch.zeros(many).sum() for _ in "abc"], "cpu") == pytest.approx(4e6, rel=0.02)
    monkeypatch.setattr(speed, "LENGTHS", (32, 64))
    monkeypatch.setattr(sys, "argv", ["speed.py", "--dim", "32", "--repeats", "1"])
    speed.main()
    printed = capsys.readouterr().out
    assert all(f"\n{name} " in printed for name in ("one reading", *speed.OUTER, 32, 64))


def test_released_asks_for_a_checkout(tmp_path):
    with pytest.raises(SystemExit, match="git clone"):
        script("released").released_class(tmp_path)
