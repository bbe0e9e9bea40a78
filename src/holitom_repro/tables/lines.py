"""The rows of Tables 1 and 2 before they are written: which cells belong to a printed row, and which to none."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import pandas as pd

from holitom_repro import paper
from holitom_repro.scores import AVERAGE
from holitom_repro.tables.derived import frames_of
from holitom_repro.tables.parts import Row, Text

MODEL_OF = {
    "tiny": {"ov-7b": "onevision", "video-7b": "video"},
    "paper": {"ov-7b": "ov-7b", "video-7b": "video-7b", "ov-72b": "ov-72b"},
}
"""Which model stands in a tier for which of the paper's; the tiny tier has none for the 72B block."""
MODEL_NAMES = {
    "onevision": "tiny model in the manner of LLaVA-OneVision",
    "onevision-seed1": "tiny model in the manner of LLaVA-OneVision, trained with a second seed",
    "video": "tiny model in the manner of LLaVA-Video",
}
_PRINTED = {"Vanilla", "FastV", "PDrop", "DyCoke", "VisionZip", "PruneVid", "FastVID", "HoliTom (w/o M)", "HoliTom"}


def tasks(tier: str) -> dict[str, str]:
    """Score column of the paper -> benchmark that is measured in this tier."""
    return paper.TINY_TASKS if tier == "tiny" else paper.TASKS


@dataclass(frozen=True)
class Line:
    """One row before it is written: its name, the share it was asked for in per cent, its measured scores, what the
    paper prints for it (None: nothing), why nothing is measured, and whether a line is drawn above it."""

    label: str
    asked: float | int
    mine: pd.DataFrame
    printed: pd.Series | None = None
    why_not: str = ""
    rule: bool = False

    @property
    def spent(self) -> pd.Series | None:
        """The line of its average, or of what there is; None where nothing was measured."""
        mean = self.mine[self.mine["benchmark"] == AVERAGE]
        return None if self.mine.empty else (self.mine if mean.empty else mean).iloc[0]

    @property
    def share(self) -> str:
        """As asked: "12.5%"."""
        return f"{round(self.asked if self.spent is None else 100 * self.spent['budget'], 1):g}%"


Blocks = list[tuple[str, list[Line]]]
"""Headings, each with its lines."""


def printed_blocks(name: str, found: pd.DataFrame, tier: str) -> Blocks:
    """The table's own rows in its order, model by model. found: ``scores.with_average``."""
    printed, blocks = paper.table(name), []
    for model in printed["model"].unique():
        here, lines = MODEL_OF[tier].get(model), []
        why_not = "no such model here" if here is None else "not measured yet"
        for _, row in printed[printed["model"] == model].iterrows():
            method, asked = row["method"], row["retained_pct"]
            rule = bool(lines) and bool(asked != lines[-1].asked)
            lines.append(Line(method, asked, _match(found, here, method, asked), row, why_not, rule))
        blocks.append((_block_name(name, model, here, found), lines))
    return blocks


def further_blocks(name: str, found: pd.DataFrame, tier: str) -> Blocks:
    """All other rows, model by model."""
    used: set[int] = set()
    there = set()
    for row in paper.table(name).itertuples():
        here = MODEL_OF[tier].get(row.model)
        used |= set(_match(found, here, row.method, row.retained_pct).index)
        there.add(here)
    blocks = []
    for model in found["model"].unique():
        if lines := _further(found, used, model):
            kind = "Beside the printed rows" if model in there else "A model that the table does not have"
            blocks.append((f"{kind}: {MODEL_NAMES.get(model, model)}, {_frames(found, model)} frames", lines))
    return blocks


def rows_of(blocks: Blocks, cells: Callable[[Line], Iterable[Text]]) -> tuple[Row, ...]:
    """The blocks with their headings. cells: what a line says."""
    rows = []
    for heading, lines in blocks:
        rows += [Row(heading=heading, rule=True), *(Row(tuple(cells(line)), rule=line.rule) for line in lines)]
    return tuple(rows)


def status(line: Line) -> str:
    """Whether a row is measured, and what kind of row it is."""
    if line.mine.empty:
        return line.why_not
    if AVERAGE not in set(line.mine["benchmark"]):
        return "measured in part"
    if line.label in _PRINTED:
        return "measured"
    return "both stages" if " + " in line.label else "control of this kit"


def _match(found: pd.DataFrame, model: str | None, method: str, retained_pct: float | int) -> pd.DataFrame:
    share = (100 * found["budget"]).round() == round(retained_pct)
    return found[(found["model"] == model) & (found["row"] == method) & share].drop_duplicates("benchmark")


def _further(found: pd.DataFrame, used: set[int], model: str) -> list[Line]:
    """Rows of a model that no printed row stands for, by budget; an odd budget goes with the next lower one."""
    rest = found[(found["model"] == model) & ~found.index.isin(list(used))]
    made = []
    for _, mine in rest.groupby(["row", "setting", "saliency", "frames"], sort=False):
        asked, label = 100 * mine["budget"].iloc[0], mine["row"].iloc[0]
        made.append((asked, Line(label, asked, mine.drop_duplicates("benchmark"))))
    all_asked = [asked for asked, _ in made]
    groups = [asked for asked in all_asked if all_asked.count(asked) > 1]
    placed = [(max((g for g in groups if g <= asked + 1e-9), default=asked), line) for asked, line in made]
    placed.sort(key=lambda pair: -pair[0])
    drawn = [bool(i) and bool(group != placed[i - 1][0]) for i, (group, _) in enumerate(placed)]
    return [replace(line, rule=rule) for rule, (_, line) in zip(drawn, placed, strict=True)]


def _block_name(name: str, model: str, here: str | None, found: pd.DataFrame) -> str:
    quoted_model = f"Quoted: {paper.MODELS[model]}, {frames_of(name, model)} frames"
    if here is None or here not in set(found["model"]):
        return f"{quoted_model}. Measured: no model of this kind at this tier"
    return f"{quoted_model}. Measured: {MODEL_NAMES.get(here, here)}, {_frames(found, here)} frames"


def _frames(found: pd.DataFrame, model: str) -> int:
    return int(found[found["model"] == model]["frames"].max())
