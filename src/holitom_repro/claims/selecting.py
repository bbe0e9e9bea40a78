"""Which records a claim is about: settings are found by what they do, not by how an experiment labels them."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any

from holitom_repro.claims.defaults import method_defaults
from holitom.errors import BadUsage
from holitom_repro.results import Number, Record, code_fingerprint

PAPER_LAYERS = 28


@dataclass(frozen=True, kw_only=True)
class Selector:
    """One setting.

    outer and inner: class names, None for no such stage; budget: of the outer stage, or "at least a": the lowest
    budget measured that leaves at least as many tokens as setting a has, so that the comparison never favours a;
    stages: how many inner stages, all of that class; layer: of the (first) inner stage in the paper's 28 layers, moved
    to the same relative depth; ratio: of the (first) inner stage; frames; saliency: "own", "random" or "control";
    fields and inner_fields: further fields of the outer and of the inner stages, with their values. A field that is
    not named has its default value (tau of HoliTom the published one: 0.65 up to 10 %, else 0.80), so that an ablation,
    an inversion or a release's quirk is never taken for the method.
    """

    outer: str | None = None
    budget: Number | str = 1.0
    inner: str | None = None
    stages: int = 1
    layer: int | None = None
    ratio: Number | None = None
    frames: int = 32
    saliency: str = "own"
    fields: Mapping[str, Any] = field(default_factory=dict)
    inner_fields: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def parse(cls, values: Mapping[str, Any] | None) -> Selector:
        """From YAML; BadUsage for an unknown field."""
        values = values or {}
        known = {f.name for f in fields(cls)}
        unknown = sorted(set(values) - known)
        if unknown:
            raise BadUsage(f"a setting has no field {', '.join(unknown)}", fix=f"use {', '.join(sorted(known))}")
        selector = cls(**values)
        if isinstance(selector.budget, str) and selector.budget != "at least a":
            raise BadUsage(f"budget {selector.budget!r} is not a share of tokens", fix='give a number or "at least a"')
        return selector

    def fits(self, record: Record) -> bool:
        """Whether a record was measured with this setting; a budget of "at least a" fits any."""
        method = record.method or {}
        outer, inner = method.get("outer"), method.get("inner") or []
        if record.frames != self.frames or record.extra.get("saliency", "own") != self.saliency or method.get("decode"):
            return False
        if (outer or {}).get("method") != self.outer or len(inner) != (self.stages if self.inner else 0):
            return False
        if any(stage.get("method") != self.inner for stage in inner):
            return False
        budget = method.get("budget", 1.0)
        if outer and not _has(outer, budget, self.fields):
            return False
        if not all(_has(stage, budget, self.inner_fields) for stage in inner):
            return False
        if not isinstance(self.budget, str) and not math.isclose(budget, self.budget):
            return False
        return self.inner is None or self._fits_inner(inner[0], len(record.tokens_per_layer))

    def describe(self) -> str:
        """In words, for a reason."""
        parts = [self.outer or "all tokens"]
        parts += [f"with {name}={value}" for name, value in (*self.fields.items(), *self.inner_fields.items())]
        if self.outer:
            parts.append("at any budget" if isinstance(self.budget, str) else f"at {100 * self.budget:g} %")
        if self.inner:
            many = f"{self.stages} stages, the first at " if self.stages > 1 else ""
            parts.append(f"and {self.inner} ({many}K = {self.layer} of {PAPER_LAYERS}, R = {self.ratio})")
        parts += [f"{self.frames} frames"] if self.frames != 32 else []
        parts += [f"{self.saliency} saliency"] if self.saliency != "own" else []
        return " ".join(parts)

    def _fits_inner(self, stage: Mapping[str, Any], layers: int) -> bool:
        wanted = None if self.layer is None else max(1, math.floor(self.layer / PAPER_LAYERS * layers + 0.5))
        same_ratio = self.ratio is None or math.isclose(stage.get("ratio", -1), self.ratio)
        return wanted in (None, stage.get("layer")) and same_ratio


def _has(stage: Mapping[str, Any], budget: Number, named: Mapping[str, Any]) -> bool:
    """Whether a described stage has the named values, and its method's defaults in what it mentions besides."""
    usual = {name: value for name, value in _usual(stage["method"], budget).items() if name in stage}
    return all(stage.get(name, MISSING) == value for name, value in {**usual, **named}.items())


def _usual(method: str, budget: Number) -> Mapping[str, Any]:
    """The default fields of a method as ``Reduction.describe`` writes them, without layer and ratio; {} for a name that
    nobody knows."""
    usual = {name: value for name, value in method_defaults(method).items() if name not in ("layer", "ratio")}
    if method == "HoliTom":
        usual["tau"] = 0.65 if budget <= 0.10 + 1e-9 else 0.80
    return usual


@dataclass(frozen=True)
class Chosen:
    """One setting's records, one for each benchmark, in the order of the benchmarks."""

    records: tuple[Record, ...]

    @property
    def tokens(self) -> float:
        """Visual tokens per video that the outer stage left, mean over benchmarks."""
        return sum(record.realised_tokens or 0.0 for record in self.records) / len(self.records)

    @property
    def current(self) -> bool:
        """Whether the code that measured them is the code at hand."""
        return all(record.code == code_fingerprint() for record in self.records)


def choose(
    selector: Selector, records: Sequence[Record], benchmarks: Sequence[str], after: Sequence[Chosen] = ()
) -> Chosen | str:
    """The records of a setting on all benchmarks, or what is missing, in words. Of several records of one cell: of
    the current code before others, then with the most questions, then the newest."""
    fitting = [record for record in records if selector.fits(record)]
    budgets = sorted({(record.method or {}).get("budget", 1.0) for record in fitting})
    least = after[0].tokens if selector.budget == "at least a" else 0.0
    missing = f"{selector.describe()} was not measured"
    for budget in budgets:
        of_budget = [record for record in fitting if math.isclose((record.method or {}).get("budget", 1.0), budget)]
        best = [_best([record for record in of_budget if record.benchmark == name]) for name in benchmarks]
        absent = [name for name, record in zip(benchmarks, best, strict=True) if record is None]
        if absent:
            missing = f"{selector.describe()} was not measured on {', '.join(absent)}"
            continue
        found = Chosen(tuple(record for record in best if record is not None))
        if found.tokens >= least - 1e-6:
            return found
        missing = f"{selector.describe()} was not measured with {least:.0f} tokens or more"
    return missing


def answers(chosen: Sequence[Chosen], runs: Path) -> tuple[list[list[float]], list[str]] | str:
    """Per setting, whether each common question was answered right, and the video of each question; or what is
    missing.

    Questions are matched by benchmark and doc_id; a setting that saw only the first questions shortens the others.
    """
    logs: list[dict[tuple[str, Any], tuple[float, str]]] = []
    for one in chosen:
        log: dict[tuple[str, Any], tuple[float, str]] = {}
        for record in one.records:
            path = Path(runs) / record.tier / "cells" / f"{record.extra.get('cell')}.samples.jsonl"
            if not path.is_file():
                return (
                    f"the answers of {record.row} on {record.benchmark} are not in {path.parent.name}/, only its score"
                )
            try:
                for line in path.read_bytes().splitlines():
                    sample = json.loads(line)
                    video = f"{record.benchmark}/{sample['video']}"
                    log[record.benchmark, sample["doc_id"]] = (float(sample["correct"]), video)
            except (ValueError, TypeError, KeyError):
                return f"the answers of {record.row} on {record.benchmark} are damaged; its experiment writes them anew"
        logs.append(log)
    common = [question for question in logs[0] if all(question in log for log in logs)]
    if not common:
        return "the settings were not asked the same questions"
    return [[log[question][0] for question in common] for log in logs], [logs[0][question][1] for question in common]


def _best(records: Sequence[Record]) -> Record | None:
    return max(records, key=lambda r: (r.code == code_fingerprint(), r.n or 0, r.created), default=None)
