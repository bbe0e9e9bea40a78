"""The paper's table with everything in it that can be calculated, calculated again: FLOPs, ratios, averages,
percentages."""

from __future__ import annotations

from typing import Any

import pandas as pd

from holitom_repro import paper
from holitom_repro.claims.judging import judge_value
from holitom_repro.tables.parts import Column, Part, Row, Text, verdict

SHORT = {"mvbench": "MVB", "egoschema": "Ego", "longvideobench": "LVB", "videomme": "VMME"}
COLUMNS = (
    Column("", "Method", 1.32, "left"),
    Column("", "kept", 0.52),
    Column("FLOPs (T)", "printed", 0.62),
    Column("FLOPs (T)", "derived", 0.68),
    Column("FLOPs ratio (%)", "printed", 0.62),
    Column("FLOPs ratio (%)", "derived", 0.62),
    Column("FLOPs", "verdict", 1.22, "left"),
    *(Column("quoted scores", SHORT[name], 0.5) for name in paper.BENCHMARKS),
    Column("average", "quoted", 0.6),
    Column("average", "derived", 0.68),
    Column("% of Vanilla", "quoted", 0.6),
    Column("% of Vanilla", "derived", 0.68),
    Column("averages", "verdict", 1.22, "left"),
)
NUMBER = {"1": "Table 1", "2": "Table 2"}


def derived_part(name: str) -> Part:
    """Every printed row of table1 or table2 in the paper's order, with FLOPs and averages re-derived and judged."""
    printed, flops = paper.table(name), paper.flops_columns(name)
    rows: list[Row] = []
    numbers: list[dict[str, Any]] = []
    several = printed["model"].nunique() > 1
    last: tuple[Any, Any] = (None, None)
    for (_, row), (_, cost) in zip(printed.iterrows(), flops.iterrows(), strict=True):
        model, kept = row["model"], row["retained_pct"]
        if several and model != last[0]:
            rows.append(Row(heading=f"{paper.MODELS[model]}, {frames_of(name, model)} frames", rule=True))
        base = printed[(printed["model"] == model) & (printed["method"] == "Vanilla")].iloc[0]
        rows.append(Row(_cells(row, cost, base), rule=bool(last[0] == model and kept != last[1])))
        numbers += _numbers(row, cost, base)
        last = model, kept
    title = f"{NUMBER[name[-1]]} of HoliTom (arXiv 2505.21334): what can be calculated, calculated again"
    caption = (
        f"{_models(name, printed)} FLOPs derived by the papers' formula from the visual tokens entering each layer "
        "(multiply-accumulates; text, newlines, vision tower and the reduction itself left out); FLOPs ratios are, as "
        "printed, ratios of rounded numbers; kept is the share before the language model, so what stages inside "
        "it save shows in the FLOPs only; averages recomputed from the four quoted scores, percentages from the quoted "
        "averages. Numbers in grey italics are quoted from the paper; nothing in this table was measured. ✓ "
        "REPRODUCED: equal to every printed digit (a mean that ends in 5 may round either way)."
    )
    return Part(f"{name}_derived", title, caption, COLUMNS, tuple(rows), pd.DataFrame(numbers), cut=7)


def flops_verdict(cost: pd.Series) -> str:
    """REPRODUCED when both derived numbers round to the printed ones."""
    both = (
        judge_value(cost["flops_t"], cost["flops_t_derived"], 1),
        judge_value(cost["flops_pct"], cost["flops_pct_rounded"], 1),
    )
    return "REPRODUCED" if set(both) == {"REPRODUCED"} else "NOT REPRODUCED"


def averages_of(row: pd.Series, base: pd.Series) -> tuple[float, float]:
    """The mean of a row's four scores, and the printed average in per cent of the unreduced model's printed one."""
    mean = float(row[list(paper.BENCHMARKS)].astype(float).mean(skipna=False))
    return mean, 100 * row["avg"] / base["avg"]


def averages_verdict(row: pd.Series, base: pd.Series) -> str:
    """REPRODUCED when mean and percentage agree with the printed digit; none ("") where the paper prints no average."""
    mean, share = averages_of(row, base)
    if mean != mean or pd.isna(row["avg"]):
        return ""
    both = judge_value(row["avg"], mean, 1), judge_value(row["avg_pct"], share, 1)
    return "REPRODUCED" if set(both) == {"REPRODUCED"} else "NOT REPRODUCED"


def _cells(row: pd.Series, cost: pd.Series, base: pd.Series) -> tuple[Text, ...]:
    mean, share = averages_of(row, base)
    judged = averages_verdict(row, base)
    return (
        Text(row["method"], bold=row["method"] == "HoliTom"),
        Text(f"{row['retained_pct']:.0f}%"),
        quoted(row["flops_t"]),
        Text(f"{cost['flops_t_derived']:.3f}", "derived"),
        quoted(row["flops_pct"]),
        Text(f"{cost['flops_pct_rounded']:.3f}", "derived"),
        verdict(flops_verdict(cost)),
        *(quoted(row[name]) for name in paper.BENCHMARKS),
        quoted(row["avg"]),
        Text(f"{mean:.2f}" if mean == mean else "–", "derived" if mean == mean else "muted"),
        quoted(row["avg_pct"]),
        Text(f"{share:.2f}" if share == share else "–", "derived" if share == share else "muted"),
        verdict(judged) if judged else Text("–", "muted"),
    )


def quoted(value: float | int) -> Text:
    """A printed number, marked as quoted; a dash where the paper prints none."""
    return Text("–", "muted") if pd.isna(value) else Text(f"{value:.1f}", "quoted")


def _numbers(row: pd.Series, cost: pd.Series, base: pd.Series) -> list[dict[str, Any]]:
    mean, share = averages_of(row, base)
    both = [(name, row[name], "quoted", "%") for name in paper.BENCHMARKS]
    both += [("flops", row["flops_t"], "quoted", "T"), ("flops", cost["flops_t_derived"], "derived", "T")]
    both += [
        ("flops_ratio", row["flops_pct"], "quoted", "%"),
        ("flops_ratio", cost["flops_pct_rounded"], "derived", "%"),
    ]
    both += [("average", row["avg"], "quoted", "%"), ("average", mean, "derived", "%")]
    both += [("average_ratio", row["avg_pct"], "quoted", "%"), ("average_ratio", share, "derived", "%")]
    label = {"model": row["model"], "row": row["method"], "retained_pct": row["retained_pct"]}
    return [
        label | {"column": column, "value": value, "unit": unit, "source": source}
        for column, value, source, unit in both
        if not pd.isna(value)
    ]


def frames_of(name: str, model: str) -> int:
    settings = paper.settings()
    return int(settings[(settings["table"] == name) & (settings["model"] == model)]["frames"].iloc[0])


def _models(name: str, printed: pd.DataFrame) -> str:
    if printed["model"].nunique() > 1:
        return "Other backbones."
    model = printed["model"].iloc[0]
    return f"{paper.MODELS[model]}, {frames_of(name, model)} frames."
