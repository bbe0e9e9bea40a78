"""HieraVid's table with its percentages taken apart: schedules, FLOPs and means derived, and its rows measured here."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Any

import pandas as pd

from holitom_repro import paper
from holitom_repro.claims.hieravid import flops_pct
from holitom_repro.claims.judging import judge_value
from holitom.errors import BadUsage
from holitom.flops import LLMShape
from holitom.methods.hieravid import SCHEDULES, hieravid
from holitom.methods.presets import Preset
from holitom_repro.tables import TableView, beside
from holitom_repro.tables.derived import quoted
from holitom_repro.tables.lines import MODEL_OF
from holitom_repro.tables.parts import Column, Part, Row, Text, verdict

if TYPE_CHECKING:
    from holitom_repro.evaluation.cells import Cell

NAME = "hieravid"
OWN, LARGEST = r"HieraVid (\d+) %", 0.3
"""How HieraVid's own rows are named, and the largest share among them."""
SCORES = {"mvbench": "MVB", "nextqa": "NExT", "egoschema": "Ego", "videomme": "VMME", "videomme_subtitles": "+subs"}
COLUMNS = (
    Column("", "Method", 1.2, "left"),
    Column("tokens kept (%)", "printed as", 0.72),
    Column("tokens kept (%)", "before", 0.6),
    Column("tokens kept (%)", "layers", 0.6),
    Column("FLOPs (%)", "printed", 0.62),
    Column("FLOPs (%)", "derived", 0.62),
    Column("FLOPs", "verdict", 1.22, "left"),
    *(Column("quoted scores", short, 0.52) for short in SCORES.values()),
    Column("mean of ratios (%)", "quoted", 0.62),
    Column("mean of ratios (%)", "derived", 0.68),
    Column("mean", "verdict", 1.22, "left"),
)
STAGES = (
    Column("", "Preset", 0.8, "left"),
    Column("28 layers, tokens that enter (%)", "layers 0 to 6", 0.95),
    Column("28 layers, tokens that enter (%)", "7 to 13", 0.75),
    Column("28 layers, tokens that enter (%)", "14 to 20", 0.75),
    Column("28 layers, tokens that enter (%)", "21 to 27", 0.75),
    Column("28 layers, tokens that enter (%)", "mean", 0.75),
    Column("decoder of this tier", "stages at layers", 1.2),
    Column("decoder of this tier", "mean", 0.75),
)


def hieravid_table(scores: pd.DataFrame | None = None, tier: str = "tiny", layers: int = 6) -> TableView:
    """The calculated table, the schedules at 28 layers and at ``layers`` of this tier's model, and, with scores
    (``scores.score_frame`` of the experiment's cells), the measured rows."""
    parts = [derived_part(), schedule_part(layers)]
    if scores is not None and len(scores):
        parts.append(measured_part(scores, tier))
    return TableView(NAME, tuple(parts))


def layer_means(layers: int, preset: str) -> tuple[list[int], float]:
    """Where a preset's later stages begin in a decoder of ``layers`` layers, and the mean share of tokens over them."""
    made = Preset(NAME, "HieraVid", 0.3, "video-7b", 64, 28, hieravid(preset)).scaled(layers)
    starts = [0, *(stage.layer for stage in made.inner)]
    left, shares = made.budget, [made.budget]
    for stage in made.inner:
        left *= 1 - stage.ratio  # type: ignore[attr-defined]
        shares.append(left)
    here = [shares[sum(layer >= start for start in starts) - 1] for layer in range(layers)]
    return starts, sum(here) / layers


def derived_part() -> Part:
    """The printed rows, and the lower presets, for which a prediction is all there is."""
    printed = paper.table(NAME)
    base = printed[printed["method"] == "Vanilla"].iloc[0]
    rows = [Row(heading=f"{paper.MODELS['video-7b']}, 64 frames: HieraVid's 30 % table", rule=True)]
    numbers: list[dict[str, Any]] = []
    for _, row in printed.iterrows():
        rows.append(Row(_printed_cells(row, base)))
        numbers += _numbers(row, base)
    rows.append(
        Row(heading="Predictions: the lower presets of the authors' code, for which no FLOPs were found", rule=True)
    )
    for share in (20, 10):
        before, mean = 100 * (1 - SCHEDULES[f"{share}%"][0]), 100 * layer_means(28, f"{share}%")[1]
        known = _relative("video-7b").get(share, math.nan)
        cells = [Text("HieraVid", bold=True), Text(f"{share}%"), _derived(before), _derived(mean), Text("–", "muted")]
        cells += [Text(f"{flops_pct(share):.2f}", "derived"), Text("–", "muted"), *[Text("–", "muted")] * len(SCORES)]
        rows.append(
            Row(
                (*cells, quoted(known), Text("–", "muted"), verdict("QUOTED") if known == known else Text("–", "muted"))
            )
        )
        label = {"model": "video-7b", "row": "HieraVid", "retained_pct": share}
        numbers.append(label | {"column": "flops_pct", "value": flops_pct(share), "source": "derived"})
    caption = (
        "HieraVid's percentage is an average over the layers of the language model: at 30 % half of the tokens enter "
        "it, so its 30 % is not HoliTom's 30 %. FLOPs derived by the papers' formula over the stages of the authors' "
        "code; the mean of ratios from the quoted scores. FastV's setting is not known: no K and no share in steps of "
        "0.05 give 39.3 %. Grey italics are quoted; nothing in this part was measured."
    )
    title = "HieraVid (arXiv 2604.01881): what can be calculated, calculated again"
    return Part(f"{NAME}_derived", title, caption, COLUMNS, tuple(rows), pd.DataFrame(numbers), cut=7)


def schedule_part(layers: int) -> Part:
    """What each preset's name is the mean of, here and at 28 layers."""
    rows, numbers = [], []
    for preset, removed in SCHEDULES.items():
        left, shares = 1.0, []
        for share in removed:
            left *= 1 - share
            shares.append(100 * left)
        starts, mean = layer_means(layers, preset)
        full = 100 * layer_means(28, preset)[1]
        where = Text(", ".join(map(str, starts)))
        rows.append(Row((Text(preset), *map(_derived, shares), _derived(full), where, _derived(100 * mean))))
        for column, value in (("layer_mean_28", full), (f"layer_mean_{layers}", 100 * mean)):
            numbers.append({"row": preset, "column": column, "value": value, "source": "derived"})
    caption = (
        f"The stages move to the same relative depth of {layers} layers, each to a layer of its own; with fewer layers "
        "the same shares have another mean, so the measured part prints each row's own mean over the layers. Derived "
        "from the authors' code; nothing in this part was measured."
    )
    title = f"HieraVid's schedules at 28 and at {layers} layers"
    return Part(f"{NAME}_schedules", title, caption, STAGES, tuple(rows), pd.DataFrame(numbers))


def measured_part(scores: pd.DataFrame, tier: str) -> Part:
    """HieraVid's three presets with either sign of relevance, beside methods at the same share."""
    remark = (
        "HieraVid's share is the mean over 28 layers that its name means; other methods' is the share before the "
        "language model, and HoliTom ends below it where merging over time alone goes further. Most attended: the "
        "relevance that the code subtracts, added; counts as coded: each segment's count rounded down. FastV: K = 2 of "
        "28, 20 % kept, not the unknown setting of HieraVid's table."
    )
    title = f"HieraVid at the {tier} tier, beside other methods that were asked for the same share of tokens"
    return beside.measured_part(NAME, title, scores, tier, printed_shares, own=OWN, remark=remark)


def share_of(cell: Cell) -> float:
    """The share that a row stands for: HieraVid's by its name, the others' by what they were asked for; FastV and the
    first stage alone, which have one setting, stand beside the largest."""
    named = re.match(OWN, cell.row)
    return int(named[1]) / 100 if named else min(cell.reduction.budget, LARGEST)


def printed_shares(tier: str) -> beside.Shares:
    """Mean shares of the score that HieraVid prints, for the measured rows that they belong to."""
    names = MODEL_OF[tier]
    found = {}
    for model in ("video-7b", "ov-7b"):
        for share, value in _relative(model).items():
            found[names.get(model) or "", f"HieraVid {share} %", share] = value
    for row in paper.table(NAME).itertuples():
        if row.method == "HieraVid":
            found[names.get(row.model) or "", f"HieraVid {row.retained_pct:.0f} %", int(row.retained_pct)] = (
                row.mean_of_ratios_pct
            )
    return found


def _relative(model: str) -> dict[int, float]:
    reports = paper.table("other_reports")
    mine = reports[(reports["report"] == NAME) & (reports["metric"] == "relative") & (reports["model"] == model)]
    return {int(row.retained_pct): float(row.value) for row in mine.itertuples()}


def _printed_cells(row: pd.Series, base: pd.Series) -> tuple[Text, ...]:
    flops, mean, before, layers = _recomputed(row, base)
    judged = judge_value(row["flops_pct"], flops, 1) if flops is not None else None
    return (
        Text(row["method"], bold=row["method"] == "HieraVid"),
        Text(f"{row['retained_pct']:.0f}%"),
        _derived(before) if before is not None else Text("–", "muted"),
        _derived(layers) if layers is not None else Text("–", "muted"),
        quoted(row["flops_pct"]),
        Text(f"{flops:.2f}", "derived") if flops is not None else Text("–", "muted"),
        verdict(str(judged)) if judged else verdict("NOT RUN"),
        *(quoted(row[name]) for name in SCORES),
        quoted(row["mean_of_ratios_pct"]),
        Text(f"{mean:.2f}", "derived"),
        verdict(str(judge_value(row["mean_of_ratios_pct"], mean, 1))),
    )


def _recomputed(row: pd.Series, base: pd.Series) -> tuple[float | None, float, float | None, float | None]:
    """FLOPs %, mean of ratios, tokens before the language model and over its layers in per cent."""
    names = list(SCORES)
    mean = float((100 * row[names].astype(float) / base[names].astype(float)).mean())
    try:
        counts = paper.layer_tokens(NAME, row["model"], row["method"], row["retained_pct"])
    except BadUsage:
        return None, mean, None, None
    full = paper.layer_tokens(NAME, row["model"], "Vanilla", 100)
    shape = LLMShape.named(row["model"])
    cost = 100 * shape.paper(counts) / shape.paper(full)
    return cost, mean, 100 * counts[0] / full[0], 100 * sum(counts) / sum(full)


def _numbers(row: pd.Series, base: pd.Series) -> list[dict[str, Any]]:
    label = {"model": row["model"], "row": row["method"], "retained_pct": row["retained_pct"]}
    names = ["flops_pct", *SCORES, "mean_of_ratios_pct"]
    made = [label | {"column": name, "value": float(row[name]), "source": "quoted"} for name in names]
    flops, mean, _, layers = _recomputed(row, base)
    for column, value in (("flops_pct", flops), ("mean_of_ratios_pct", mean), ("layer_pct", layers)):
        if value is not None:
            made.append(label | {"column": column, "value": value, "source": "derived"})
    return made


def _derived(value: float | int) -> Text:
    return Text(f"{value:.1f}" if value >= 1 else f"{value:.2f}", "derived")
