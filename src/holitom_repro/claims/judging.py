"""What a verdict is, and the three ways to reach one: to the printed digit, against an interval, and not at all."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from holitom_repro.results import Number, Record

SCORE_TOLERANCE = 0.5
"""Points. Published scores of one model move by up to this much between versions of harness, decoder and library."""
WIDEST_INTERVAL = 10.0
"""Points. A wider 95 % interval agrees with nearly anything, so it decides nothing."""
_SLACK = 1e-9


class Verdict(StrEnum):
    """REPRODUCED and NOT REPRODUCED are decisions; WITHIN NOISE: the data allow either; QUOTED: printed, not
    checked."""

    REPRODUCED = "REPRODUCED"
    WITHIN_NOISE = "WITHIN NOISE"
    NOT_REPRODUCED = "NOT REPRODUCED"
    NOT_RUN = "NOT RUN"
    QUOTED = "QUOTED"


@dataclass(frozen=True, kw_only=True)
class Judged:
    """One claim with its verdict.

    id: stable name; statement: what is claimed; place: paper and table or figure; printed: the paper's number;
    computed: ours, in ``unit``, with its 95 % interval [low, high] where one is known; tolerance: what was allowed,
    stated before the computation; source: where ``computed`` comes from (derived, measured, or quoted when there is
    none); tier: of the measurement, "" for a derivation, which holds in every tier; records: the cells (or records)
    behind it; reading: how the printed number was read (holitom_repro.paper.READINGS).
    """

    id: str
    statement: str
    place: str
    verdict: Verdict
    reason: str
    source: str
    unit: str
    printed: Number | None = None
    computed: Number | None = None
    low: Number | None = None
    high: Number | None = None
    tolerance: str = ""
    tier: str = ""
    experiment: str = ""
    records: tuple[str, ...] = ()
    reading: str = ""

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON."""
        return {**dataclasses.asdict(self), "verdict": str(self.verdict), "records": list(self.records)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Judged:
        """The inverse of :meth:`to_dict`."""
        words = {"verdict": Verdict(values["verdict"]), "records": tuple(values["records"])}
        return cls(**{**values, **words})


def judge_value(printed: Number, computed: Number, decimals: int) -> Verdict:
    """REPRODUCED when ``printed`` is ``computed`` correctly rounded to ``decimals``, else NOT REPRODUCED.

    Exactly half way both neighbours are correct, for nobody knows from how many digits the paper rounded.
    """
    close = abs(computed - printed) <= 0.5 * 10**-decimals + _SLACK
    return Verdict.REPRODUCED if close and math.isfinite(computed) else Verdict.NOT_REPRODUCED


def judge_score(record: Record | None, printed: Number, tolerance: Number = SCORE_TOLERANCE) -> tuple[Verdict, str]:
    """Verdict and reason for one measured score against the printed one, both in points.

    REPRODUCED within ``tolerance``; WITHIN NOISE when the printed score lies in the record's 95 % interval; NOT
    REPRODUCED otherwise. NOT RUN without a record, for a record of another tier than "paper" (a tiny model says
    nothing about the paper's), for a number that was not measured, and where the interval is wider than
    WIDEST_INTERVAL.
    """
    if record is None:
        return Verdict.NOT_RUN, "no measurement"
    if record.tier != "paper":
        return (
            Verdict.NOT_RUN,
            f"measured in the {record.tier} tier: another model, so the printed score does not apply",
        )
    if record.source != "measured":
        return Verdict.NOT_RUN, f"the record is {record.source}, not measured"
    gap = record.value - printed
    said = f"{record.value:.1f} against {printed:.1f} ({gap:+.1f} points)"
    if record.low is not None and record.high is not None:
        if record.high - record.low > WIDEST_INTERVAL:
            width = record.high - record.low
            return Verdict.NOT_RUN, f"{said}, but the interval is {width:.0f} points wide: too few questions"
        if abs(gap) > tolerance + _SLACK and record.low <= printed <= record.high:
            return Verdict.WITHIN_NOISE, f"{said}; the printed score is in [{record.low:.1f}, {record.high:.1f}]"
    if abs(gap) <= tolerance + _SLACK:
        return Verdict.REPRODUCED, f"{said}, tolerance {tolerance:g}"
    return Verdict.NOT_REPRODUCED, said


def judge_above(low: Number, high: Number, threshold: Number) -> Verdict:
    """Is a quantity with the interval [low, high] above ``threshold``?"""
    if low > threshold:
        return Verdict.REPRODUCED
    return Verdict.NOT_REPRODUCED if high <= threshold else Verdict.WITHIN_NOISE


def judge_equal(low: Number, high: Number, tolerance: Number) -> Verdict:
    """Is a difference with the interval [low, high] at most ``tolerance`` in size? An interval that holds 0 alone
    does not show it: the whole interval has to be inside."""
    if -tolerance <= low and high <= tolerance:
        return Verdict.REPRODUCED
    return Verdict.NOT_REPRODUCED if low > tolerance or high < -tolerance else Verdict.WITHIN_NOISE


def tally(judged: Sequence[Judged]) -> dict[str, int]:
    """How many claims have each verdict, in the order of Verdict, zeros included."""
    return {str(verdict): sum(claim.verdict is verdict for claim in judged) for verdict in Verdict}
