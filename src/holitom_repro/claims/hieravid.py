"""HieraVid's headline numbers beside its table: the saving that follows from its schedule, and shares of the score."""

from __future__ import annotations

import pandas as pd

from holitom_repro import paper
from holitom_repro.claims.judging import Judged, Verdict, judge_value
from holitom.flops import LLMShape

NAME = "hieravid"
PAPER = "HieraVid, arXiv 2604.01881, abstract and summaries"
WHERE = {
    "ov-7b": "./reproduce.sh hieravid --tier paper measures it on three of its benchmarks",
    "video-7b": "LLaVA-Video is published in its authors' own format only: convert it and name the folder",
    "qwen2-vl-7b": "no adapter for Qwen2-VL (docs/adapters.md; there is one for Qwen2.5-VL)",
}


def flops_pct(preset: int, model: str = "video-7b") -> float:
    """Prefill cost of the preset "30 %", "20 %" or "10 %" in per cent of all tokens', by the papers' formula."""
    shape = LLMShape.named(model)
    counts = paper.layer_tokens(NAME, model, "HieraVid", preset)
    return 100 * shape.paper(counts) / shape.paper(paper.layer_tokens(NAME, model, "Vanilla", 100))


def hieravid_headlines() -> list[Judged]:
    """The FLOPs saving, derived; the shares of the score that its table does not cover, quoted with what would check
    them."""
    reports = paper.table("other_reports")
    mine = reports[reports["report"] == NAME]
    saved = mine[mine["metric"] == "flops_reduction_up_to"].iloc[0]
    return [_saving(float(saved["value"])), *(_share(row) for _, row in mine[mine["metric"] == "relative"].iterrows())]


def _saving(printed: float) -> Judged:
    computed = 100 - flops_pct(30)
    return Judged(
        id=f"{NAME}/flops_reduction",
        statement=f"Up to {printed:.0f} % fewer FLOPs; checked: the preset 30 % saves {printed:.0f} %",
        place=PAPER,
        printed=printed,
        computed=computed,
        unit="%",
        tolerance="to the printed digit",
        verdict=judge_value(printed, computed, 0),
        reason=f"{computed:.2f} % for the preset 30 %; the preset 10 % would save {100 - flops_pct(10):.1f} %",
        source="derived",
        experiment=NAME,
    )


def _share(row: pd.Series) -> Judged:
    model = paper.MODELS.get(row["model"], "Qwen2-VL-7B")
    share = int(row["retained_pct"])
    return Judged(
        id=f"{NAME}/{row['model']}/HieraVid/{share}/relative",
        statement=f"{model}, HieraVid's preset {share} % keeps {row['value']:.1f} % of the score",
        place=PAPER,
        printed=float(row["value"]),
        unit="%",
        tolerance="none stated: it was not checked",
        verdict=Verdict.QUOTED,
        reason=f"printed without its scores; {WHERE[row['model']]}",
        source="quoted",
        experiment=NAME,
    )
