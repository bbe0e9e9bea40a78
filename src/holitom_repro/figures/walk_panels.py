"""The panels of HoliTom's outer stage on a video: similarity over time, every cell's fate, tokens kept, the frames."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import BoundaryNorm, ListedColormap
from matplotlib.figure import FigureBase
from matplotlib.patches import PathPatch, Rectangle
from matplotlib.path import Path

from holitom_repro.figures.overlay import (
    CARRIED_COLOUR,
    DROPPED_COLOUR,
    DYNAMIC_COLOUR,
    HATCH,
    STATIC_COLOUR,
    draw_tokens,
    legend_handles,
)
from holitom_repro.figures.style import INK, MUTED, SEGMENT_COLOURS
from holitom.ops.segmentation import above
from holitom.video import Frames
from holitom_repro.walkthrough import CARRIED, DYNAMIC, MERGED, Walk

COLUMNS = 8
FATE_COLOURS = (DROPPED_COLOUR, CARRIED_COLOUR, DYNAMIC_COLOUR, STATIC_COLOUR)


def segment_of(walk: Walk) -> np.ndarray:
    """The index of the segment each frame belongs to."""
    return np.repeat(np.arange(len(walk.segments)), [last - first + 1 for first, last in walk.segments])


def draw_similarity(ax: Axes, frames: Frames, walk: Walk) -> None:
    """Cosine of every cell with the same cell of the next frame, over time, in the raster order of the cells."""
    ax.set_title("Similarity of each cell to the next frame", pad=16)
    ax.set_ylabel(f"cell (raster order, {walk.video.grid[0]}×{walk.video.grid[1]})")
    if not len(walk.similarity):
        ax.text(0.5, 0.5, "one frame: no neighbour to compare with", transform=ax.transAxes, ha="center", color=MUTED)
        return
    mesh = ax.pcolormesh(
        frames.seconds,
        np.arange(walk.video.cells + 1),
        walk.similarity.float().numpy().T,
        cmap="cividis",
        vmin=0,
        vmax=1,
        rasterized=True,
    )
    bar = ax.figure.colorbar(mesh, ax=ax, pad=0.01, fraction=0.04, extend="min")
    bar.set_label("cosine")
    bar.outline.set_visible(False)
    bar.ax.axhline(walk.method.tau, color=INK, lw=1.2)
    bar.ax.text(-0.25, walk.method.tau, "τ", ha="right", va="center", color=INK, transform=bar.ax.get_yaxis_transform())
    ax.grid(visible=False)
    ax.set_ylim(walk.video.cells, 0)
    _segment_band(ax, frames, walk)


def draw_share(ax: Axes, frames: Frames, walk: Walk) -> None:
    """The share of cells whose cosine with the next frame is above tau: tau acts cell by cell, never on a mean."""
    ax.set(xlabel="time (s)", ylabel=f"cells above\nτ = {walk.method.tau:g} (%)", ylim=(-4, 104))
    if len(walk.similarity):
        middle = (frames.seconds[1:] + frames.seconds[:-1]) / 2
        ax.plot(middle, 100 * share_above(walk), color=INK, marker="o", markersize=3, lw=1.2)
    _cuts(ax, frames, walk)


def share_above(walk: Walk) -> np.ndarray:
    """The share of cells that count as unchanged from each frame to the next."""
    return above(walk.similarity, walk.method.tau).double().mean(dim=1).numpy()


def draw_fates(ax: Axes, frames: Frames, walk: Walk) -> None:
    """What becomes of every cell of every frame, hatched as on the frames."""
    ax.set_title("What becomes of each cell", pad=16)
    norm = BoundaryNorm(np.arange(5) - 0.5, 4)
    edges = _frame_edges(frames)
    ax.pcolormesh(
        edges,
        np.arange(walk.video.cells + 1),
        walk.fate.numpy().T,
        cmap=ListedColormap(FATE_COLOURS),
        norm=norm,
        rasterized=True,
    )
    _hatch_carried(ax, edges, walk)
    ax.grid(visible=False)
    ax.set_ylim(walk.video.cells, 0)
    ax.set_ylabel("cell (raster order)")
    _segment_band(ax, frames, walk)


def draw_counts(ax: Axes, frames: Frames, walk: Walk) -> None:
    """Surviving tokens per frame; a merged token is counted at the first frame of its segment."""
    edges = _frame_edges(frames)
    dynamic, merged = walk.per_frame(DYNAMIC).numpy(), walk.per_frame(MERGED).numpy()
    centre, wide = (edges[1:] + edges[:-1]) / 2, np.diff(edges) * 0.86
    ax.bar(centre, dynamic, wide, color=DYNAMIC_COLOUR, edgecolor="white", linewidth=0.3)
    ax.bar(centre, merged, wide, bottom=dynamic, color=STATIC_COLOUR, edgecolor="white", linewidth=0.3)
    ax.set(xlabel="time (s)", ylabel="tokens kept")
    ax.set_title(
        f"{len(walk.kept)} of {walk.total} tokens = {100 * walk.realised:.1f} % (asked for {100 * walk.budget:.3g} %)",
        fontsize=8,
        fontweight="normal",
        loc="right",
        pad=3,
    )
    _cuts(ax, frames, walk)


def draw_frames(fig: FigureBase, frames: Frames, walk: Walk, shown: list[int]) -> None:
    """The frames with their tokens, eight in a row; a coloured bar and a label name the segment of each."""
    axes = fig.subplots(
        -(-len(shown) // COLUMNS), COLUMNS, squeeze=False, gridspec_kw={"wspace": 0.01, "hspace": 0.01}
    ).ravel()
    owner = segment_of(walk)
    sizes = _sizes(walk)
    for ax, t in zip(axes, shown, strict=False):
        draw_tokens(ax, frames.pixels[t], walk.fate[t].numpy(), walk.video.grid, sizes.get(t))
        colour = SEGMENT_COLOURS[owner[t] % len(SEGMENT_COLOURS)]
        ax.add_patch(Rectangle((0, 1.0), 1, 0.05, transform=ax.transAxes, facecolor=colour, clip_on=False))
        ax.set_title(f"{frames.seconds[t]:.1f} s · S{owner[t] + 1}", fontsize=7, fontweight="normal", pad=5, color=INK)
        for spine in ax.spines.values():
            spine.set_visible(False)
    for ax in axes[len(shown) :]:
        ax.axis("off")
    fig.legend(
        handles=legend_handles(), loc="outside lower center", ncols=4, fontsize=8, handlelength=1.4, columnspacing=1.8
    )


def _sizes(walk: Walk) -> dict[int, dict[int, float]]:
    sizes: dict[int, dict[int, float]] = {}
    if walk.kept.size is not None:
        for t, cell, size in zip(
            walk.kept.frame.tolist(), walk.kept.cell.tolist(), walk.kept.size.tolist(), strict=True
        ):
            sizes.setdefault(t, {})[cell] = size
    return sizes


def _frame_edges(frames: Frames) -> np.ndarray:
    """Borders of the time each sampled frame stands for, in seconds."""
    seconds = frames.seconds
    if len(seconds) == 1:
        return np.array([seconds[0], seconds[0] + 1.0])
    middle = (seconds[1:] + seconds[:-1]) / 2
    return np.concatenate([[seconds[0] - (middle[0] - seconds[0])], middle, [seconds[-1] + (seconds[-1] - middle[-1])]])


def _hatch_carried(ax: Axes, edges: np.ndarray, walk: Walk) -> None:
    """One hatched patch over all carried cells; cells of a frame that touch share a rectangle."""
    corners: list[tuple[float, float]] = []
    for t, fates in enumerate(walk.fate.numpy()):
        ends = np.flatnonzero(np.diff(np.concatenate([[0], fates == CARRIED, [0]])))
        for top, bottom in ends.reshape(-1, 2).tolist():
            left, right = float(edges[t]), float(edges[t + 1])
            corners += [(left, top), (right, top), (right, bottom), (left, bottom), (left, top)]
    if corners:
        steps = [Path.MOVETO, Path.LINETO, Path.LINETO, Path.LINETO, Path.CLOSEPOLY] * (len(corners) // 5)
        ax.add_patch(PathPatch(Path(corners, steps), facecolor="none", lw=0, rasterized=True, **HATCH))


def _cuts(ax: Axes, frames: Frames, walk: Walk) -> None:
    """A dashed line where a segment begins, dark on light ground and with a light edge on dark ground."""
    edges = _frame_edges(frames)
    for first, _ in walk.segments[1:]:
        ax.axvline(edges[first], color="white", lw=2.6, zorder=1.8)
        ax.axvline(edges[first], color=INK, lw=1.2, ls=(0, (4, 2)), zorder=1.9)  # under the curve


def _segment_band(ax: Axes, frames: Frames, walk: Walk) -> None:
    """Coloured bands with names above the axes, one per segment, and a dashed line where a segment begins."""
    edges = _frame_edges(frames)
    across = edges[-1] - edges[0]
    for k, (first, last) in enumerate(walk.segments):
        colour = SEGMENT_COLOURS[k % len(SEGMENT_COLOURS)]
        left, right = edges[first], edges[last + 1]
        ax.add_patch(
            Rectangle(
                (left, 1.005),
                right - left,
                0.065,
                transform=ax.get_xaxis_transform(),
                facecolor=colour,
                edgecolor="white",
                lw=1,
                clip_on=False,
            )
        )
        if (right - left) / across > 0.045:
            ax.text(
                (left + right) / 2,
                1.037,
                f"S{k + 1}",
                transform=ax.get_xaxis_transform(),
                ha="center",
                va="center_baseline",
                fontsize=7.5,
                color=INK,
            )
    ax.set_xlim(edges[0], edges[-1])
    _cuts(ax, frames, walk)
