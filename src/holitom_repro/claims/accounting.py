"""Findings about what is counted: FLOPs, ratios, token budgets and times, from the printed numbers alone."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pandas as pd

from holitom_repro import paper
from holitom_repro.claims.judging import Judged, Verdict, judge_value
from holitom.flops import LLMShape
from holitom_repro.results import Number

TABLES = ("table1", "table2")
GRID, VIDEO_FRAMES = (13, 13), 64  # LLaVA-Video


def conventions() -> pd.DataFrame:
    """How many of the printed T cells of Tables 1 and 2 come out under each way to count: a row per convention with its
    name, cells (reproduced to the digit), of, and vanilla_t (LLaVA-OneVision-7B without reduction)."""
    ways = {
        "papers' formula, multiply-accumulates": lambda shape, n: shape.paper(n),
        "papers' formula, 2 FLOPs each": lambda shape, n: 2 * shape.paper(n),
        "papers' formula, causal half of the scores": _causal_half,
        "true shapes, multiply-accumulates": lambda shape, n: shape.exact(n, causal=False, lm_head=False) / 2,
        "true shapes, 2 FLOPs each": lambda shape, n: shape.exact(n, causal=False, lm_head=False),
        "true shapes, 2 FLOPs each, causal half": lambda shape, n: shape.exact(n, lm_head=False),
    }
    rows = []
    cells = [(name, row) for name in TABLES for row in paper.table(name).itertuples()]
    for name, count in ways.items():
        found = [count(LLMShape.named(r.model), _counts(t, r)) / 1e12 for t, r in cells]
        good = sum(judge_value(r.flops_t, x, 1) is Verdict.REPRODUCED for (_, r), x in zip(cells, found, strict=True))
        rows.append({"convention": name, "cells": good, "of": len(cells), "vanilla_t": found[0], "source": "derived"})
    return pd.DataFrame(rows)


def flops_are_macs() -> Judged:
    """Which convention gives the printed cells."""
    table = conventions()
    best, rest = table.iloc[0], table.iloc[1:]
    alone = best["cells"] == best["of"] and rest["cells"].max() < best["of"]
    others = "; ".join(f"{row.convention}: {row.cells}" for row in rest.itertuples())
    return finding(
        "flops-are-macs",
        "What Tables 1 and 2 print as FLOPs are multiply-accumulates of the papers' formula, and no other count fits",
        bool(alone),
        f"{best['convention']}: {best['cells']} of {best['of']} cells; {others}",
        computed=int(best["cells"]),
        unit="cells",
        tolerance="every cell to the printed digit, and under no other convention",
        experiment="flops",
    )


def flops_understate() -> Judged:
    """What the same prefill costs when everything is counted."""
    shape = LLMShape.named("ov-7b")
    counts = paper.layer_tokens("table1", "ov-7b", "Vanilla", 100)
    printed, exact = shape.paper(counts), shape.exact(counts, causal=False, lm_head=False)
    causal = shape.exact(counts, lm_head=False)
    why = f"{printed / 1e12:.1f} T printed; {exact / 1e12:.1f} T FLOPs with shared keys and all three MLP matrices"
    return finding(
        "flops-understate",
        "The unreduced prefill of LLaVA-OneVision-7B takes more than twice the FLOPs that are printed",
        exact > 2 * printed,
        f"{why}, {causal / 1e12:.1f} T when the masked half of the scores is left out; neither counts the vision tower",
        computed=exact / printed,
        unit="x",
        tolerance="above 2",
        experiment="flops",
    )


def rounded_ratios() -> pd.DataFrame:
    """Each printed FLOPs share: printed, the ratio of rounded numbers, the exact ratio, and which of the two rounds to
    it."""
    frames = []
    for name in TABLES:
        columns = paper.flops_columns(name).assign(table=name)
        frames.append(columns[columns["flops_pct"] < 100])
    found = pd.concat(frames, ignore_index=True)[
        ["table", "model", "method", "retained_pct", "flops_pct", "flops_pct_rounded", "flops_pct_exact"]
    ]
    for kind in ("rounded", "exact"):
        pairs = zip(found["flops_pct"], found[f"flops_pct_{kind}"], strict=True)
        found[f"fits_{kind}"] = [judge_value(float(a), float(b), 1) is Verdict.REPRODUCED for a, b in pairs]
    return found.assign(source="derived")


def ratios_of_rounded() -> Judged:
    """Whether shares are ratios of rounded numbers."""
    found = rounded_ratios()
    rounded, exact = int(found["fits_rounded"].sum()), int(found["fits_exact"].sum())
    example = found[~found["fits_exact"]].iloc[0]
    return finding(
        "ratios-of-rounded",
        "The printed FLOPs shares are ratios of rounded numbers; some differ from the ratio itself",
        rounded == len(found) and exact < len(found),
        f"{rounded} of {len(found)} shares are ratios of rounded numbers, {exact} also the rounded ratio; for instance "
        f"{example['method']} at {example['retained_pct']:g} %: {example['flops_pct']:.1f} printed, "
        f"{example['flops_pct_exact']:.2f} before rounding",
        computed=rounded,
        unit="cells",
        tolerance="every cell to the printed digit",
        experiment="flops",
    )


def newline_share(kept_per_frame: int, rows_held: int) -> float:
    """Share of LLaVA-Video's visual prompt that is left, newlines on both sides, in per cent: each frame keeps so many
    tokens, in so many of its 13 rows, and each row that holds a token keeps its newline."""
    height, width = GRID
    return 100 * (kept_per_frame + rows_held) / (height * width + height)


def arranged_share(cells: Sequence[int]) -> float:
    """The same, counted by ``layout.arrange`` on tokens placed in these cells of every frame."""
    import torch  # only here: the verdict itself is arithmetic

    from holitom.layout import arrange
    from holitom.types import TokenSet

    def placed(wanted: Sequence[int]) -> int:
        frame = torch.arange(VIDEO_FRAMES).repeat_interleave(len(wanted))
        cell = torch.tensor(list(wanted)).repeat(VIDEO_FRAMES)
        size = torch.ones(len(cell))
        kept = TokenSet(tokens=torch.zeros(len(cell), 1), frame=frame, cell=cell, size=size)
        return len(arrange(kept, GRID, torch.zeros(1), "row"))

    return 100 * placed(cells) / placed(range(GRID[0] * GRID[1]))


def newline_budget() -> Judged:
    """LLaVA-Video's newlines at a nominal 15 %."""
    kept = math.ceil(GRID[0] * GRID[1] * 0.15)
    most, least = newline_share(kept, GRID[0]), newline_share(kept, math.ceil(kept / GRID[1]))
    return finding(
        "newlines-on-top",
        "On LLaVA-Video a nominal 15 % of the tokens is up to 21 % of the visual prompt, because newlines stay",
        judge_value(21.4, most, 1) is Verdict.REPRODUCED,
        f"{kept} of 169 tokens per frame; a newline stays for every row of the grid that keeps a token: {least:.1f} % "
        f"when they fill as few rows as possible, {most:.1f} % when they touch all 13; the FLOPs count none",
        printed=15,
        computed=most,
        unit="%",
        tolerance="21.4 to the digit, which the released code gave on a synthetic video",
        experiment="findings",
    )


def whole_tokens_budget() -> Judged:
    """Nominal shares against the whole tokens of a frame behind the FLOPs cells."""
    rows = [r for name in TABLES for r in paper.table(name).itertuples() if r.retained_pct < 100]
    cells = {"ov-7b": 196, "ov-72b": 196, "video-7b": 169}
    shares = {
        (cells[r.model], r.retained_pct): 100 * math.ceil(cells[r.model] * r.retained_pct / 100 - 1e-9) / cells[r.model]
        for r in rows
    }
    over = {key: share for key, share in shares.items() if share > key[1] + 1e-9}
    text = ", ".join(f"{asked:g} % of {n}: {share:.1f} %" for (n, asked), share in shares.items())
    return finding(
        "whole-tokens",
        "Every budget below 25 % is rounded up to whole tokens per frame, so more than the nominal share is counted",
        len(over) == len(shares) - 1 and (196, 25) not in over,
        f"{text}; the released code's count moves with the video around these",
        computed=max(share - asked for (_, asked), share in shares.items()),
        unit="points",
        tolerance="exact arithmetic",
        experiment="findings",
    )


def mixed_budgets() -> Judged:
    """Which budgets the labels of the TTFT figure belong to."""
    table1, budgets, texts = paper.table("table1"), {}, []
    for row in paper.table("fig_inference").itertuples():
        mine = table1[(table1["method"] == row.method) & (table1["avg"] == row.avg)]
        budgets[row.method] = sorted({int(share) for share in mine["retained_pct"]})
        if budgets[row.method] != [100]:
            texts.append(f"{row.method} {row.avg}: {' or '.join(map(str, budgets[row.method]))} %")
    mine, other = budgets["HoliTom"], budgets["VisionZip"]
    return finding(
        "mixed-budgets",
        "The TTFT figure compares HoliTom at 10 % with VisionZip at 20 % and PruneVid at 15 or 20 %",
        mine == [10] and other == [20] and budgets["PruneVid"] == [15, 20],
        f"the score under each bar occurs in Table 1 only at: {'; '.join(texts)}",
        computed=len({tuple(found) for found in budgets.values() if found != [100]}),
        unit="budgets",
        tolerance="the label equals Table 1's average at that budget and at no other",
        experiment="fig_inference",
    )


def end_to_end() -> Judged:
    """What 2.28 is a ratio of."""
    rows = paper.table("fig_inference").set_index("method")
    full, mine, outer = rows.loc["Vanilla"], rows.loc["HoliTom"], rows.loc["HoliTom (w/o M)"]
    whole, llm = full["ttft_ms"] / mine["ttft_ms"], full["llm_ms"] / mine["llm_ms"]
    added = mine["other_ms"] - full["other_ms"]
    return finding(
        "end-to-end-ratio",
        "2.28 is a ratio of whole times to the first token, vision tower included; the LLM's prefill alone gives 7.3",
        judge_value(2.28, whole, 2) is Verdict.REPRODUCED and judge_value(7.3, llm, 1) is Verdict.REPRODUCED,
        f"{full['ttft_ms']:g} / {mine['ttft_ms']:g} ms = {whole:.2f}; {full['llm_ms']:g} / {mine['llm_ms']:g} ms = "
        f"{llm:.2f}; HoliTom itself adds {added:g} ms, {100 * added / mine['llm_ms']:.0f} % of its LLM time; its inner "
        f"stage saves {outer['ttft_ms'] - mine['ttft_ms']:g} of {outer['ttft_ms']:g} ms",
        printed=2.28,
        computed=float(whole),
        unit="x",
        tolerance="to the printed digit",
        experiment="fig_inference",
    )


def _counts(table: str, row: pd.Series | tuple) -> list[int]:
    return paper.layer_tokens(table, row.model, row.method, row.retained_pct)


def _causal_half(shape: LLMShape, counts: Sequence[int]) -> float:
    return shape.paper(counts) - sum(n * (n - 1) * shape.hidden_size for n in counts)


def finding(
    name: str,
    statement: str,
    holds: bool,
    reason: str,
    *,
    computed: Number,
    unit: str,
    tolerance: str,
    experiment: str,
    printed: Number | None = None,
) -> Judged:
    return Judged(
        id=f"finding-{name}",
        statement=statement,
        place="this kit, on the printed numbers",
        printed=printed,
        computed=computed,
        unit=unit,
        tolerance=tolerance,
        verdict=Verdict.REPRODUCED if holds else Verdict.NOT_REPRODUCED,
        reason=reason,
        source="derived",
        experiment=experiment,
        reading="derived",
    )
