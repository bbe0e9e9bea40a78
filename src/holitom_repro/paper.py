"""The numbers that papers print, read from data/papers/ into tidy frames. See data/papers/README.md for every
column."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import SupportsFloat

import pandas as pd

from holitom_repro import paths
from holitom.errors import BadUsage
from holitom.flops import LLMShape, tokens_per_layer

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
READINGS = ("image", "image+text", "text", "axis", "deduced")
"""How a printed number was read; README.md beside the files says what each means."""
MODELS = {
    "ov-7b": "LLaVA-OneVision-7B",
    "ov-72b": "LLaVA-OneVision-72B",
    "video-7b": "LLaVA-Video-7B",
    "ov-0.5b": "LLaVA-OneVision-0.5B",
}

_REQUIRED = {
    "table1": ("model", "method", "retained_pct", "flops_t", "flops_pct", *BENCHMARKS, "avg", "avg_pct"),
    "table2": ("model", "method", "retained_pct", "flops_t", "flops_pct", *BENCHMARKS, "avg", "avg_pct"),
    "fig_inference": ("model", "method", "vision_ms", "other_ms", "llm_ms", "ttft_ms", "decode_tok_s", "avg"),
    "fig_inner": ("model", "sweep", "method", "layer", "ratio", "avg"),
    "fig_frames": ("model", "method", "frames", "avg", "uncertainty"),
    "hieravid": ("model", "method", "retained_pct", "flops_pct"),
    "mmg_vid": ("report", "model", "method", "metric", "value", "unit"),
    "other_reports": ("report", "model", "method", "metric", "value", "unit"),
}
_STATED = ("reading", "paper", "arxiv", "place")
_WORDS = {"arxiv": str, "model": str, "implied_retained_pct": str, "note": str}


def names() -> tuple[str, ...]:
    """The tables and figures that ``table`` reads."""
    return tuple(_REQUIRED)


def table(name: str) -> pd.DataFrame:
    """One table or figure as printed, a row per printed row; cells that the paper leaves open are NaN.

    BadUsage for an unknown name, or when the file lacks a column or a row lacks its source.
    """
    if name.replace("-", "_") not in _REQUIRED:
        raise BadUsage(f"there are no printed numbers called {name!r}", fix=f"use one of {', '.join(_REQUIRED)}")
    return _read(name.replace("-", "_")).copy()


def settings() -> pd.DataFrame:
    """The parameters behind each FLOPs cell, a row per printed row: frames, cells, layers, n (visual tokens that
    enter the language model), stages as in ``flops.tokens_per_layer``, and how each is known. ``known`` is False
    where no setting was found."""
    frame = pd.read_csv(paths.data("papers", "settings.csv"), dtype={"stages": str, "note": str}).fillna(
        {"stages": "", "stages_how": "", "note": "", "tau_how": ""}
    )
    frame["known"] = frame["stages_how"] != "unknown"
    frame["stages"] = frame["stages"].map(_stages)
    return frame


def layer_tokens(table: str, model: str, method: str, retained_pct: SupportsFloat) -> list[int]:
    """Visual tokens entering each layer of the language model in one printed row. BadUsage when the row is unknown,
    or when nobody knows its setting."""
    row = _setting(table, model, method, retained_pct)
    if not row.known:
        raise BadUsage(
            f"the setting of {table}/{model}/{method} is not known ({row.note})", fix="leave this cell quoted"
        )
    return tokens_per_layer(int(row.n), int(row.layers), row.stages)


def flops_columns(name: str) -> pd.DataFrame:
    """The FLOPs columns of a table beside their derivation, row by row.

    tokens_per_layer; flops_t (printed) and flops_t_derived; flops_pct (printed), flops_pct_rounded (derived T
    rounded to the printed digit over the baseline rounded likewise: the papers' convention), flops_pct_exact
    (before rounding).
    """
    decimals = 1
    rows = []
    for row in table(name).itertuples():
        shape = LLMShape.named(row.model)
        counts = layer_tokens(name, row.model, row.method, row.retained_pct)
        derived, base = shape.paper(counts) / 1e12, shape.paper(layer_tokens(name, row.model, "Vanilla", 100)) / 1e12
        rows.append(
            {
                "model": row.model,
                "method": row.method,
                "retained_pct": row.retained_pct,
                "tokens_per_layer": counts,
                "flops_t": getattr(row, "flops_t", float("nan")),
                "flops_t_derived": derived,
                "flops_pct": row.flops_pct,
                "flops_pct_rounded": 100 * round(derived, decimals) / round(base, decimals),
                "flops_pct_exact": 100 * derived / base,
            }
        )
    return pd.DataFrame(rows)


def scores(name: str) -> pd.DataFrame:
    """Table 1 or 2 in long form: a row per printed score (model, method, retained_pct, benchmark, score, reading)."""
    wide = table(name)
    if not set(BENCHMARKS) <= set(wide.columns):
        raise BadUsage(f"{name} has no score per benchmark", fix="use table1 or table2")
    long = wide.melt(
        id_vars=["model", "method", "retained_pct", "reading"],
        value_vars=list(BENCHMARKS),
        var_name="benchmark",
        value_name="score",
    )
    return long.dropna(subset="score").reset_index(drop=True)


def tradeoff() -> pd.DataFrame:
    """The teaser figure's points, which are Table 1's rows: average score against FLOPs (T and %)."""
    points = table("table1").dropna(subset="avg")
    return points[["method", "retained_pct", "flops_t", "flops_pct", "avg", "reading"]].reset_index(drop=True)


@cache
def _read(name: str) -> pd.DataFrame:
    frame = pd.read_csv(paths.data("papers", f"{name}.csv"), dtype=_WORDS)
    missing = [column for column in (*_REQUIRED[name], *_STATED) if column not in frame.columns]
    if missing:
        raise BadUsage(
            f"data/papers/{name}.csv lacks the columns {', '.join(missing)}", fix="restore the file from git"
        )
    unknown = sorted(set(frame["reading"].fillna("nothing")) - set(READINGS))
    if unknown:
        raise BadUsage(
            f"data/papers/{name}.csv has the reading {', '.join(unknown)}", fix=f"use one of {', '.join(READINGS)}"
        )
    words = [column for column in ("arxiv", "model", "note", "paper", "place") if column in frame.columns]
    return frame.fillna(dict.fromkeys(words, ""))


@cache
def _settings_by_row() -> pd.DataFrame:
    return settings().set_index(["table", "model", "method", "retained_pct"])


def _setting(table: str, model: str, method: str, retained_pct: SupportsFloat) -> pd.Series:
    try:
        return _settings_by_row().loc[(table, model, method, round(float(retained_pct)))]
    except KeyError:
        raise BadUsage(
            f"no setting is recorded for {table}, {model}, {method} at {float(retained_pct):g} %",
            fix="see paper.settings()",
        ) from None


def _stages(text: str) -> Sequence[tuple[int, float]]:
    pairs = (stage.split(":") for stage in text.split())
    return tuple((int(layer), float(share)) for layer, share in pairs)
