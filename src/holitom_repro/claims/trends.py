"""Trends: what the papers' tables say about methods, as differences that a small model can show or fail to show.

Each is declared in data/papers/trends.yaml, or a trends_*.yaml beside it, with its threshold and the reason for it,
before its comparison is computed, and judged from per-question answers by paired statistics clustered by video. A trend
of the tiny tier is a statement about the tiny model; it never turns a printed number into a reproduced one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from holitom_repro import paths
from holitom_repro.claims.judging import Judged, Verdict, judge_above, judge_equal
from holitom_repro.claims.remembered import Memory, key_of
from holitom_repro.claims.selecting import Chosen, Selector, answers, choose
from holitom.errors import BadUsage
from holitom_repro.evaluation.statistics import Estimate, paired_difference, retained_share
from holitom_repro.results import Number, Record

TESTS = ("above", "equal", "retained", "contrast")
FEWEST_VIDEOS = 30
"""Below this many videos the intervals themselves are not to be trusted."""


@dataclass(frozen=True, kw_only=True)
class Trend:
    """One declared trend.

    test: "above": score of a minus score of b lies above ``threshold`` points; "equal": it lies within +-
    threshold; "retained": a keeps more than ``threshold`` per cent of b's score; "contrast": (a - b) - (c - d) lies
    above threshold. note: what a reader should know besides, such as a score that was known
    when it was declared.
    """

    id: str
    experiment: str
    statement: str
    place: str
    printed: str
    test: str
    threshold: Number
    why: str
    a: Selector
    b: Selector
    c: Selector | None = None
    d: Selector | None = None
    note: str = ""
    tier: str = "tiny"
    model: str = "onevision"
    benchmarks: Sequence[str] = field(default_factory=lambda: ("tiny_actions", "tiny_ego", "tiny_long", "tiny_general"))

    def selectors(self) -> list[Selector]:
        """The two, or four, settings that it compares."""
        return [selector for selector in (self.a, self.b, self.c, self.d) if selector is not None]


def trends(path: Path | None = None) -> list[Trend]:
    """The declared trends, of one file or of all of them (trends.yaml first). BadUsage for an unknown field or test, or
    an id that is there twice."""
    files = (
        [path] if path else [paths.data("papers", "trends.yaml"), *sorted(paths.data("papers").glob("trends_*.yaml"))]
    )
    found = [trend for file in files for trend in _read(file)]
    twice = sorted({trend.id for trend in found if sum(other.id == trend.id for other in found) > 1})
    if twice:
        raise BadUsage(f"{', '.join(twice)} declared twice", fix="give every trend an id of its own")
    return found


def trend_claims(
    records: Sequence[Record], tier: str = "tiny", *, experiment: str | None = None, runs: Path | None = None
) -> list[Judged]:
    """The trends of a tier (of one experiment, if given), judged from ``records`` and the per-question answers that
    lie in ``runs``/<tier>/cells. NOT RUN, with the command, where a measurement is missing."""
    wanted = [trend for trend in trends() if trend.tier == tier and experiment in (None, trend.experiment)]
    where = runs or paths.runs()
    memory = Memory(where / tier / "judged.json")
    judged = [_judge(trend, records, where, memory) for trend in wanted]
    memory.save()
    return judged


def _judge(trend: Trend, records: Sequence[Record], runs: Path, memory: Memory) -> Judged:
    mine = [r for r in records if (r.tier, r.source, r.model) == (trend.tier, "measured", trend.model)]
    mine = [
        r for r in mine if r.experiment == trend.experiment
    ] or mine  # another experiment may vary what this one fixes
    chosen: list[Chosen] = []
    for selector in trend.selectors():
        found = choose(selector, mine, trend.benchmarks, after=chosen)
        if isinstance(found, str):
            return _not_run(trend, f"{found}; ./reproduce.sh {trend.experiment.replace('_', '-')} measures it")
        chosen.append(found)
    behind = [record for one in chosen for record in one.records]
    key = key_of(trend, behind, all(one.current for one in chosen))
    if before := memory.get(key):
        return before
    common = answers(chosen, runs)
    if isinstance(common, str):
        return _not_run(trend, common)
    correct, videos = common
    if len(set(videos)) < FEWEST_VIDEOS:
        return _not_run(trend, f"only {len(set(videos))} videos were answered, {FEWEST_VIDEOS} are needed")
    estimate, unit, verdict = _test(trend, correct, videos)
    notes = [_interval(trend, estimate, unit), "" if estimate.p is None else _p_value(estimate.p)]
    notes += [f"{_against(chosen)} tokens kept", trend.note]
    notes.append("" if all(one.current for one in chosen) else "measured with an earlier version of the code")
    judged = Judged(
        **_common(trend),
        computed=estimate.value,
        low=estimate.low,
        high=estimate.high,
        unit=unit,
        verdict=verdict,
        reason="; ".join(note for note in notes if note),
        source="measured",
        tier=trend.tier,
        records=tuple(record.extra.get("cell") or record.key for record in behind),
    )
    return memory.put(key, judged)


def _interval(trend: Trend, estimate: Estimate, unit: str) -> str:
    """The estimate in words; with more decimals than one where that would hide on which side of the threshold a bound
    lies."""
    limits = (trend.threshold, -trend.threshold) if trend.test == "equal" else (trend.threshold,)
    near = min(abs(bound - limit) for bound in (estimate.low, estimate.high) for limit in limits)
    digits = 1 if near >= 0.05 else 2 if near >= 0.005 else 3
    value, low, high = (f"{number:z.{digits}f}" for number in (estimate.value, estimate.low, estimate.high))
    return f"{value} {unit} [{low}, {high}], {estimate.groups} videos"


def _against(chosen: Sequence[Chosen]) -> str:
    """How many visual tokens either side reads: "51 against 59"; of a contrast "60 and 121 against 51 and 128"."""
    counts = [f"{one.tokens:.0f}" for one in chosen]
    half = len(counts) // 2
    return " against ".join(" and ".join(side) for side in (counts[:half], counts[half:]))


def _p_value(p: float) -> str:
    return "p < 0.001" if p < 0.001 else f"p = {p:.2g}"


def _test(trend: Trend, correct: Sequence[Sequence[float]], videos: Sequence[str]) -> tuple[Estimate, str, Verdict]:
    if trend.test == "retained":
        estimate = retained_share(correct[0], correct[1], videos)
        return estimate, "% of the score", judge_above(estimate.low, estimate.high, trend.threshold)
    if trend.test == "contrast":  # (a - b) - (c - d) is the paired difference of a + d and c + b
        plus = [a + d for a, d in zip(correct[0], correct[3], strict=True)]
        minus = [b + c for b, c in zip(correct[1], correct[2], strict=True)]
        estimate = paired_difference(plus, minus, videos)
    else:
        estimate = paired_difference(correct[0], correct[1], videos)
    judge = judge_equal if trend.test == "equal" else judge_above
    return estimate, "points", judge(estimate.low, estimate.high, trend.threshold)


def _common(trend: Trend) -> dict[str, Any]:
    sign = {"above": "above", "contrast": "above", "retained": "above", "equal": "within +-"}[trend.test]
    unit = "%" if trend.test == "retained" else "points"
    return {
        "id": trend.id,
        "statement": trend.statement,
        "place": f"{trend.place}: {trend.printed}",
        "tolerance": f"{sign} {trend.threshold:g} {unit} with its whole 95 % interval ({trend.why})",
        "experiment": trend.experiment,
    }


def _not_run(trend: Trend, why: str) -> Judged:
    unit = "% of the score" if trend.test == "retained" else "points"
    return Judged(**_common(trend), unit=unit, verdict=Verdict.NOT_RUN, reason=why, source="quoted", tier=trend.tier)


@cache
def _read(path: Path) -> tuple[Trend, ...]:
    declared = yaml.safe_load(path.read_text(encoding="utf-8"))["trends"]
    return tuple(_trend(values) for values in declared)


def _trend(values: Mapping[str, Any]) -> Trend:
    known = {f.name for f in fields(Trend)}
    unknown = sorted(set(values) - known)
    if unknown:
        raise BadUsage(f"a trend has no field {', '.join(unknown)}", fix=f"use {', '.join(sorted(known))}")
    sides = {side: Selector.parse(values[side]) for side in "abcd" if side in values}
    trend = Trend(**{**values, **sides})
    if trend.test not in TESTS:
        raise BadUsage(f"trend {trend.id} has the test {trend.test!r}", fix=f"use one of {', '.join(TESTS)}")
    if len(trend.selectors()) != (4 if trend.test == "contrast" else 2):
        raise BadUsage(
            f"trend {trend.id} compares {len(trend.selectors())} settings", fix="a contrast needs four, others two"
        )
    return trend
