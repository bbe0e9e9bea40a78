"""One picture of HoliTom's outer stage on a video: similarity over time, segments, every cell's fate, tokens on the
frames."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from holitom_repro.figures.style import styled
from holitom_repro.figures.walk_panels import (
    COLUMNS,
    draw_counts,
    draw_fates,
    draw_frames,
    draw_share,
    draw_similarity,
    segment_of,
    share_above,
)
from holitom.video import Frames
from holitom_repro.walkthrough import DYNAMIC, MERGED, Walk

PAGE = 10.0
"""Width in inches of a picture that fills a page or a screen: frames need more room than a plot."""
MOST_FRAMES = 32


def method_figure(
    frames: Frames, walk: Walk, *, title: str = "", most_frames: int = MOST_FRAMES
) -> tuple[Figure, pd.DataFrame]:
    """The whole method on one page, and its numbers per frame. At most ``most_frames`` frames are drawn, evenly
    chosen."""
    shown = shown_frames(walk, most_frames)
    lines = -(-len(shown) // COLUMNS)
    height, width = frames.pixels.shape[1:3]
    frame_high = min(1.2 * height / width, 1.8) + 0.24
    with styled():
        fig = Figure(figsize=(PAGE, 4.2 + lines * frame_high + 0.35), layout="constrained")
        top, bottom = fig.subfigures(2, 1, height_ratios=[4.2, lines * frame_high + 0.35])
        axes = top.subplots(2, 2, height_ratios=[2.1, 1], sharex=True)
        draw_similarity(axes[0, 0], frames, walk)
        draw_share(axes[1, 0], frames, walk)
        draw_fates(axes[0, 1], frames, walk)
        draw_counts(axes[1, 1], frames, walk)
        if title:
            fig.suptitle(title, x=0.006, ha="left", fontsize=11, fontweight="bold")
        draw_frames(bottom, frames, walk, shown)
    return fig, frame_table(frames, walk)


def similarity_figure(frames: Frames, walk: Walk) -> tuple[Figure, pd.DataFrame]:
    """The similarity of neighbouring frames cell by cell, and the share of cells above tau, with the segments found."""
    with styled():
        fig = Figure(figsize=(7.0, 3.8), layout="constrained")
        axes = fig.subplots(2, 1, height_ratios=[2.1, 1], sharex=True)
        draw_similarity(axes[0], frames, walk)
        draw_share(axes[1], frames, walk)
    return fig, frame_table(frames, walk)


def frame_table(frames: Frames, walk: Walk) -> pd.DataFrame:
    """One row per frame: seconds, segment, mean similarity to the next frame and share of cells above tau, cells by
    fate."""
    following, unchanged = (
        np.append(values, np.nan)[: walk.video.frames]
        for values in (walk.similarity.mean(dim=1).double().numpy(), share_above(walk))
    )
    return pd.DataFrame(
        {
            "frame": np.arange(walk.video.frames),
            "seconds": frames.seconds,
            "segment": segment_of(walk) + 1,
            "mean_similarity_to_next": following,
            "share_above_tau": unchanged,
            "static_cells": walk.static.sum(dim=1).numpy(),
            "merged_tokens": walk.per_frame(MERGED).numpy(),
            "dynamic_tokens": walk.per_frame(DYNAMIC).numpy(),
            "source": "derived",
        }
    )


def segment_table(frames: Frames, walk: Walk) -> pd.DataFrame:
    """One row per segment: its time, its static cells and the tokens that stand for them, its dynamic tokens."""
    owner = segment_of(walk)
    rows = []
    for number, (first, last) in enumerate(walk.segments):
        static = int(walk.static[first].sum())
        here = owner == number
        rows.append(
            {
                "segment": f"S{number + 1}",
                "from (s)": round(float(frames.seconds[first]), 2),
                "to (s)": round(float(frames.seconds[last]), 2),
                "frames": last - first + 1,
                "static cells": static,
                "merged tokens": int(walk.per_frame(MERGED).numpy()[here].sum()),
                "dynamic cells": (walk.video.cells - static) * (last - first + 1),
                "dynamic tokens": int(walk.per_frame(DYNAMIC).numpy()[here].sum()),
            }
        )
    return pd.DataFrame(rows)


def shown_frames(walk: Walk, most: int) -> list[int]:
    """Frames to draw: all, or ``most`` evenly chosen ones."""
    return sorted({int(i) for i in np.linspace(0, walk.video.frames - 1, min(most, walk.video.frames))})
