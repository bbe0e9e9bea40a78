"""MMG-Vid's printed numbers: what follows from its other numbers or from its token counts, and what stays quoted."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pandas as pd

from holitom_repro import paper
from holitom_repro.claims.judging import Judged, Verdict, judge_value
from holitom.flops import LLMShape

NAME = "mmg_vid"
SCORES = ("mvbench", "longvideobench", "videomme", "mlvu")
LENGTHS = ("videomme_short", "videomme_medium", "videomme_long")
PAPER = "MMG-Vid, arXiv 2508.21044"


@dataclass(frozen=True)
class Block:
    """Numbers that one source prints for one model, a row per retained share (100: all tokens), a column per metric."""

    key: str
    model: str
    source: str
    rows: pd.DataFrame


def blocks() -> list[Block]:
    """The three sources: MMG-Vid's own 25 % as a survey gives it, and InfoMerge's tables of LLaVA-OneVision and
    LLaVA-Video."""
    long = paper.table(NAME)
    found = []
    for key, model, place, source in (
        ("own", "ov-7b", "survey", "its own numbers, as a survey gives them"),
        ("infomerge1", "ov-7b", "InfoMerge Table 1", "as InfoMerge's Table 1 lists them"),
        ("infomerge2", "video-7b", "InfoMerge Table 2", "as InfoMerge's Table 2 lists them"),
    ):
        mine = long[(long["model"] == model) & long["place"].str.startswith(place)]
        rows = mine.pivot_table(index="retained_pct", columns="metric", values="value", sort=False)
        rows = rows.sort_index(ascending=False)
        if source.startswith("as InfoMerge"):
            rows.loc[100, "flops_t"] = _infomerge_total(model)
        found.append(Block(key, model, source, rows))
    return found


def mmg_vid_claims() -> list[Judged]:
    """FLOPs, averages and shares re-derived; the headline's score and speed-up quoted, with what would check them."""
    judged = [claim for block in blocks() for claim in _of_block(block)]
    return [*judged, _fewer_tokens(), _relative_at_25(), _speed_up()]


def derived_flops(model: str, retained_pct: float | int) -> float:
    """Tera multiply-accumulates with the model's true shapes (shared keys, all three MLP matrices), full score matrix,
    visual tokens only: the count that gives InfoMerge's 94.1 T for all tokens."""
    row = "Vanilla" if retained_pct == 100 else "MMG-Vid"
    counts = paper.layer_tokens(NAME, model, row, retained_pct)
    return LLMShape.named(model).exact(counts, causal=False, lm_head=False) / 2e12


def share_of_means(block: Block, retained_pct: float | int) -> float | None:
    """Mean of the printed scores in per cent of the unreduced model's mean; None where a score of either is open."""
    here = [name for name in SCORES if name in block.rows.columns]
    row, base = block.rows.loc[retained_pct, here], block.rows.loc[100, here]
    if row.notna().ne(base.notna()).any():
        return None
    return float(100 * row.mean() / base.mean())


def _of_block(block: Block) -> Iterator[Judged]:
    for share, row in block.rows.iterrows():
        kept, key = float(share), f"{NAME}/{block.model}/{block.key}/{share:g}"  # type: ignore[arg-type, str-format]
        who = f"{paper.MODELS[block.model]}, {'all tokens' if kept == 100 else f'MMG-Vid at {kept:g} %'}"
        if pd.notna(row.get("flops_t")):
            how = "multiply-accumulates at true shapes, visual tokens only"
            how += "" if kept == 100 else "; in each frame the share of 169 tokens, rounded down"
            yield _derived(
                f"{key}/flops_t", f"{who}: FLOPs", row["flops_t"], derived_flops(block.model, kept), 1, "T", how
            )
        if pd.notna(row.get("avg")):
            mean = float(row[[name for name in SCORES if name in row.index]].mean())
            how = "mean of the three printed scores"
            yield _derived(f"{key}/avg", f"{who}: average", row["avg"], mean, 2, "points", how)
        mine = share_of_means(block, kept)
        if pd.notna(row.get("relative")) and mine is not None:
            how = "ratio of the means of the printed scores"
            yield _derived(f"{key}/relative", f"{who}: share of the score", row["relative"], mine, 1, "%", how)
        if all(pd.notna(row.get(length)) for length in LENGTHS):
            mean = float(row[list(LENGTHS)].mean())
            how = "mean of short, medium and long"
            yield _derived(f"{key}/videomme", f"{who}: VideoMME", row["videomme"], mean, 1, "points", how)


def _infomerge_total(model: str) -> float:
    """InfoMerge's count for all tokens, which stands with the other reports."""
    reports = paper.table("other_reports")
    mine = reports[(reports["report"] == "infomerge") & (reports["metric"] == "flops_macs")]
    return float(mine[mine["model"] == model]["value"].iloc[0])


def _fewer_tokens() -> Judged:
    left = 100 * (1 - round(0.25 * 32 * 196) / (32 * 196))
    how = "exact by construction: round(25 % of 6272) tokens of LLaVA-OneVision's 32 frames are kept"
    return _derived(f"{NAME}/fewer_tokens", "75 % of the visual tokens are gone", 75.0, left, 0, "%", how)


def _relative_at_25() -> Judged:
    return _quoted(
        "relative_at_25",
        "LLaVA-OneVision-7B keeps 99.5 % of its score with a quarter of the tokens",
        99.5,
        "%",
        Verdict.QUOTED,
        "printed; one of its four scores was not found, so it cannot be derived; "
        "./reproduce.sh mmg-vid --tier paper measures three of the benchmarks",
    )


def _speed_up() -> Judged:
    why = "a time on a GPU that is not named; ./reproduce.sh bench latency --method mmg-vid --budget 0.25 times it here"
    return _quoted("prefill_speedup", "Prefill is 3.9 times as fast at 25 %", 3.9, "x", Verdict.QUOTED, why)


def _derived(name: str, what: str, printed: float, computed: float, decimals: int, unit: str, how: str) -> Judged:
    return Judged(
        id=name,
        statement=f"{what}: {float(printed):.{decimals}f} {unit}" if ":" in what else what,
        place=PAPER if "own" in name or name.count("/") == 1 else "MMG-Vid's row in InfoMerge",
        printed=float(printed),
        computed=float(computed),
        unit=unit,
        tolerance="to the printed digit",
        verdict=judge_value(float(printed), float(computed), decimals),
        reason=f"{computed:.{decimals + 2}f} {unit}: {how}",
        source="derived",
        experiment=NAME,
    )


def _quoted(name: str, what: str, printed: float, unit: str, verdict: Verdict, why: str) -> Judged:
    return Judged(
        id=f"{NAME}/{name}",
        statement=what,
        place=f"{PAPER}, abstract",
        printed=printed,
        unit=unit,
        tolerance="none stated: it was not checked",
        verdict=verdict,
        reason=why,
        source="quoted",
        experiment=NAME,
    )
