"""Which rows are timed, in which order: the papers' at their printed budgets, all methods at one budget, and sweeps."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from holitom import Reduction
from holitom.errors import BadUsage
from holitom.methods import FastVID, MMGVid, ToMe
from holitom.methods.presets import preset
from holitom_repro.code import present_code
from holitom_repro.timing.rows import SAME
from holitom_repro.timing.shapes import QWEN2, Model

FULL = "all tokens"  # the unreduced model
BOTH = ("HoliTom (w/o M)", "HoliTom")
PRINTED = {"HoliTom (w/o M)": 0.10, "HoliTom": 0.10, "FastV": None, "PDrop": None, "VisionZip": 0.20, "PruneVid": 0.15}
"""Rows of the TTFT figure with the budgets that its own scores point to (data/papers/fig_inference.csv)."""
OWN = {"FastVID": FastVID(head="substitute"), "MMG-Vid": MMGVid(), "ToMe": ToMe()}
"""Methods with the same parameters at every budget. Random weights have no SigLIP head, so FastVID runs without."""


def setting(row: str, budget: float | None = None, model: str = "ov-7b", layers: int = 28) -> Reduction:
    """A row at a budget, None: as printed, in a decoder of ``layers`` layers. model: whose presets give the other
    parameters ("ov-7b", "video-7b", "ov-72b").

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
    cell = ("table2", row, budget, model) if model != "ov-7b" and row in BOTH else ("table1", row, budget)
    return replace(preset(*cell).scaled(layers), budget=budget)


@dataclass(frozen=True)
class Task:
    """One row to time. at: its budget in words; timing: the arguments of ``measure`` for repeats and decoding."""

    model: Model
    reduction: Reduction
    at: str
    frames: int
    batch: int = 1
    timing: Mapping[str, int] = field(default_factory=dict)

    @property
    def key(self) -> tuple[Any, ...]:
        """That of its record."""
        facts = vars(self) | self.model.facts() | {"code": present_code()}
        return (*(facts[name] for name in SAME), self.reduction.name, self.at, self.timing.get("new_tokens", 100))


def plan(tier: str, *, device: str = "", attention: str = "sdpa", limit: int | None = None) -> list[Task]:
    """The rows of a tier, most valuable first: "speed", the papers' shapes on a GPU, or "tiny", the shipped model on a
    CPU, which shows that the measurement works. limit: a trial with so many repeats, without the largest sizes."""
    if tier not in ("speed", "tiny"):
        raise BadUsage(f"nothing is timed in the {tier} tier", fix="use speed or tiny")
    tasks, speed = [], tier == "speed"
    how = (device or ("cuda" if speed else "cpu"), "bfloat16" if speed else "float32")
    model = Model("ov-7b" if speed else "tiny", *how, attention=attention)
    whole = {} if speed else {"repeats": 7, "new_tokens": 16, "decode_repeats": 7}
    sweep = {"repeats": 10 if speed else 7, "warmup": 2, "new_tokens": 0}
    trial = {"repeats": limit, "warmup": 1, "new_tokens": 4, "decode_repeats": 1} if limit else {}

    def add(model: Model, frames: int, budget: float | None, *rows: str, batch: int = 1, timing: Any = whole) -> None:
        preset = model.name if model.name in QWEN2 else "ov-7b"
        for row in (FULL, *rows) if not limit or frames * batch <= 64 else ():
            at = "all tokens" if row == FULL else f"{budget:.0%}" if budget else "printed"
            made = setting(row, budget, preset, model.depth)
            tasks.append(Task(model, made, at, frames, batch, timing | trial))

    add(model, 32, None, *PRINTED)
    # Neither DyCoke nor PyramidDrop can keep 10 %, nor FastV in six layers.
    add(model, 32, 0.10, "VisionZip", "PruneVid", *OWN, "HieraVid", *(["FastV"] if speed else []))
    for frames in (8, 16, 64, 128) if speed else (8, 16, 64):
        add(model, frames, 0.10, *BOTH, timing=sweep)
    for batch in (2, 4, 8) if speed else (2, 4):
        add(model, 32, 0.10, *BOTH, batch=batch, timing=sweep)
    for budget, more in ((0.25, ["DyCoke"]), (0.15, []), (0.05, [])):
        add(model, 32, budget, *BOTH, *more)
    if speed:
        add(replace(model, name="video-7b"), 64, 0.15, *BOTH, "FastV", "VisionZip")
        add(replace(model, name="ov-72b", layers=20), 32, 0.15, *BOTH)
    return list({task.key: task for task in tasks}.values())  # the full model once
