"""The numbers that papers print, read from data/papers/ into tidy frames; data/papers/README.md explains every column.

Every frame has a column ``key``, the setting of a row in the words of ``evaluate``: "HoliTom@0.10", "all tokens"."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import SupportsFloat

import pandas as pd

from holitom.errors import BadUsage
from holitom.flops import LLMShape, tokens_per_layer
from holitom_repro import paths

BENCHMARKS = {
    "mvbench": "MVBench",
    "egoschema": "EgoSchema",
    "longvideobench": "LongVideoBench",
    "videomme": "VideoMME",
}
"""Score columns of the tables and their printed names."""
TASKS = {
    "mvbench": "mvbench",
    "egoschema": "egoschema_subset",
    "longvideobench": "longvideobench_val_v",
    "videomme": "videomme",
}
"""Score column -> lmms-eval task of the paper tier."""
OTHER_QUESTIONS = {
    "egoschema": "printed of the full set, which only its server judges; the paper tier runs the 500 public answers"
}
"""Score columns whose task asks other questions than the paper did: absolute scores of the two are not compared."""
TINY_TASKS = {
    "mvbench": "tiny_actions",
    "egoschema": "tiny_ego",
    "longvideobench": "tiny_long",
    "videomme": "tiny_general",
}
"""Score column -> the tiny benchmark that stands for it; never the same numbers."""
MODELS = {
    "ov-7b": "LLaVA-OneVision-7B",
    "ov-72b": "LLaVA-OneVision-72B",
    "video-7b": "LLaVA-Video-7B",
    "ov-0.5b": "LLaVA-OneVision-0.5B",
}
READINGS = ("image", "image+text", "text", "axis", "deduced")
"""How a printed number was read; README.md beside the files says what each means."""

_TABLE = ("model", "method", "retained_pct", "flops_t", "flops_pct", *BENCHMARKS, "avg", "avg_pct")
_REPORT = ("report", "model", "method", "metric", "value", "unit")
_COLUMNS = {
    "table1": _TABLE,
    "table2": _TABLE,
    "fig_inference": ("model", "method", "vision_ms", "other_ms", "llm_ms", "ttft_ms", "decode_tok_s", "avg"),
    "fig_inner": ("model", "sweep", "method", "layer", "ratio", "avg"),
    "fig_frames": ("model", "method", "frames", "avg", "uncertainty"),
    "hieravid": ("model", "method", "retained_pct", "flops_pct"),
    "mmg_vid": _REPORT,
    "other_reports": _REPORT,
}
_BUDGET = {"fig_inner": "base_retained_pct", "fig_inference": "implied_retained_pct"}
"""The column that holds the retained share in per cent, where it is not ``retained_pct``."""


def printed(name: str) -> pd.DataFrame:
    """One table or figure as printed, a row per printed row; cells that the paper leaves open are NaN. key: of the
    setting ("" where its budget is not known), join with frames of ``evaluate`` by it.

    BadUsage for an unknown name, or when the file lacks a column or a row lacks its source.
    """
    name = name.replace("-", "_")
    if name not in _COLUMNS:
        raise BadUsage(f"there are no printed numbers called {name!r}", fix=f"use one of {', '.join(_COLUMNS)}")
    return _read(name).copy()


def settings() -> pd.DataFrame:
    """The parameters behind each FLOPs cell, a row per printed row: frames, cells, layers, n (visual tokens that
    enter the language model), stages as in ``flops.tokens_per_layer``, and how each is known. ``known`` is False
    where no setting was found."""
    return _settings().copy()


@cache
def _settings() -> pd.DataFrame:
    words = ("stages", "stages_how", "note", "tau_how")
    frame = pd.read_csv(paths.data("papers", "settings.csv"), dtype=dict.fromkeys(words, str), encoding="utf-8")
    frame = frame.fillna(dict.fromkeys(words, ""))
    stages = frame["stages"].map(lambda text: [stage.split(":") for stage in text.split()])
    frame["stages"] = stages.map(lambda pairs: tuple((int(layer), float(share)) for layer, share in pairs))
    return frame.assign(known=frame["stages_how"] != "unknown", key=_keys(frame, "retained_pct"))


def layer_tokens(table: str, model: str, method: str, retained_pct: SupportsFloat) -> list[int]:
    """Visual tokens entering each layer of the language model in one printed row. BadUsage when the row is unknown,
    or when nobody knows its setting."""
    frame = _settings().set_index(["table", "model", "method", "retained_pct"])
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
    rows = []
    for row in printed(name).itertuples():
        shape = LLMShape.named(row.model)
        counts = layer_tokens(name, row.model, row.method, row.retained_pct)
        derived, base = (shape.paper(n) / 1e12 for n in (counts, layer_tokens(name, row.model, "Vanilla", 100)))
        rows.append(
            {
                **{column: getattr(row, column) for column in ("key", "model", "method", "retained_pct")},
                "tokens_per_layer": counts,
                "flops_t": getattr(row, "flops_t", float("nan")),
                "flops_t_derived": derived,
                "flops_pct": row.flops_pct,
                "flops_pct_rounded": 100 * round(derived, 1) / round(base, 1),
                "flops_pct_exact": 100 * derived / base,
            }
        )
    return pd.DataFrame(rows)


def _keys(frame: pd.DataFrame, column: str) -> Sequence[str]:
    budgets = pd.to_numeric(frame[column], errors="coerce") / 100
    names = frame["method"]
    if {"layer", "ratio"} <= set(frame.columns):
        names = [f"{r.method} K={r.layer} r={r.ratio:g}" for r in frame.itertuples()]
    keys = [f"{name}@{budget:.2f}" if budget == budget else "" for name, budget in zip(names, budgets, strict=True)]
    return ["all tokens" if name == "Vanilla" else key for name, key in zip(frame["method"], keys, strict=True)]


@cache
def _read(name: str) -> pd.DataFrame:
    words = ("arxiv", "model", "note", "paper", "place", "implied_retained_pct")
    frame = pd.read_csv(paths.data("papers", f"{name}.csv"), dtype=dict.fromkeys(words, str), encoding="utf-8")
    missing = [one for one in (*_COLUMNS[name], "reading", "paper", "arxiv", "place") if one not in frame.columns]
    unknown = sorted(set(frame.get("reading", pd.Series(dtype=str)).fillna("nothing")) - set(READINGS))
    if missing or unknown:
        what = f"lacks the columns {', '.join(missing)}" if missing else f"has the reading {', '.join(unknown)}"
        raise BadUsage(f"data/papers/{name}.csv {what}", fix="restore the file from git")
    frame = frame.fillna(dict.fromkeys(set(words) & set(frame.columns), ""))
    return frame.assign(key=_keys(frame, _BUDGET.get(name, "retained_pct")))
