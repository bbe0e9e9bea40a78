"""The numbers that papers print, read from data/papers/ into tidy frames, and what follows from them by calculation.

data/papers/README.md explains every column. Every frame has a column ``key``, the setting of a row in the words of
``evaluate``: "HoliTom@0.10", "all tokens"."""

from collections.abc import Callable
from functools import cache
from typing import SupportsFloat

import numpy as np
import pandas as pd

from holitom.errors import BadUsage
from holitom.flops import LLM_SHAPES, LLMShape, tokens_per_layer
from holitom_repro import paths

BENCHMARKS = {
    "mvbench": "MVBench",
    "egoschema": "EgoSchema",
    "longvideobench": "LongVideoBench",
    "videomme": "VideoMME",
}
"""Score columns of the tables and their printed names."""
TASKS = dict(zip(BENCHMARKS, ("mvbench", "egoschema_subset", "longvideobench_val_v", "videomme"), strict=True))
"""Score column -> lmms-eval task of the paper tier."""
OTHER_QUESTIONS = {
    "egoschema": "printed of the full set, which only its server judges; the paper tier runs the 500 public answers"
}
"""Score columns whose task asks other questions than the paper did: absolute scores of the two are not compared."""
TINY_TASKS = dict(zip(BENCHMARKS, ("tiny_actions", "tiny_ego", "tiny_long", "tiny_general"), strict=True))
"""Score column -> the tiny benchmark that stands for it; never the same numbers."""
MODELS = {
    "ov-7b": "LLaVA-OneVision-7B",
    "ov-72b": "LLaVA-OneVision-72B",
    "video-7b": "LLaVA-Video-7B",
    "ov-0.5b": "LLaVA-OneVision-0.5B",
}
STANDS_FOR = {"onevision": "ov-7b", "onevision-seed1": "ov-7b", "video": "video-7b"}
"""Tiny model -> the model whose presets it takes."""
_BUDGET = {"fig_inner": "base_retained_pct", "fig_inference": "implied_retained_pct"}
"""The column that holds the retained share in per cent, where it is not ``retained_pct``."""


def printed(name: str) -> pd.DataFrame:
    """A file of data/papers, such as table1 or fig_inner: a row per printed row; cells that the paper leaves open are
    NaN. key: of the setting ("" where its budget is not known), join with frames of ``evaluate`` by it."""
    frame = _read(name, ("arxiv", "model", "note", "paper", "place", "implied_retained_pct"))
    return frame.assign(key=_keys(frame, _BUDGET.get(name, "retained_pct")))


def settings() -> pd.DataFrame:
    """The parameters behind each FLOPs cell, a row per printed row: frames, cells, layers, n (visual tokens that
    enter the language model), stages as in ``flops.tokens_per_layer``, and how each is known. ``known`` is False
    where no setting was found."""
    frame = _read("settings", ("stages", "stages_how", "note", "tau_how"))
    stages = frame["stages"].map(lambda text: [stage.split(":") for stage in text.split()])
    stages = stages.map(lambda pairs: tuple((int(layer), float(share)) for layer, share in pairs))
    return frame.assign(stages=stages, known=frame["stages_how"] != "unknown", key=_keys(frame, "retained_pct"))


@cache
def _read(name: str, words: tuple[str, ...]) -> pd.DataFrame:
    """A file of data/papers; in the columns ``words`` an open cell is an empty text."""
    frame = pd.read_csv(paths.data("papers", f"{name}.csv"), dtype=dict.fromkeys(words, str), encoding="utf-8")
    return frame.fillna({word: "" for word in words if word in frame})


def _keys(frame: pd.DataFrame, column: str) -> list[str]:
    keys = []
    for row, share in zip(frame.itertuples(), pd.to_numeric(frame[column], errors="coerce"), strict=True):
        stage = f" K={row.layer} r={row.ratio:g}" if {"layer", "ratio"} <= set(frame) else ""
        key = f"{row.method}{stage}@{share / 100:.2f}" if share == share else ""
        keys.append("all tokens" if row.method == "Vanilla" else key)
    return keys


def layer_tokens(table: str, model: str, method: str, retained_pct: SupportsFloat) -> list[int]:
    """Visual tokens entering each layer of the language model in one printed row. BadUsage when the row is unknown,
    or when nobody knows its setting."""
    frame = settings().set_index(["table", "model", "method", "retained_pct"])
    where = (table, model, method, round(float(retained_pct)))
    if where not in frame.index or not frame.loc[where].known:
        raise BadUsage(f"the setting behind {where} is not known", fix="see papers.settings(); leave this cell quoted")
    row = frame.loc[where]
    return tokens_per_layer(int(row.n), int(row.layers), row.stages)


def flops_columns(name: str) -> pd.DataFrame:
    """The FLOPs columns of a table beside their derivation, row by row.

    tokens_per_layer; flops_t (printed) and flops_t_derived; flops_pct (printed), flops_pct_rounded (derived T
    rounded to the printed digit over the baseline rounded likewise: the papers' convention), flops_pct_exact
    (before rounding).
    """
    frame = printed(name)
    rows = zip(frame["model"], frame["method"], frame["retained_pct"], strict=True)
    counts = [layer_tokens(name, *row) for row in rows]
    full = {model: layer_tokens(name, model, "Vanilla", 100) for model in frame["model"].unique()}
    shapes = frame["model"].map(LLM_SHAPES)
    derived = pd.Series([shape.paper(n) / 1e12 for shape, n in zip(shapes, counts, strict=True)])
    base = pd.Series([shape.paper(full[model]) / 1e12 for shape, model in zip(shapes, frame["model"], strict=True)])
    made = frame[["key", "model", "method", "retained_pct"]].assign(tokens_per_layer=counts)
    return made.assign(
        flops_t=frame.get("flops_t", np.nan),
        flops_t_derived=derived,
        flops_pct=frame["flops_pct"],
        flops_pct_rounded=100 * derived.map(lambda t: round(t, 1)) / base.map(lambda t: round(t, 1)),
        flops_pct_exact=100 * derived / base,
    )


# --- the calculations of the ledger's checked claims


def rounds_to(value: float, printed: str | float) -> bool:
    """Whether ``printed`` is the value correctly rounded. Half way both neighbours are: nobody knows from how many
    digits a paper rounded."""
    return abs(value - float(printed)) <= 0.5 * 10 ** -len(str(printed).partition(".")[2]) + 1e-9


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


@cache
def _cells() -> pd.DataFrame:
    return pd.concat([flops_columns(name) for name in ("table1", "table2")], ignore_index=True)


def _fit(ours: str, printed: str) -> np.ndarray:
    return np.array([rounds_to(a, b) for a, b in zip(_cells()[ours], _cells()[printed], strict=True)])


def conventions() -> dict[str, int]:
    """How many of the 36 printed T come out in each of WAYS."""
    rows = _cells()[["model", "tokens_per_layer", "flops_t"]].itertuples(index=False)
    cells = [(LLM_SHAPES[model], tokens, printed) for model, tokens, printed in rows]
    return {name: sum(rounds_to(way(s, t) / 1e12, printed) for s, t, printed in cells) for name, way in WAYS.items()}


def flops_one_formula() -> tuple[float, str]:
    """Rows whose FLOPs come out, in T and in %, with the share of every frame rounded up to whole tokens."""
    how = settings().set_index(["table", "model", "method", "retained_pct"]).loc[["table1", "table2"]]
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


CALCULATIONS = {one.__name__: one for one in (flops_one_formula, flops_other_counts, flops_rounded_first)}
"""What the ledger's entries name as ``compute``."""
