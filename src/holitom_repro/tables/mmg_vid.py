"""MMG-Vid's numbers as far as they are known: what can be calculated, calculated again, and its reconstruction,
measured beside other methods at the same budgets."""

from __future__ import annotations

import dataclasses
import math
import re
from typing import Any

import pandas as pd

from holitom_repro import paper
from holitom_repro.claims.judging import judge_value
from holitom_repro.claims.mmg_vid import NAME, SCORES, Block, blocks, derived_flops, share_of_means
from holitom.methods.mmg_vid import MMGVid
from holitom_repro.tables import TableView, beside
from holitom_repro.tables.derived import quoted
from holitom_repro.tables.lines import MODEL_OF
from holitom_repro.tables.parts import Column, Part, Row, Text, verdict

COLUMNS = (
    Column("", "Method", 1.0, "left"),
    Column("", "kept", 0.52),
    Column("FLOPs (T)", "printed", 0.62),
    Column("FLOPs (T)", "derived", 0.68),
    Column("FLOPs", "verdict", 1.22, "left"),
    *(Column("quoted scores", name, 0.62) for name in ("MVB", "LVB", "VMME", "MLVU")),
    Column("average", "quoted", 0.6),
    Column("average", "derived", 0.68),
    Column("% of all", "quoted", 0.6),
    Column("% of all", "derived", 0.68),
    Column("averages", "verdict", 1.22, "left"),
)


def mmg_vid_table(scores: pd.DataFrame | None = None, tier: str = "tiny") -> TableView:
    """Both parts; without scores (``scores.score_frame`` of the experiment's cells) the calculated one alone."""
    parts = [derived_part()]
    if scores is not None and len(scores):
        parts.append(measured_part(scores, tier))
    return TableView(NAME, tuple(parts))


def derived_part() -> Part:
    """Every known number of MMG-Vid, source by source, with FLOPs, averages and shares re-derived."""
    rows: list[Row] = []
    numbers: list[dict[str, Any]] = []
    for block in blocks():
        frames = {"ov-7b": 32, "video-7b": 64}[block.model]
        rows.append(Row(heading=f"{paper.MODELS[block.model]}, {frames} frames: {block.source}", rule=True))
        for share in block.rows.index:
            rows.append(Row(_cells(block, int(share))))
            numbers += _numbers(block, int(share))
    caption = (
        "FLOPs derived with the model's true shapes from the visual tokens (multiply-accumulates; text, newlines, "
        "vision tower and the reduction left out), which is InfoMerge's count and not that of HoliTom's tables; the "
        "printed digits need the share of a frame's tokens rounded down (25 and 16 of 169). Shares recomputed as "
        "ratios of mean scores. Grey italics are quoted; a dash is a number that was not found, so MMG-Vid's own "
        "99.5 % cannot be recomputed. Nothing in this part was measured."
    )
    title = "MMG-Vid (arXiv 2508.21044): what can be calculated, calculated again"
    return Part(f"{NAME}_derived", title, caption, COLUMNS, tuple(rows), pd.DataFrame(numbers), cut=5)


def measured_part(scores: pd.DataFrame, tier: str) -> Part:
    """The reconstruction with either sign of its gain, beside the other methods."""
    remark = (
        "MMG-Vid is a reconstruction, never a reproduction; opposite gain: the contrary reading of its equation 6. It "
        "keeps exactly round(share x tokens); HoliTom rounds up in every frame, and ends below the share where merging "
        "over time alone goes further."
    )
    title = f"MMG-Vid (reconstruction) at the {tier} tier, beside other methods at the same budgets"
    return beside.measured_part(NAME, title, scores, tier, printed_shares, own="MMG-Vid", remark=remark)


def printed_shares(tier: str) -> beside.Shares:
    """What papers print for the rows of the measured part: MMG-Vid's sources, HoliTom's tables, and InfoMerge for
    FastVID (HoliTom's tables leave its average open)."""
    shares: dict[tuple[str, str, int], float] = {}
    names = MODEL_OF[tier]
    for table in ("table1", "table2"):
        for row in paper.table(table).itertuples():
            here = names.get(row.model)
            if here and not math.isnan(row.avg_pct):
                shares[here, row.method, int(row.retained_pct)] = row.avg_pct
    for row in paper.table("other_reports").itertuples():
        here = names.get(row.model)
        if here and (row.report, row.metric, row.method) == ("infomerge", "relative", "FastVID"):
            shares[here, row.method, int(row.retained_pct)] = row.value
    for block in blocks():
        for share, value in block.rows["relative"].dropna().items():
            shares[names.get(block.model) or "", "MMG-Vid", int(share)] = float(value)  # type: ignore[call-overload]
    return shares


PLAINER = {
    "A8": "attention plays no part (True: it multiplies the score)",
    "A9": "no noise on the densities (the public DPC-KNN codes add some, of 1e-6; here it would have a fixed seed)",
}
"""What the docstring says of a field in half a sentence, said in a whole one."""


def assumptions() -> pd.DataFrame:
    """A1 to A9 as the method's own docstring states them, with the fields that hold them and their defaults.

    ValueError when the docstring and the fields disagree: then one of them has to be written again.
    """
    said = " ".join((MMGVid.__doc__ or "").split()).split(" Ties go")[0]
    defaults = {field.name: field.default for field in dataclasses.fields(MMGVid)}
    rows = [
        {
            "assumption": letter,
            "field": name,
            "default": repr(defaults.get(name)),
            "says": PLAINER.get(letter, text.strip()),
        }
        for letter, names, text in re.findall(r"(A\d) ([a-z_, ]+): (.*?)(?= A\d [a-z_, ]+: |$)", said)
        for name in names.split(", ")
    ]
    if {row["field"] for row in rows} != set(defaults):
        odd = sorted({row["field"] for row in rows} ^ set(defaults))
        raise ValueError(f"MMGVid's fields and its assumptions disagree on {', '.join(odd)}")
    return pd.DataFrame(rows)


def _cells(block: Block, share: int) -> tuple[Text, ...]:
    row = block.rows.loc[share].reindex([*SCORES, "flops_t", "avg", "relative"])
    flops, checks = _derived(block, share), []
    if flops is not None:
        checks.append(judge_value(row["flops_t"], flops, 1))
    mean = float(row[list(SCORES)].dropna().mean()) if not math.isnan(row["avg"]) else None
    ratio = share_of_means(block, share) if not math.isnan(row["relative"]) else None
    judged = [judge_value(row["avg"], mean, 2)] if mean is not None else []
    judged += [judge_value(row["relative"], ratio, 1)] if ratio is not None else []
    return (
        Text("all tokens" if share == 100 else "MMG-Vid", bold=share != 100),
        Text(f"{share}%"),
        quoted(row["flops_t"]),
        Text(f"{flops:.3f}", "derived") if flops is not None else Text("–", "muted"),
        _word(checks),
        *(quoted(row[name]) for name in SCORES),
        Text(f"{row['avg']:.2f}", "quoted") if mean is not None else Text("–", "muted"),
        Text(f"{mean:.3f}", "derived") if mean is not None else Text("–", "muted"),
        quoted(row["relative"]),
        Text(f"{ratio:.2f}", "derived") if ratio is not None else Text("–", "muted"),
        _word(judged) if judged or math.isnan(row["relative"]) else verdict("QUOTED"),
    )


def _derived(block: Block, share: int) -> float | None:
    printed = block.rows.loc[share].get("flops_t", math.nan)
    return None if math.isnan(printed) else derived_flops(block.model, share)


def _word(judged: list[Any]) -> Text:
    if not judged:
        return Text("–", "muted")
    return verdict("REPRODUCED" if set(map(str, judged)) == {"REPRODUCED"} else "NOT REPRODUCED")


def _numbers(block: Block, share: int) -> list[dict[str, Any]]:
    label = {"model": block.model, "row": "Vanilla" if share == 100 else "MMG-Vid", "retained_pct": share}
    row = block.rows.loc[share].dropna()
    made = [label | {"column": column, "value": value, "source": "quoted"} for column, value in row.items()]
    for column, value in (("flops_t", _derived(block, share)), ("relative", share_of_means(block, share))):
        if value is not None and column in row.index:
            made.append(label | {"column": column, "value": value, "source": "derived"})
    return made
