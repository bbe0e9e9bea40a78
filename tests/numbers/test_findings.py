"""Findings: each follows from the numbers, and would not if the numbers were others."""

from __future__ import annotations

import dataclasses

import pandas as pd
import pytest

from holitom_repro import paper
from holitom_repro.claims import Judged, Verdict, accounting, findings
from holitom_repro.claims.trends import trends
from holitom_repro.experiments import cells
from holitom_repro.experiments.grids.findings import CLEAN, NOT_CAUSAL
from holitom_repro.figures.findings import findings_figure
from holitom_repro.masking import mask_differences

R, N, OPEN = Verdict.REPRODUCED, Verdict.NOT_REPRODUCED, Verdict.NOT_RUN


def test_all_derived_findings_hold_and_carry_evidence() -> None:
    judged = findings.finding_claims({})
    assert len(judged) == 10 and all(claim.id.startswith("finding-") and claim.reason for claim in judged)
    assert {claim.verdict for claim in judged if claim.source == "derived"} == {R}


def changed(monkeypatch, name: str, change) -> None:
    true = paper._read

    def other(table: str) -> pd.DataFrame:
        frame = true(table).copy()
        return change(frame) if table == name else frame

    monkeypatch.setattr(paper, "_read", other)


@pytest.mark.parametrize(
    ("function", "table", "column", "method", "value"),
    [
        (accounting.flops_are_macs, "table1", "flops_t", "FastV", 9.4),
        (accounting.ratios_of_rounded, "table1", "flops_pct", "DyCoke", 21.4),
        (accounting.mixed_budgets, "fig_inference", "avg", "VisionZip", 53.5),
        (accounting.end_to_end, "fig_inference", "ttft_ms", "HoliTom", 800),
    ],
)
def test_another_printed_number_changes_the_verdict(monkeypatch, function, table, column, method, value) -> None:
    def change(frame: pd.DataFrame) -> pd.DataFrame:
        frame[column] = frame[column].astype(float)
        frame.loc[frame["method"] == method, column] = value
        return frame

    assert function().verdict is R
    changed(monkeypatch, table, change)
    assert function().verdict is N


def test_merging_equals_dropping_only_while_it_is_printed_so(monkeypatch) -> None:
    def change(frame: pd.DataFrame) -> pd.DataFrame:
        frame.loc[(frame["method"] == "FastV") & (frame["layer"] == 18), "avg"] = 57.6
        return frame

    changed(monkeypatch, "fig_inner", change)
    assert findings.merging_equals_dropping({}).verdict is N


@pytest.mark.parametrize("rows", [2, 5, 13])
def test_newlines_counted_as_the_layout_places_them(rows: int) -> None:
    per_row = -(-26 // rows)
    kept = [13 * row + column for row in range(rows) for column in range(per_row)][:26]
    held = len({cell // 13 for cell in kept})
    assert accounting.arranged_share(kept) == pytest.approx(accounting.newline_share(len(kept), held))


def test_standard_errors_are_binomial() -> None:
    assert findings.standard_error(50.0, 2500) == pytest.approx(1.0)
    assert findings.standard_error(58.6, 2700) == pytest.approx(0.948, abs=0.001)
    found = findings.printed_differences()
    assert (found["se_difference"] > found["se"]).all() and len(found) == 152
    assert not ((found["rival"] == "HoliTom") | found["difference"].isna()).any()


def judged(verdict: Verdict, computed: float = 0.2) -> dict[str, Judged]:
    made = {}
    for name in findings.MASK_TRENDS:
        values = {"statement": "s", "place": "p", "reason": "r", "source": "measured", "unit": "points", "tier": "tiny"}
        made[name] = Judged(id=name, verdict=verdict, computed=computed, low=-1.0, high=1.4, records=("a",), **values)
    return made


def test_the_mask_needs_all_of_its_trends() -> None:
    assert set(findings.MASK_TRENDS) <= {trend.id for trend in trends()}
    assert findings.causal_mask({}).verdict is OPEN
    whole = judged(R)
    assert findings.causal_mask(whole).verdict is R
    first = next(iter(findings.MASK_TRENDS))
    for verdict, expected in ((OPEN, OPEN), (N, N), (Verdict.WITHIN_NOISE, Verdict.WITHIN_NOISE)):
        mixed = whole | {first: dataclasses.replace(whole[first], verdict=verdict)}
        assert findings.causal_mask(mixed).verdict is expected
    missing = {name: claim for name, claim in whole.items() if name != first}
    assert findings.causal_mask(missing).verdict is OPEN and first in findings.causal_mask(missing).reason


def test_the_mask_is_paired_at_every_setting_of_the_grid() -> None:
    plan = cells("findings", "tiny")

    def samples(cell) -> list[dict]:
        lost = cell.row == NOT_CAUSAL and cell.reduction.budget == 0.25
        return [{"doc_id": i, "video": f"v{i // 2}", "correct": float(not (lost and i < 4))} for i in range(80)]

    found = mask_differences(plan, "tiny", samples=samples)
    assert found["label"].is_unique and {"no mask, 25 %", "as released, 10 %"} <= set(found["label"])
    assert set(found["model"]) == {"onevision", "video"} and len(found["layer"].unique()) == 5
    lost = found[found["label"] == "no mask, 25 %"].iloc[0]
    assert lost["diff"] == pytest.approx(-5.0) and lost["changed"] == 16
    assert (found.drop(lost.name)["diff"] == 0).all() and CLEAN not in set(found["row"])
    figure, data = findings_figure(findings.printed_differences(), found)
    assert len(data) == 152 + len(found) and len(figure.axes) == 2
    shown = [text.get_text() for text in figure.axes[1].get_yticklabels()]
    assert "no mask, 10 %, K = 2 of 6 (7 of 28)" in shown and "no mask, 10 %, K = 1 of 6 (2 of 28)" in shown
    assert "no mask, 25 %" in shown and not any("%" in one and " %" not in one for one in shown)
    said = figure.axes[1].texts[0].get_text()
    assert "K if not named: 4 of 6 (18 of 28)" in said and "inter-" not in said
    assert findings_figure(findings.printed_differences(), found.head(0))[1]["panel"].unique().tolist() == ["printed"]
