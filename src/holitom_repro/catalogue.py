"""Every method at a glance: paper, where it acts, what it reads, fidelity, realised budgets and cost.

The one source of the method table in the README, the start page and the documentation. Where a stage acts, what it
reads and how faithful it is come from the methods themselves; cost is derived by the papers' formula; realised budgets
are those of finished cells of the tiny tier, kept in data/measured/tiny_methods.json by ``python -m holitom_repro.readme``.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from holitom_repro import paper, paths
from holitom.budgets import TokenBudget
from holitom.errors import CannotRun
from holitom.flops import LLMShape, outer_tokens
from holitom.methods import (
    AveragePool,
    DyCoke,
    DyCokeDecode,
    FastV,
    FastVID,
    HoliTom,
    HoliTomMerge,
    MMGVid,
    PruneVid,
    PruneVidSelect,
    PyramidDrop,
    PyramidDropStage,
    RandomDrop,
    SaliencyTopK,
    ToMe,
    UniformStride,
    VisionZip,
    hieravid,
)
from holitom_repro.results import Record, write_atomic
from holitom.types import Reduction

HEAD = ("method", "paper", "acts", "reads", "fidelity", "tokens kept (tiny tier, %)", "prefill FLOPs (OV-7B, derived)")
FRAMES, CELLS, LAYERS = 32, 196, 28


@dataclass(frozen=True)
class Entry:
    """One method: its row in the tables, its paper, and all of its stages at the budget its cost is stated for.

    mean: the share of tokens by which its paper names the setting, when that is a mean over the layers. theirs: table,
    model and share of the paper's own FLOPs where they are those of another model.
    """

    row: str
    arxiv: str
    setting: Reduction
    mean: str = ""
    theirs: tuple[str, str, int] | None = None

    @property
    def acts(self) -> str:
        """Where its stages stand."""
        inner = len(self.setting.inner)
        places = ["before the LLM"] if self.setting.outer is not None else []
        places += [f"inside, {'once' if inner == 1 else f'{inner} times'}"] if inner else []
        return " + ".join(places + (["while generating"] if self.setting.decode is not None else []))

    @property
    def reads(self) -> str:
        """What the stages need beside the tokens; text: attention that the prompt or the answer pays to them."""
        outer = self.setting.outer
        wanted = sorted(outer.requires) if outer is not None else []
        text = ["text"] if self.setting.inner or self.setting.decode is not None else []
        return ", ".join([name.replace("frame_embed", "frame vectors") for name in wanted] + text) or "tokens only"

    @property
    def fidelity(self) -> str:
        """Of the stages as they are by default, and with released=True where that differs."""
        usual, released = self._fidelities(), self._fidelities(released=True)
        return " + ".join(usual) + (f" (released: {' + '.join(released)})" if released != usual else "")

    @property
    def flops_pct(self) -> float:
        """Prefill FLOPs on LLaVA-OneVision-7B with 32 frames, in per cent of all tokens', by the papers' formula."""
        shape = LLMShape.named("ov-7b")
        return 100 * shape.paper(self._layer_tokens()) / shape.paper([FRAMES * CELLS] * LAYERS)

    @property
    def cost(self) -> str:
        """``8.3 % at 10 %``; a method without a budget before the model has no second number. Where its paper counts
        for another model, that count follows, named."""
        at = f" at {100 * self.setting.budget:g} %" if self.setting.outer is not None else ""
        here = f"{self.flops_pct:.1f} %{f' at {self.mean} on average' if self.mean else at}"
        if self.theirs is None:
            return here
        table, model, share = self.theirs
        counts, full = (paper.layer_tokens(table, model, *row) for row in ((self.row, share), ("Vanilla", 100)))
        shape = LLMShape.named(model)
        there = 100 * shape.paper(counts) / shape.paper(full)
        return f"{here}; {there:.1f} % on {paper.MODELS[model]}, its paper's model"

    def _stages(self) -> list[Any]:
        return [s for s in (self.setting.outer, *self.setting.inner, self.setting.decode) if s is not None]

    def _fidelities(self, *, released: bool = False) -> list[str]:
        stages = self._stages()
        if released:
            stages = [replace(s, released=True) if "released" in {f.name for f in fields(s)} else s for s in stages]
        return list(dict.fromkeys(stage.fidelity for stage in stages))

    def _layer_tokens(self) -> list[float]:
        start = float(FRAMES * CELLS)
        if self.setting.outer is not None:
            start = float(outer_tokens(FRAMES, CELLS, self.setting.budget))
        counts, left = [start] * LAYERS, start
        for stage in self.setting.inner:
            share = getattr(stage, "alpha", None) or 1 - stage.ratio
            left = start * stage.ratio if isinstance(stage, PyramidDropStage) else left * share
            counts[stage.layer :] = [left] * (LAYERS - stage.layer)
        return counts


METHODS = (
    Entry("HoliTom", "2505.21334", Reduction("", HoliTom(tau=0.65), 0.10, (HoliTomMerge(18, 0.5),))),
    Entry("FastV", "2403.06764", Reduction("", inner=(FastV(2, 0.8),))),
    Entry("PDrop", "2410.17247", Reduction("", inner=PyramidDrop().stages())),
    Entry("DyCoke", "2411.15024", Reduction("", DyCoke(), 0.25, decode=DyCokeDecode())),
    Entry("VisionZip", "2412.04467", Reduction("", VisionZip(), 0.10)),
    Entry("PruneVid", "2412.16117", Reduction("", PruneVid(), 0.10, (PruneVidSelect(),))),
    Entry("FastVID", "2503.11187", Reduction("", FastVID(), 0.10)),
    Entry("MMG-Vid", "2508.21044", Reduction("", MMGVid(), 0.10)),
    Entry("HieraVid", "2604.01881", hieravid("30%"), mean="30 %", theirs=("hieravid", "video-7b", 30)),
    Entry("ToMe", "2210.09461", Reduction("", ToMe(), 0.10)),
)
CONTROLS = (
    Entry("Random", "", Reduction("", RandomDrop(), 0.10)),
    Entry("Uniform stride", "", Reduction("", UniformStride(), 0.10)),
    Entry("Average pooling", "", Reduction("", AveragePool(), 0.10)),
    Entry("Saliency top-k", "", Reduction("", SaliencyTopK(), 0.10)),
)


def stored() -> Path:
    """Where the realised budgets of the tiny tier are kept."""
    return paths.data("measured", "tiny_methods.json")


def realised(
    records: Iterable[Record], model: str = "onevision", frames: int = 32
) -> dict[str, dict[str, list[float]]]:
    """Row -> asked share in per cent -> [visual tokens before the model, averaged over its layers], in per cent of the
    whole video's, mean over benchmarks. Only the methods' own saliency; of a row with several strengths the first."""
    found: dict[str, dict[str, dict[str, list[float]]]] = {}
    for record in records:
        here = (record.model, record.frames, record.extra.get("saliency", "own")) == (model, frames, "own")
        if here and isinstance(record.budget, TokenBudget):
            asked = f"{100 * (record.method or {}).get('budget', 1.0):g}"
            kept = [100 * record.budget.share, 100 * record.budget.layer_share]
            found.setdefault(record.row, {}).setdefault(asked, {}).setdefault(record.benchmark, kept)
    return {
        row: {asked: [fmean(column) for column in zip(*per.values(), strict=True)] for asked, per in budgets.items()}
        for row, budgets in found.items()
    }


def store(records: Sequence[Record], planned: int, file: Path | None = None) -> Path | None:
    """Keep the realised budgets of the finished ones among so many planned cells. None, and nothing changed, without
    records; CannotRun as ``require_whole``."""
    if not records:
        return None
    require_whole(records, planned)
    return write_atomic(file or stored(), json.dumps(realised(records), indent=1, ensure_ascii=False) + "\n")


def require_whole(records: Sequence[Record], planned: int) -> None:
    """CannotRun when some, but not all of the planned cells are finished: rows would be lost, and others would be means
    over fewer benchmarks."""
    if 0 < len(records) < planned:
        raise CannotRun(
            f"the kept budgets need all {planned} cells of Table 1 and the trade-off, {len(records)} are finished here",
            fix="run ./reproduce.sh all first",
        )


def rows(measured: Mapping[str, Mapping[str, list[float]]] | None = None) -> list[tuple[str, ...]]:
    """The method table under HEAD, methods first. measured: as from ``realised``; default: what is stored."""
    if measured is None:
        measured = json.loads(stored().read_text(encoding="utf-8")) if stored().is_file() else {}
    return [
        (e.row, f"arXiv {e.arxiv}" if e.arxiv else "control", e.acts, e.reads, e.fidelity, _kept(e, measured), e.cost)
        for e in (*METHODS, *CONTROLS)
    ]


def _kept(entry: Entry, measured: Mapping[str, Mapping[str, list[float]]]) -> str:
    """``25 → 24.4, 10 → 11.6`` before the model; the mean over layers for a method that is stated so."""
    budgets = measured.get(entry.row, {})
    if not budgets:
        return "not measured yet"
    if entry.setting.outer is None or entry.mean:
        return f"{next(iter(budgets.values()))[1]:.1f} (mean over layers)"
    shown = [asked for asked in ("25", "10", "2") if asked in budgets]
    return ", ".join(f"{asked} → {budgets[asked][0]:.1f}" for asked in shown)
