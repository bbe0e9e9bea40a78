"""What the printed numbers say about themselves: findings of this kit, each with evidence that can be computed again.

A finding is REPRODUCED when the computation, or the tiny tier's paired tests, show what its statement says; the other
functions give the numbers behind it to notebooks/findings.ipynb. Findings on counting are in ``claims.accounting``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import pandas as pd

from holitom_repro import paper
from holitom_repro.claims import accounting
from holitom_repro.claims.accounting import TABLES, finding
from holitom_repro.claims.judging import Judged, Verdict
from holitom_repro.results import Number

QUESTIONS = {"mvbench": 4000, "egoschema": 5031, "longvideobench": 1337, "videomme": 2700}
"""Questions behind each printed score: 20 tasks of 200, the full set (its server judges), the validation set, all."""
OPERATING_POINT = (18, 0.5)
MASK_TRENDS = {
    "trend-ablation-not-causal": "no mask at 10 %",
    "trend-finding-not-causal-at-25": "no mask at 25 %",
    "trend-finding-not-causal-early": "no mask at 10 % and K = 7 of 28",
    "trend-finding-released-at-10": "as released at 10 %",
    "trend-finding-released-on-video": "as released at 15 % on the LLaVA-Video-like model",
}
"""What the finding on the mask follows from: the trend's id, and its setting in words."""


def finding_claims(others: Mapping[str, Judged]) -> list[Judged]:
    """All findings; others: judged claims by id, for those that rest on trends of the tiny tier."""
    return [
        accounting.flops_are_macs(),
        accounting.flops_understate(),
        accounting.ratios_of_rounded(),
        accounting.newline_budget(),
        accounting.whole_tokens_budget(),
        accounting.mixed_budgets(),
        accounting.end_to_end(),
        merging_equals_dropping(others),
        causal_mask(others),
        within_standard_error(),
    ]


def merging_equals_dropping(others: Mapping[str, Judged]) -> Judged:
    """Merging against dropping at the paper's own operating point."""
    layer, ratio = OPERATING_POINT
    rows = paper.table("fig_inner")
    here = rows[(rows["layer"] == layer) & (rows["ratio"] == ratio)].set_index("method")["avg"]
    wide = rows.drop_duplicates(["method", "layer", "ratio"]).pivot_table(
        index=["layer", "ratio"], columns="method", values="avg"
    )
    gaps = wide["HoliTom"] - wide["FastV"]
    trend = others.get("trend-merge-equals-drop")
    tiny = f"; tiny tier: {trend.verdict}, {trend.reason}" if trend else ""
    return finding(
        "merging-equals-dropping",
        "At K = 18 and R = 50 %, where Table 1 is measured, merging inside the model scores like dropping",
        bool(here["HoliTom"] == here["FastV"]),
        f"{here['HoliTom']} and {here['FastV']} are printed; merging is ahead by {gaps.max():.1f} points at most, "
        f"at smaller K or larger R{tiny}",
        computed=float(here["HoliTom"] - here["FastV"]),
        unit="points",
        tolerance="equal as printed",
        experiment="fig_inner",
    )


def causal_mask(others: Mapping[str, Judged]) -> Judged:
    """What the release's unmasked layer does to scores, from the tiny tier's trends."""
    trends = [others[name] for name in MASK_TRENDS if name in others]
    verdicts = [trend.verdict for trend in trends]
    common = {
        "id": "finding-causal-mask",
        "statement": "Running layer K - 1 without a causal mask, as the release does, moves scores by under 1.5 points",
        "place": "this kit, on HoliTom's released code",
        "unit": "points",
        "tolerance": "within +- 1.5 points in each of the trends declared for it, with the whole 95 % interval",
        "experiment": "findings",
        "tier": "tiny",
        "reading": "derived",
    }
    if len(trends) < len(MASK_TRENDS) or Verdict.NOT_RUN in verdicts:
        missing = [name for name in MASK_TRENDS if name not in others or others[name].verdict is Verdict.NOT_RUN]
        why = f"{', '.join(missing)}: not measured; ./reproduce.sh findings and ./reproduce.sh ablations measure them"
        return Judged(**common, verdict=Verdict.NOT_RUN, reason=why, source="quoted")
    worst = max(trends, key=lambda trend: abs(trend.computed or 0))
    verdict = Verdict.WITHIN_NOISE
    if Verdict.NOT_REPRODUCED in verdicts:
        verdict = Verdict.NOT_REPRODUCED
    elif all(one is Verdict.REPRODUCED for one in verdicts):
        verdict = Verdict.REPRODUCED
    parts = [f"{MASK_TRENDS[one.id]} {one.computed:+z.1f} [{one.low:+z.1f}, {one.high:+z.1f}]" for one in trends]
    return Judged(
        **common,
        computed=worst.computed,
        low=worst.low,
        high=worst.high,
        verdict=verdict,
        reason=f"points, changed stage minus the text's: {'; '.join(parts)}",
        source="measured",
        records=tuple(dict.fromkeys(record for trend in trends for record in trend.records)),
    )


def standard_error(score: Number, questions: int) -> float:
    """Binomial standard error of a score, both in points."""
    return 100 * math.sqrt(score / 100 * (1 - score / 100) / questions)


def printed_differences() -> pd.DataFrame:
    """HoliTom minus every other row of its model at the same nominal budget (methods inside the model, and all tokens,
    at every budget), per benchmark: difference, se (of one score), se_difference (of two independent ones)."""
    made = []
    for name in TABLES:
        scores = paper.scores(name)
        mine = scores[scores["method"] == "HoliTom"]
        for row in mine.itertuples():
            rivals = scores[(scores["model"] == row.model) & (scores["benchmark"] == row.benchmark)]
            rivals = rivals[rivals["retained_pct"].isin([row.retained_pct, 100]) & (rivals["method"] != "HoliTom")]
            n = QUESTIONS[row.benchmark]
            for rival in rivals.itertuples():
                both = standard_error(row.score, n), standard_error(rival.score, n)
                made.append(
                    {
                        "table": name,
                        "model": row.model,
                        "budget": row.retained_pct,
                        "benchmark": row.benchmark,
                        "rival": rival.method,
                        "difference": row.score - rival.score,
                        "se": both[0],
                        "se_difference": math.hypot(*both),
                        "source": "derived",
                    }
                )
    return pd.DataFrame(made)


def within_standard_error() -> Judged:
    """How many of the printed differences a single run of each benchmark could tell from none."""
    found = printed_differences()
    one = found["difference"].abs() <= found["se"]
    noise = found["difference"].abs() <= 1.96 * found["se_difference"]
    full = found["rival"].isin(["HoliTom (w/o M)", "Vanilla"])
    ses = {paper.BENCHMARKS[name]: group["se"].mean() for name, group in found.groupby("benchmark", sort=False)}
    sizes = ", ".join(f"{name} {se:.2f}" for name, se in ses.items())
    merged = found["rival"] == "HoliTom (w/o M)"
    return finding(
        "within-standard-error",
        "Most printed differences between HoliTom and another row are smaller than sampling noise of independent runs",
        bool(noise.mean() > 0.5),
        f"{int(one.sum())} of {len(found)} are within one standard error of a score, {int(noise.sum())} within 1.96 of "
        f"a difference; against all tokens or without the inner stage {int(noise[full].sum())} of {int(full.sum())}, "
        f"and without the inner stage within one {int(one[merged].sum())} of {int(merged.sum())}; in points: {sizes}. "
        "The same questions were asked, so a paired test would resolve more, but no answers are published",
        computed=100 * float(noise.mean()),
        unit="% of the differences",
        tolerance="more than half within 1.96 standard errors",
        experiment="findings",
    )
