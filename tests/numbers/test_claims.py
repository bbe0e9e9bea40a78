"""Verdicts at their boundaries, never across tiers, and never from a quoted number."""

from __future__ import annotations

import dataclasses
import json

import pytest

from holitom_repro import paper
from holitom_repro.claims import Verdict, all_claims, claims_of, judge_score, judge_value, score_claims, table_claims
from holitom_repro.claims.judging import judge_above, judge_equal, tally
from holitom.errors import BadUsage
from holitom_repro.results import Record

R, W, N = Verdict.REPRODUCED, Verdict.WITHIN_NOISE, Verdict.NOT_REPRODUCED


def score(value: float, low: float | None = None, high: float | None = None, **changes) -> Record:
    values = {
        "experiment": "table1",
        "row": "Vanilla",
        "unit": "points",
        "metric": "accuracy",
        "model": "ov-7b",
        "benchmark": "videomme",
        "tier": "paper",
        "source": "measured",
        "provenance": {"python": "3.11"},
        "method": {"budget": 1.0},
        "n": 2700,
    }
    return Record(value=value, low=low, high=high, **{**values, **changes})


@pytest.mark.parametrize(
    ("printed", "computed", "decimals", "verdict"),
    [
        (8.7, 8.711, 1, R),
        (8.7, 8.7499, 1, R),
        (8.7, 8.75, 1, R),  # exactly half way: both neighbours are correct roundings
        (8.8, 8.75, 1, R),
        (8.7, 8.7501, 1, N),
        (8.7, 8.6499, 1, N),
        (58.2, 58.25, 1, R),
        (2.28, 2.277, 2, R),
        (2.28, 2.286, 2, N),
        (917, 917.4, 0, R),
        (917, 917.6, 0, N),
        (8.7, float("nan"), 1, N),
        (8.7, float("inf"), 1, N),
    ],
)
def test_to_the_printed_digit(printed: float, computed: float, decimals: int, verdict: Verdict) -> None:
    assert judge_value(printed, computed, decimals) is verdict


@pytest.mark.parametrize(
    ("record", "verdict"),
    [
        (score(58.6, 57, 60), R),
        (score(59.1, 57, 61), R),  # exactly the tolerance
        (score(59.2, 58.7, 59.7), N),
        (score(59.2, 58.6, 59.8), W),  # the printed score is the interval's end
        (score(59.2), N),
        (score(58.9), R),
        (score(62.4, 60.6, 64.2), N),
        (score(58.6, 50, 70), Verdict.NOT_RUN),  # an interval this wide agrees with anything
        (score(58.6, 57, 60, tier="tiny"), Verdict.NOT_RUN),
        (score(58.6, 57, 60, tier="speed"), Verdict.NOT_RUN),
        (score(58.6, 57, 60, source="derived"), Verdict.NOT_RUN),
        (score(58.6, 57, 60, source="quoted"), Verdict.NOT_RUN),
        (None, Verdict.NOT_RUN),
    ],
)
def test_scores_against_printed_58_6(record: Record | None, verdict: Verdict) -> None:
    found, reason = judge_score(record, 58.6)
    assert found is verdict and reason


@pytest.mark.parametrize(
    ("low", "high", "above", "equal"),
    [
        (0.1, 2, R, W),
        (0.0, 2, W, W),
        (-0.5, 0.5, W, R),
        (-1, 1, W, R),
        (-2, 0, N, W),
        (-3, -1, N, W),
        (-3, -1.5, N, N),
        (1.5, 3, R, N),
    ],
)
def test_intervals_against_a_threshold(low: float, high: float, above: Verdict, equal: Verdict) -> None:
    assert judge_above(low, high, 0) is above
    assert judge_equal(low, high, 1) is equal


@pytest.mark.parametrize(("table", "count"), [("table1", 24 * 2 + 20 * 2), ("table2", 12 * 4), ("fig_inference", 17)])
def test_everything_that_follows_from_a_table_is_reproduced(table: str, count: int) -> None:
    judged = table_claims(table)
    assert len(judged) == count == len({claim.id for claim in judged})
    assert [claim.id for claim in judged if claim.verdict is not R] == []
    assert {claim.source for claim in judged} == {"derived"} and {claim.tier for claim in judged} == {""}


def test_what_nobody_can_derive_is_not_run() -> None:
    judged = {claim.id: claim for claim in table_claims("hieravid")}
    open_cell = judged.pop("hieravid/video-7b/FastV/30/flops_pct")
    assert open_cell.verdict is Verdict.NOT_RUN and open_cell.computed is None and "39.3" in open_cell.reason
    assert {claim.verdict for claim in judged.values()} == {R}


def test_a_wrong_printed_number_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    true = paper._read

    def misprinted(name: str):
        frame = true(name).copy()
        frame.loc[frame["method"] == "FastV", "flops_t"] = 9.4
        frame.loc[frame["method"] == "PDrop", "avg"] = 57.2
        return frame

    monkeypatch.setattr(paper, "_read", misprinted)
    wrong = [claim.id for claim in table_claims("table1") if claim.verdict is N]
    assert wrong == [
        "table1/ov-7b/FastV/100/flops_t",
        "table1/ov-7b/PDrop/100/avg",
        "table1/ov-7b/PDrop/100/avg_pct",
    ]


def test_scores_are_quoted_until_they_are_measured() -> None:
    assert {claim.verdict for claim in score_claims("table1", [])} == {Verdict.QUOTED}
    tiny = [score(58.6, 57, 60, tier="tiny", model="ov-7b"), score(58.6, 57, 60, source="quoted")]
    judged = score_claims("table1", tiny)
    assert {claim.verdict for claim in judged} == {Verdict.QUOTED}
    assert all(claim.computed is None and claim.source == "quoted" for claim in judged)


def by_id(records: list[Record]) -> dict[str, Verdict]:
    return {claim.id: claim.verdict for claim in score_claims("table1", records)}


def test_the_unreduced_model_is_judged_first() -> None:
    method = {"row": "HoliTom", "method": {"budget": 0.10}}
    good = by_id([score(58.5, 57, 60), score(56.8, 55, 58, **method)])
    assert good["table1/ov-7b/Vanilla/100/videomme"] is R
    assert good["table1/ov-7b/HoliTom/10/videomme"] is R
    assert good["table1/ov-7b/HoliTom/25/videomme"] is Verdict.QUOTED
    off = by_id([score(63.9, 62, 65.5), score(56.8, 55, 58, **method)])
    assert off["table1/ov-7b/Vanilla/100/videomme"] is N
    assert off["table1/ov-7b/HoliTom/10/videomme"] is Verdict.NOT_RUN


def test_a_score_with_borrowed_saliency_is_not_the_row() -> None:
    swapped = score(56.8, 55, 58, row="HoliTom", method={"budget": 0.10}, extra={"saliency": "random"})
    assert by_id([swapped])["table1/ov-7b/HoliTom/10/videomme"] is Verdict.QUOTED


def test_the_longest_then_newest_measurement_counts() -> None:
    short = score(50.0, 46, 54, n=300, created="2027-01-01T00:00:00+00:00")
    full = score(58.6, 57, 60, created="2026-01-01T00:00:00+00:00")
    for order in ([short, full], [full, short]):
        assert by_id(order)["table1/ov-7b/Vanilla/100/videomme"] is R


def test_the_ledger_is_json_and_complete() -> None:
    judged = all_claims([], "tiny")
    text = json.dumps([claim.to_dict() for claim in judged])
    assert "REPRODUCED" in text and len({claim.id for claim in judged}) == len(judged)
    counts = tally(judged)
    assert sum(counts.values()) == len(judged)
    assert [claim.id for claim in judged if claim.verdict == "NOT REPRODUCED"] == ["holitom/abstract/tokens"]
    assert all(claim.statement and claim.place and claim.reason for claim in judged)
    assert {f.name for f in dataclasses.fields(judged[0])} == set(judged[0].to_dict())


def test_claims_of_one_experiment() -> None:
    flops = claims_of("flops", [], "tiny")
    assert len(flops) == 2 * 24 + 2 * 12 + 4
    assert {claim.experiment for claim in claims_of("table2", [], "tiny")} == {"table2"}
    assert claims_of("fig-inner", [], "tiny") and claims_of("fig_inner", [], "paper") == []
    with pytest.raises(BadUsage, match="table1"):
        table_claims("table9")
