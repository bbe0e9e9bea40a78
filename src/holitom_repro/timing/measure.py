"""Which rows are timed, in which order, and how: the papers' rows at their printed budgets, all methods at one budget,
and sweeps. Of each: warm-up, then repeats. Running out of memory, or being refused, is a result.

All rows of a tier, into a file: ``python -m holitom_repro.timing.measure speed FILE``.
"""

import gc
import sys
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from holitom import Reduction
from holitom.errors import BadUsage, KitError
from holitom.methods import FastVID, MMGVid, ToMe
from holitom.methods.presets import preset
from holitom_repro import machine
from holitom_repro.code import present_code
from holitom_repro.timing.rows import KEY, STAGES, TimedRow, append, in_words, key, read, summary
from holitom_repro.timing.shapes import CONTENT, Model, make_inputs
from holitom_repro.timing.stages import clock_of, run_pass

FULL = "all tokens"  # the unreduced model
BOTH = ("HoliTom (w/o M)", "HoliTom")
PRINTED = {"HoliTom (w/o M)": 0.10, "HoliTom": 0.10, "FastV": None, "PDrop": None, "VisionZip": 0.20, "PruneVid": 0.15}
"""Rows of the TTFT figure with the budgets that its own scores point to (data/papers/fig_inference.csv)."""
OWN = {"FastVID": FastVID(head="substitute"), "MMG-Vid": MMGVid(), "ToMe": ToMe()}
"""Methods with the same parameters at every budget. Random weights have no SigLIP head, so FastVID runs without."""
DECODED = 2  # of the repeats, generate further tokens


def setting(row: str, budget: float | None = None, layers: int = 28) -> Reduction:
    """A row at a budget, None: as printed, in a decoder of ``layers`` layers.

    The budget is the share of visual tokens that enter the language model; of FastV and HieraVid, which let more in,
    the mean share over the layers. BadUsage for an unknown row, and where a method cannot get there.
    """
    if row == FULL:
        return Reduction(FULL)
    if budget is None:
        return preset("fig-inference", row, PRINTED.get(row)).scaled(layers)
    if row in OWN:
        return Reduction(row, OWN[row], budget)
    if row == "HieraVid":
        return preset("hieravid", row, budget).scaled(layers)
    if row == "FastV":
        (stage,) = preset("table1", row).scaled(layers).inner
        kept = (budget * layers - stage.layer) / (layers - stage.layer)
        return Reduction(row, inner=(replace(stage, ratio=1 - kept),))
    return replace(preset("table1", row, budget).scaled(layers), budget=budget)


def _budget_in_words(row: str, budget: float | None) -> str:
    if row == FULL:
        return FULL
    if budget is not None:
        return f"{budget:.0%}"
    return "printed" if PRINTED[row] is None else f"printed, {PRINTED[row]:.0%}"


@dataclass(frozen=True)
class Task:
    """One row to time. at: its budget in words; behind the first two of ``repeats`` prefills new_tokens are
    generated."""

    model: Model
    reduction: Reduction
    at: str
    frames: int
    batch: int = 1
    repeats: int = 20
    new_tokens: int = 100

    @property
    def key(self) -> tuple[Any, ...]:
        """That of its record."""
        facts = vars(self) | self.model.facts() | {"row": self.reduction.name, "code": present_code()}
        return tuple(facts[name] for name in KEY)


def plan(tier: str, *, attention: str = "sdpa", limit: int | None = None) -> list[Task]:
    """The rows of a tier, most valuable first: "speed", the papers' shape on a GPU, or "tiny", the shipped model on a
    CPU, which shows that the measurement works. limit: a trial with so many repeats, without the largest sizes.
    CannotRun without a GPU."""
    if tier not in ("speed", "tiny"):
        raise BadUsage(f"nothing is timed in the {tier} tier", fix="use speed or tiny")
    machine.require(tier)
    tasks, speed = [], tier == "speed"
    what = ("ov-7b", "cuda", "bfloat16") if speed else ("tiny", "cpu", "float32")
    model = Model(*what, attention=attention)
    whole = {"repeats": limit or 20, "new_tokens": 100} if speed else {"repeats": limit or 7, "new_tokens": 16}
    sweep = {"repeats": limit or (10 if speed else 7), "new_tokens": 0}

    def add(frames: int, budget: float | None, *rows: str, batch: int = 1, timing: Any = whole) -> None:
        for row in (FULL, *rows) if not limit or frames * batch <= 64 else ():
            made = setting(row, budget, model.depth)
            tasks.append(Task(model, made, _budget_in_words(row, budget), frames, batch, **timing))

    add(32, None, *PRINTED)
    # Neither DyCoke nor PyramidDrop can keep 10 %, nor FastV in six layers.
    add(32, 0.10, "VisionZip", "PruneVid", *OWN, "HieraVid", *(["FastV"] if speed else []))
    for frames in (8, 16, 64, 128) if speed else (8, 16, 64):
        add(frames, 0.10, *BOTH, timing=sweep)
    for batch in (2, 4, 8) if speed else (2, 4):
        add(32, 0.10, *BOTH, batch=batch, timing=sweep)
    for budget, more in ((0.25, ["DyCoke"]), (0.15, []), (0.05, [])):
        add(32, budget, *BOTH, *more)
    return list({task.key: task for task in tasks}.values())  # the full model once


def measure(task: Task) -> TimedRow:
    """The row of a task whose model is loaded; without stages it is the full model.

    Raises CannotRun when a method leaves the video as it was: its times would be those of something else.
    """
    model, reduction, done, outcome, reason = task.model, task.reduction, [], "measured", ""
    cells = model.grid[0] * model.grid[1]
    try:
        inputs = make_inputs(model, task.frames, task.batch)
        for _ in range(min(3, task.repeats)):  # warm-up
            run_pass(model, reduction, inputs)
        for repeat in range(task.repeats):
            done.append(run_pass(model, reduction, inputs, task.new_tokens if repeat < DECODED else 0))
    except KitError as error:
        outcome, reason, done = "unsupported", error.what, []
    except RuntimeError as error:  # CUDA's libraries say in words that they could not allocate
        if not isinstance(error, torch.OutOfMemoryError) and "alloc" not in str(error).lower():
            raise
        outcome, reason, done = "out of memory", str(error)[:200], []
    gc.collect()
    torch.cuda.empty_cache()
    samples, layers = {}, []
    if done:
        stages = {name: [one.stages[name] for one in done] for name in STAGES}
        decoded = [one.decode for one in done[:DECODED]] if task.new_tokens else []
        samples = {"ttft": [one.ttft for one in done], "stages": stages, "decode": decoded}
        layers = [[task.frames * cells] * model.depth]
        if (stats := done[0].stats) is not None:
            stats.check_acted()
            layers = [sample.per_layer for sample in stats.samples]
    row = model.facts() | {
        "row": reduction.name,
        "at": task.at,
        "budget": reduction.budget,
        "setting": reduction.describe(),
        "clock": clock_of(model.device)[0],
        "frames": task.frames,
        "cells": cells,
        "batch": task.batch,
        "new_tokens": task.new_tokens,
        "repeats": task.repeats,
        "content": CONTENT,
        "outcome": outcome,
        "reason": reason,
        "tokens_per_layer": [sum(each) / len(each) for each in zip(*layers, strict=True)],
        "samples": samples,
        "provenance": machine.provenance() | ({} if model.device == "cuda" else dict.fromkeys(("gpu", "cuda"))),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "code": present_code(),
    }
    return row | {"summary": summary(row)}


def measure_all(out: Path, tasks: list[Task]) -> list[TimedRow]:
    """The rows of these tasks of one model, in their order. What ``out`` does not hold, from this code and device, is
    measured and added to it, row by row, so it may be stopped and called again. A CPU runs with one thread."""
    threads, loaded = torch.get_num_threads(), None
    held = {key(row): row for row in read(out)}
    todo = [task for task in tasks if task.key not in held]
    torch.set_num_threads(1 if todo and todo[0].model.device == "cpu" else threads)
    try:
        with tqdm(total=sum(task.frames * task.batch for task in todo), unit="frame", desc="timing") as bar:
            for task in todo:
                loaded = loaded or task.model.load()
                row = measure(replace(task, model=loaded))
                append(out, row)
                held[key(row)] = row
                bar.update(task.frames * task.batch)
                bar.write(in_words(row), file=sys.stderr)
    finally:
        torch.set_num_threads(threads)
    return [held[task.key] for task in tasks]


if __name__ == "__main__":
    measure_all(Path(sys.argv[2]), plan(sys.argv[1]))
