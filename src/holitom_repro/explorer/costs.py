"""What a reduction costs: FLOPs by the papers' formula, of the tiny model exactly, and the expected time to the first
token where a machine has recorded some."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from holitom_repro import paths
from holitom.errors import KitError
from holitom_repro.explorer.answers import MODEL
from holitom_repro.explorer.state import Side
from holitom.flops import LLM_SHAPES, LLMShape, tokens_per_layer
from holitom.methods.presets import CELLS, FRAMES

RECORDED = ("measured", "h200.jsonl")  # below data/
FULL = FRAMES["ov-7b"] * CELLS["ov-7b"]
"""Visual tokens of LLaVA-OneVision-7B's 32 frames."""
NOTHING_RECORDED = "nothing recorded"


@dataclass(frozen=True)
class Cost:
    """tokens: that enter the first layer of LLaVA-OneVision-7B at the realised share; layer_tokens: mean over its
    layers; flops: the papers' formula for it; tiny_flops: of the tiny model's decoder at the same share, exact, visual
    tokens only (None when the model is not there)."""

    tokens: int
    layer_tokens: float
    flops: float | int
    tiny_flops: float | None


def cost(share: float | int, side: Side | None = None) -> Cost:
    """Of keeping ``share`` of the visual tokens, and of the side's inner stage behind it (None: no inner stage)."""
    shape, tiny = LLM_SHAPES["ov-7b"], _tiny_shape()
    counts = _counts(round(share * FULL), shape, side)
    small = None
    if tiny is not None:
        shape_of_tiny, tokens = tiny
        small = shape_of_tiny.exact(_counts(round(share * tokens), shape_of_tiny, side), lm_head=False)
    return Cost(counts[0], float(np.mean(counts)), shape.paper(counts), small)


def _counts(tokens: int, shape: LLMShape, side: Side | None) -> list[int]:
    stages = side.stages(shape.layers) if side is not None else ()
    return tokens_per_layer(tokens, shape.layers, [(stage.layer, 1 - stage.ratio) for stage in stages])


@cache
def _tiny_shape() -> tuple[LLMShape, int] | None:
    """The tiny model's decoder and the visual tokens of its 32 frames, from its config alone."""
    file = paths.data(*MODEL, "config.json")
    if not file.is_file():
        return None
    config = json.loads(file.read_text(encoding="utf-8"))
    vision = config["vision_config"]
    side = -(-(vision["image_size"] // vision["patch_size"]) // 2)
    return LLMShape.from_config(SimpleNamespace(**{"head_dim": None, **config["text_config"]}), "tiny"), 32 * side**2


@dataclass(frozen=True)
class Point:
    """One recorded setting of LLaVA-OneVision-7B at 32 frames, batch 1: paper FLOPs of its realised counts, ms."""

    row: str
    flops: float | int
    ttft_ms: float | int
    device: str


def recorded(path: Path | None = None) -> tuple[Point, ...]:
    """The recorded settings; none where nothing has been recorded, or where the file is broken."""
    path = path or paths.data(*RECORDED)
    return _recorded(path, path.stat().st_mtime_ns) if path.is_file() else ()


@lru_cache(maxsize=4)
def _recorded(path: Path, changed: int) -> tuple[Point, ...]:
    from holitom_repro.experiments.inference import newest
    from holitom_repro.latency.records import read

    try:
        records = newest(read(path))
    except KitError:
        return ()
    return tuple(point for record in records if (point := _point(record)) is not None)


def _point(record: dict[str, Any]) -> Point | None:
    shape = LLM_SHAPES["ov-7b"]
    whole = record["layers"] == record["full_layers"] == shape.layers == len(record["tokens_per_layer"])
    fits = record["model"].startswith("ov-7b") and record["frames"] == FRAMES["ov-7b"] and record["batch"] == 1
    if record["outcome"] != "measured" or not whole or not fits:
        return None
    flops = shape.paper(record["tokens_per_layer"])
    return Point(record["row"], flops, record["summary"]["ttft_ms"]["median"], record["device"])


def expected_ttft(points: Sequence[Point], row: str, flops: float | int) -> str:
    """In words: between the recorded settings of this row (and of the unreduced model), else of every row."""
    own = [point for point in points if point.row in (row, "Vanilla")]
    basis = own if any(point.row == row for point in own) else list(points)
    if len(basis) < 2:
        return NOTHING_RECORDED
    basis.sort(key=lambda point: point.flops)
    x = [point.flops for point in basis]
    y = float(np.interp(flops, x, [point.ttft_ms for point in basis]))
    bound = "at most " if flops < x[0] else "at least " if flops > x[-1] else "about "
    return f"{bound}{y:.0f} ms on {basis[0].device}"
