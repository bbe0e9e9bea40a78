"""Claims that stand in the cells of printed tables: FLOPs, shares, averages and scores."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pandas as pd

from holitom_repro import paper
from holitom_repro.claims.judging import SCORE_TOLERANCE, Judged, Verdict, judge_score, judge_value
from holitom.errors import BadUsage
from holitom.flops import LLMShape
from holitom_repro.results import Number, Record

DECIMALS = 1  # of every cell of the tables; speed-ups are printed with two
ROUNDING = "to the printed digit"


def table_claims(table: str) -> list[Judged]:
    """What a printed table says that follows from its settings or from its other cells, re-derived.

    table1, table2: FLOPs (T) of every row, its share of the unreduced model's (ratio of printed, that is rounded,
    numbers), the average of the four scores, and the average as a share of the unreduced one's. hieravid: FLOPs
    shares and means of ratios. fig_inference: sums, speed-ups and score differences. BadUsage for another table.
    """
    name = table.replace("-", "_")
    derive = {"table1": _of_table, "table2": _of_table, "hieravid": _of_hieravid, "fig_inference": _of_inference}
    if name not in derive:
        raise BadUsage(f"nothing is derived for {table!r}", fix=f"use one of {', '.join(derive)}")
    return list(derive[name](name))


def score_claims(table: str, records: Sequence[Record], tolerance: Number = SCORE_TOLERANCE) -> list[Judged]:
    """Every printed score of table1 or table2 against the paper-tier record of its row, QUOTED where there is none.

    The unreduced model goes first: where its own score is off, the other rows of that model and benchmark are not
    judged, because the evaluation differs and not the method.
    """
    name = table.replace("-", "_")
    judged = []
    off: set[tuple[str, str]] = set()
    printed = paper.scores(name)
    rows = pd.concat([printed[printed["method"] == "Vanilla"], printed[printed["method"] != "Vanilla"]])
    for row in rows.itertuples():
        record = _measured(records, name, row)
        baseline = (row.model, row.benchmark)
        verdict, reason = judge_score(record, row.score, tolerance)
        if record is None:
            verdict = Verdict.QUOTED
            reason = f"printed; ./reproduce.sh {name.replace('_', '-')} --tier paper measures it"
        if row.benchmark in paper.OTHER_QUESTIONS:
            verdict, reason = Verdict.QUOTED, paper.OTHER_QUESTIONS[row.benchmark]
        elif row.method == "Vanilla" and verdict is Verdict.NOT_REPRODUCED:
            off.add(baseline)
        elif baseline in off:
            verdict, reason = Verdict.NOT_RUN, f"{reason}; the unreduced model is off here, so no verdict on the method"
        label = paper.BENCHMARKS[row.benchmark]
        judged.append(
            Judged(
                id=f"{name}/{row.model}/{row.method}/{row.retained_pct}/{row.benchmark}",
                statement=f"{_row_name(row)} scores {row.score:.1f} on {label}",
                place=place_of(name),
                printed=row.score,
                computed=record.value if record else None,
                low=record.low if record else None,
                high=record.high if record else None,
                unit="points",
                tolerance=f"{tolerance:g} points, or the 95 % interval",
                verdict=verdict,
                reason=reason,
                source="measured" if record else "quoted",
                tier=record.tier if record else "",
                experiment=name,
                records=(record.extra.get("cell") or record.key,) if record else (),
                reading=row.reading,
            )
        )
    return judged


def _of_table(name: str) -> Iterator[Judged]:
    flops = paper.flops_columns(name)
    for (_, row), cost in zip(paper.table(name).iterrows(), flops.itertuples(), strict=True):
        rows = paper.table(name)
        base = rows[(rows["model"] == row.model) & (rows["method"] == "Vanilla")].iloc[0]
        exact = f"before rounding {cost.flops_pct_exact:.2f} %"
        yield _cell(name, row, "flops_t", cost.flops_t_derived, "T", "sum of 4nd^2 + 2n^2d + 2ndm over layers, in MACs")
        yield _cell(name, row, "flops_pct", cost.flops_pct_rounded, "%", f"ratio of rounded numbers; {exact}")
        scores = row[list(paper.BENCHMARKS)]
        if scores.notna().all():
            yield _cell(name, row, "avg", float(scores.mean()), "points", "mean of the four printed scores")
            yield _cell(name, row, "avg_pct", 100 * row["avg"] / base["avg"], "%", "ratio of printed averages")


def _of_hieravid(name: str) -> Iterator[Judged]:
    printed = paper.table(name)
    columns = ["mvbench", "nextqa", "egoschema", "videomme", "videomme_subtitles"]
    base = printed[printed["method"] == "Vanilla"].iloc[0]
    for _, row in printed.iterrows():
        try:
            counts = paper.layer_tokens(name, row.model, row.method, row.retained_pct)
        except BadUsage as unknown:
            yield _unknown(name, row, "flops_pct", "%", unknown.what)
        else:
            full = paper.layer_tokens(name, row.model, "Vanilla", 100)
            shape = LLMShape.named(row.model)
            yield _cell(
                name, row, "flops_pct", 100 * shape.paper(counts) / shape.paper(full), "%", "formula over stages"
            )
        mean = float((100 * row[columns].astype(float) / base[columns].astype(float)).mean())
        yield _cell(name, row, "mean_of_ratios_pct", mean, "%", "mean of the ratios per benchmark, not ratio of means")


def _of_inference(name: str) -> Iterator[Judged]:
    printed = paper.table(name)
    base = printed[printed["method"] == "Vanilla"].iloc[0]
    for _, row in printed.iterrows():
        total = float(row["vision_ms"] + row["other_ms"] + row["llm_ms"])
        yield _cell(name, row, "ttft_ms", total, "ms", "sum of the three stages as labelled", decimals=0)
        for column, ratio in (
            ("ttft_speedup", base["ttft_ms"] / row["ttft_ms"]),
            ("decode_speedup", row["decode_tok_s"] / base["decode_tok_s"]),
        ):
            if pd.notna(row[column]):
                yield _cell(name, row, column, ratio, "x", "ratio of printed numbers", decimals=2)
        if pd.notna(row["avg_delta"]):
            yield _cell(name, row, "avg_delta", row["avg"] - base["avg"], "points", "difference of printed averages")


def _cell(
    table: str, row: pd.Series, column: str, computed: float, unit: str, how: str, decimals: int = DECIMALS
) -> Judged:
    printed, computed = float(row[column]), float(computed)
    return Judged(
        id=_id(table, row, column),
        statement=f"{_row_name(row)}: {_COLUMNS[column]} {printed:.{decimals}f} {unit}",
        place=place_of(table),
        printed=printed,
        computed=computed,
        unit=unit,
        tolerance=ROUNDING,
        verdict=judge_value(printed, computed, decimals),
        reason=f"{computed:.{decimals + 2}f} {unit}: {how}",
        source="derived",
        experiment=table,
        reading=row["reading"],
    )


def _unknown(table: str, row: pd.Series, column: str, unit: str, why: str) -> Judged:
    return Judged(
        id=_id(table, row, column),
        statement=f"{_row_name(row)}: {_COLUMNS[column]} {float(row[column]):.1f} {unit}",
        place=place_of(table),
        printed=float(row[column]),
        unit=unit,
        tolerance=ROUNDING,
        verdict=Verdict.NOT_RUN,
        reason=why,
        source="quoted",
        experiment=table,
        reading=row["reading"],
    )


def _id(table: str, row: pd.Series, column: str) -> str:
    parts = (table, row["model"], row["method"], str(row["retained_pct"]) if "retained_pct" in row else "", column)
    return "/".join(part for part in parts if part)


def _row_name(row: pd.Series | tuple) -> str:
    share = getattr(row, "retained_pct", 100)
    at = "" if share == 100 else f" at {share:g} %"
    return f"{paper.MODELS[row.model]}, {row.method}{at}"


def place_of(table: str) -> str:
    first = paper.table(table).iloc[0]
    return f"{first['paper']} (arXiv {first['arxiv']}), {first['place']}"


def _measured(records: Sequence[Record], table: str, row: tuple) -> Record | None:
    """The paper-tier measurement of one printed score; of several, the one with the most questions, then the
    newest."""
    fitting = [
        record
        for record in records
        if (record.tier, record.source, record.experiment, record.row) == ("paper", "measured", table, row.method)
        and record.model == row.model
        and record.benchmark == paper.TASKS[row.benchmark]
        and round(100 * (record.method or {}).get("budget", 1.0)) == row.retained_pct
        and record.extra.get("saliency", "own") == "own"
    ]
    return max(fitting, key=lambda record: (record.n or 0, record.created), default=None)


_COLUMNS = {
    "flops_t": "prefill FLOPs",
    "flops_pct": "share of the prefill FLOPs",
    "avg": "average score",
    "avg_pct": "share of the average score",
    "mean_of_ratios_pct": "mean share of the scores",
    "ttft_ms": "time to first token",
    "ttft_speedup": "speed-up of the time to first token",
    "decode_speedup": "speed-up of decoding",
    "avg_delta": "average score lost",
}
