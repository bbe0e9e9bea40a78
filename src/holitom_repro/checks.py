"""What follows from printed numbers alone: the calculations behind the ledger's findings on FLOPs."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np
import pandas as pd

from holitom.flops import LLMShape
from holitom_repro import papers

WAYS: dict[str, Callable[[LLMShape, list[int]], float]] = {
    "the papers' formula, multiply-accumulates": lambda shape, tokens: shape.paper(tokens),
    "the same, 2 FLOPs each": lambda shape, tokens: 2 * shape.paper(tokens),
    "the same, causal half of the scores": lambda shape, tokens: (
        shape.paper(tokens) - sum(n * (n - 1) * shape.hidden_size for n in tokens)
    ),
    "true shapes, multiply-accumulates": lambda shape, tokens: shape.exact(tokens, causal=False, lm_head=False) / 2,
    "true shapes, 2 FLOPs each": lambda shape, tokens: shape.exact(tokens, causal=False, lm_head=False),
    "true shapes, 2 FLOPs each, causal half": lambda shape, tokens: shape.exact(tokens, lm_head=False),
}
"""Ways to count a prefill, the papers' first."""


def rounds_to(value: float, printed: str | float) -> bool:
    """Whether ``printed`` is the value correctly rounded. Half way both neighbours are: nobody knows from how many
    digits a paper rounded."""
    return abs(value - float(printed)) <= 0.5 * 10 ** -len(str(printed).partition(".")[2]) + 1e-9


def conventions() -> dict[str, int]:
    """How many of the 36 printed T come out in each of WAYS."""
    rows = _cells()[["model", "tokens_per_layer", "flops_t"]].itertuples(index=False)
    cells = [(LLMShape.named(model), tokens, printed) for model, tokens, printed in rows]
    return {name: sum(rounds_to(way(s, t) / 1e12, printed) for s, t, printed in cells) for name, way in WAYS.items()}


def flops_one_formula() -> tuple[float, str]:
    """Rows whose FLOPs come out, in T and in %, with the share of every frame rounded up to whole tokens."""
    how = papers.settings().set_index(["table", "model", "method", "retained_pct"]).loc[["table1", "table2"]]
    share = how.index.get_level_values("retained_pct") / 100
    whole = how["n"].eq(how["frames"] * np.ceil(how["cells"] * share - 1e-9))
    fits = _fit("flops_t_derived", "flops_t") & _fit("flops_pct_rounded", "flops_pct") & whole.to_numpy()
    return float(fits.sum()), f"of {len(fits)} rows, to the printed digit, in T and in %"


def flops_other_counts() -> tuple[float, str]:
    """Rows that the best of the other ways gives in T."""
    found = conventions()
    _, *others = found.values()
    return float(max(others)), "; ".join(f"{name}: {count}" for name, count in found.items())


def flops_rounded_first() -> tuple[float, str]:
    """Shares that are a ratio of rounded numbers and not the ratio rounded; 0 when one is no ratio of rounded ones."""
    rounded, exact = _fit("flops_pct_rounded", "flops_pct"), _fit("flops_pct_exact", "flops_pct")
    why = f"{rounded.sum()} of {len(rounded)} are ratios of rounded numbers, {exact.sum()} also the ratio rounded"
    return float((rounded & ~exact).sum() * rounded.all()), why


@cache
def _cells() -> pd.DataFrame:
    return pd.concat([papers.flops_columns(name) for name in ("table1", "table2")], ignore_index=True)


def _fit(ours: str, printed: str) -> np.ndarray:
    cells = _cells()
    return np.array([rounds_to(a, b) for a, b in zip(cells[ours], cells[printed], strict=True)])


CHECKS = {one.__name__: one for one in (flops_one_formula, flops_other_counts, flops_rounded_first)}
