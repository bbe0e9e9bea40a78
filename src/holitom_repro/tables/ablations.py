"""The ablations as a table: one change at a time, its difference to the default, and what it decides."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from holitom_repro.ablations import DEFAULT, LEVEL, MARGIN, Factor, Finding, clear
from holitom_repro.figures.style import TIER_STAMPS
from holitom_repro.scores import BASELINE
from holitom_repro.tables import TableView
from holitom_repro.tables.measured import WIDE
from holitom_repro.tables.parts import Column, Kind, Part, Row, Text
from holitom_repro.tables.plain import p_value, scored, signed

NAME = "ablations_table"
POINTS = "difference to the default (points)"
LOOKS: dict[str, tuple[str, Kind]] = {
    "holds": ("✓", "good"),
    "does not hold": ("✗", "bad"),
    "within noise": ("≈", "noise"),
    "not decided": ("–", "muted"),
}
"""Glyph and look of a verdict on an expectation."""
WORDS = {-1: Text("▼ below", "bad"), 0: Text("not told apart", "muted"), 1: Text("▲ above", "good")}
"""What Holm's correction leaves of a difference."""


def ablation_table(table: pd.DataFrame, findings: Sequence[Finding], tier: str) -> TableView:
    """From ``ablations.against_default`` and ``ablations.findings``: a row per variant, a heading per factor."""
    names = _benchmarks(table)
    columns = (
        Column("", "Change", 2.1, "left"),
        Column("tokens", "per layer", 0.72),
        Column("", "FLOPs %", 0.62),
        Column("average", "score", WIDE),
        *(Column(POINTS, name, 0.95) for name in names),
        Column(POINTS, "average", 1.55),
        Column("", "p (Holm)", 0.68),
        Column("answers", "changed", 0.8),
        Column("", "beside the default", 1.2, "left"),
    )
    rows = [Row(_cells(row, names)) for _, row in table[table["factor"] == ""].iterrows()]
    for finding in findings:
        glyph, _ = LOOKS[finding.verdict]
        heading = f"{finding.factor.name}: {finding.factor.expected} {glyph} {finding.verdict}"
        rows.append(Row(heading=heading, rule=True))
        rows += [Row(_cells(row, names)) for _, row in table[table["factor"] == finding.factor.name].iterrows()]
    title = f"One change at a time around HoliTom at 10 %, {tier} tier"
    cut = [(column.group, column.head) for column in columns].index((POINTS, "average"))
    part = Part(f"{NAME}_parts", title, _caption(table, tier), columns, tuple(rows), _long(table), cut)
    return TableView(NAME, (part,))


def expectations(factors: Sequence[Factor]) -> pd.DataFrame:
    """What was expected of each factor beforehand, how it is tested, and why it is expected."""
    return pd.DataFrame([{"factor": f.name, "expected": f.expected, "test": f.test, "because": f.why} for f in factors])


def _cells(row: pd.Series, names: Sequence[str]) -> tuple[Text, ...]:
    label = {DEFAULT: "HoliTom as published", BASELINE: "all tokens"}.get(row["variant"], row["variant"])
    score = scored(row["value"], row["low"], row["high"])
    cells = [Text(label, bold=row["factor"] == ""), Text(f"{row['tokens']:.1f}", "measured")]
    cells += [Text(f"{row['flops_pct']:.1f}", "measured"), score]
    if pd.isna(row["diff"]):
        return (*cells, *[Text("–", "muted")] * (len(names) + 4))
    for name in names:
        out = "*" if row[f"{name}_low"] > 0 or row[f"{name}_high"] < 0 else ""
        cells.append(Text(f"{signed(row[name])}{out}", "plain"))
    interval = f"[{signed(row['diff_low'])}, {signed(row['diff_high'])}]"
    cells.append(Text(f"{signed(row['diff'])} {interval}", "measured"))
    tested = pd.notna(row["p_holm"])
    cells.append(Text(p_value(row["p_holm"]), "plain") if tested else Text("–", "muted"))
    cells.append(Text(f"{row['changed']:.0f}", "plain"))
    word = WORDS[clear(row) if tested else 0]
    same = tested and not row["changed"]
    cells.append(word if tested and not same else Text("no answer changes" if same else "not tested", "muted"))
    return tuple(cells)


def _caption(table: pd.DataFrame, tier: str) -> str:
    tested = table["p_holm"].notna().sum()
    stamp = TIER_STAMPS[tier][0].upper() + TIER_STAMPS[tier][1:]
    counts = table["n"].max()
    return (
        f"{stamp}. Every row changes one thing and is compared with the default on the same {counts} questions: "
        "accuracy in % with its 95 % interval; differences with 95 % intervals clustered by video, * where that "
        "of one benchmark leaves out 0 (not corrected). p: sign flips of whole videos, corrected by Holm for "
        f"{tested} comparisons; below and above mean p < {LEVEL:g} after that. Answers changed: of these {counts}. "
        f"Matters little: the whole interval within {MARGIN:g} points. Tokens: visual tokens per layer, mean over "
        "layers; the release's rounding makes them differ. FLOPs %: of all tokens. The expectations were written down "
        "before the measurement."
    )


def _long(table: pd.DataFrame) -> pd.DataFrame:
    return table.rename(columns={"variant": "row"})


def _benchmarks(table: pd.DataFrame) -> list[str]:
    return [column.removesuffix("_low") for column in table.columns if column.endswith("_low") and column != "diff_low"]
