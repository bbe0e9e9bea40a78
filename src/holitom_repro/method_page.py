"""What a stage before the language model does to one video. ``walk`` runs any method; every ``draw_*`` puts one step of
HoliTom's on axes of your own, and ``method_figure`` is the whole page."""

from dataclasses import dataclass
from functools import cached_property

import matplotlib.style
import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.collections import EllipseCollection, PatchCollection
from matplotlib.colors import to_rgba_array
from matplotlib.figure import Figure, FigureBase
from matplotlib.patches import Patch, Rectangle
from PIL import Image

from holitom.errors import BadVideo
from holitom.ops.segments import above
from holitom.ops.tensors import neighbour_cosine
from holitom.types import Outer, TokenSet, VideoFeatures
from holitom.video import Frames
from holitom_repro.sources import NOBODY, reduce_with_sources
from holitom_repro.style import MUTED

DROPPED, CARRIED, ALONE, MERGED = range(4)
"""What becomes of a cell: nothing stands for it; a token elsewhere stands for it; it is kept and stands for itself; it
is kept and stands for others too."""
FATES = ("dropped", "static, carried by a merged token", "kept as it is", "static, kept as a merged token (disc)")
FATE_COLOURS = ("#E6E6E6", "#A9CDE4", "#DE8F05", "#0173B2")
SEGMENT_COLOURS = ("#56B4E9", "#ECE133", "#CC78BC", "#029E73", "#DE8F05", "#949494")
INK, STAMP = "#222222", "#7A4A00"
NO_MODEL = "tiny tier: colour statistics of the frames, no model"


def colour_features(pixels: np.ndarray, grid: tuple[int, int] = (14, 14)) -> VideoFeatures:
    """A stand-in for a vision tower in pictures; no score is ever computed from it.

    pixels: uint8 [T, H, W, 3], cut into grid[0] x grid[1] equal cells -> tokens [T, cells, 8] float32: mean and
    deviation of R, G, B, standardised over the video, and the place of the cell in [-1, 1] with half weight. Saliency:
    how far a cell's colour is from its frame's mean colour, plus its own texture, with sum 1 per frame. keys and
    frame_embed are made of the tokens. Raises BadVideo for a picture smaller than the grid.
    """
    rows, columns = grid
    high, wide = pixels.shape[1] // rows, pixels.shape[2] // columns
    if not high or not wide:
        size = f"{pixels.shape[2]}x{pixels.shape[1]} pixels"
        raise BadVideo(f"frames of {size} are smaller than the grid of {columns}x{rows}", fix="use a larger video")
    colour, texture = [], []
    for picture in torch.as_tensor(pixels):  # one at a time: a long video in float32 would not fit
        blocks = picture[: high * rows, : wide * columns].reshape(rows, high, columns, wide, 3).float() / 255
        colour.append(blocks.mean((1, 3)).reshape(-1, 3))
        texture.append(blocks.std((1, 3), unbiased=False).reshape(-1, 3))
    mean, deviation = torch.stack(colour), torch.stack(texture)
    values = torch.cat([mean, deviation], dim=-1)
    standard = (values - values.mean((0, 1))) / (values.std((0, 1), unbiased=False) + 1e-4)
    place = torch.cartesian_prod(torch.linspace(-1, 1, rows), torch.linspace(-1, 1, columns))
    tokens = torch.cat([standard, 0.5 * place.expand(len(values), -1, -1)], dim=-1)  # two grey cells have a cosine
    contrast = (mean - mean.mean(1, keepdim=True)).norm(dim=-1) + deviation.norm(dim=-1) + 1e-6
    saliency = contrast / contrast.sum(1, keepdim=True)
    return VideoFeatures(tokens, grid, saliency=saliency, keys=tokens, frame_embed=tokens.mean(1))


@dataclass(frozen=True, eq=False)
class Outcome:
    """What a method does to every cell of a video. owner: [T, N] the kept token that each cell went into, or NOBODY;
    segments: first and last frame of each (none: the method has no notion of time)."""

    frames: Frames
    video: VideoFeatures
    method: Outer
    budget: float
    kept: TokenSet
    owner: np.ndarray
    segments: tuple[tuple[int, int], ...]

    @property
    def realised(self) -> float:
        """Share of the visual tokens that survive; rounding makes it differ from the budget."""
        return len(self.kept) / self.owner.size

    @cached_property
    def size(self) -> np.ndarray:
        """[T, N] how many cells the token kept here stands for, itself included; 0 where none is kept."""
        size = np.zeros_like(self.owner)
        counts = np.bincount(self.owner[self.owner != NOBODY], minlength=len(self.kept))
        size[self.kept.frame, self.kept.cell] = counts
        return size

    @cached_property
    def fate(self) -> np.ndarray:
        """[T, N] DROPPED, CARRIED, ALONE or MERGED."""
        gone = np.where(self.owner == NOBODY, DROPPED, CARRIED)
        return np.where(self.size == 0, gone, np.where(self.size == 1, ALONE, MERGED))

    def per_frame(self, fate: int) -> np.ndarray:
        """[T] how many cells of each frame met ``fate``."""
        return (self.fate == fate).sum(1)

    @cached_property
    def segment_of(self) -> np.ndarray:
        """[T] the number of every frame's segment, from 0; -1 where there are none."""
        begins = [first for first, _ in self.segments]
        return np.searchsorted(begins, np.arange(len(self.owner)), side="right") - 1

    @cached_property
    def similarity(self) -> np.ndarray:
        """[T - 1, N] cosine of every cell with the same cell of the next frame."""
        return neighbour_cosine(self.video.tokens).numpy()

    @property
    def edges(self) -> np.ndarray:
        """[T + 1] borders of the time that each frame stands for, in seconds."""
        seconds = self.frames.seconds
        half = np.diff(seconds) / 2 if len(seconds) > 1 else np.array([0.5])
        return np.r_[seconds[0] - half[0], seconds[1:] - half[: len(seconds) - 1], seconds[-1] + half[-1]]


def walk(frames: Frames, video: VideoFeatures, method: Outer, budget: float) -> Outcome:
    """Run a method and see where every token went; any method, for none is asked."""
    kept, owner = reduce_with_sources(method, video, budget)
    return Outcome(frames, video, method, budget, kept, owner.numpy(), _segments(method, video, owner.numpy()))


def _segments(method: Outer, video: VideoFeatures, owner: np.ndarray) -> tuple[tuple[int, int], ...]:
    """The method's own segments where it tells them; else the stretches of frames that no token reaches beyond."""
    frames, cells = owner.shape
    if callable(own := getattr(method, "segments", None)):
        found = own(video)
        ends = np.cumsum(getattr(found, "lengths", found)).tolist()
    else:
        reach = pd.Series(np.arange(owner.size) // cells).groupby(owner.ravel()).agg(["min", "max"])
        first, last = reach.drop(index=NOBODY, errors="ignore").to_numpy().T
        ends = [t for t in range(1, frames) if not ((first < t) & (t <= last)).any()] + [frames]
        if len(ends) == frames:  # every frame on its own
            return ()
    return tuple(zip([0, *ends[:-1]], [end - 1 for end in ends], strict=True))


def _above_tau(seen: Outcome) -> np.ndarray:
    """[T - 1] share of the cells that HoliTom counts as unchanged."""
    return above(torch.from_numpy(seen.similarity), seen.method.tau).double().mean(1).numpy()


def frame_table(seen: Outcome) -> pd.DataFrame:
    """One row per frame: seconds, segment (from 1), similarity to the next frame, share above tau, cells by fate."""
    columns = {"frame": np.arange(len(seen.frames)), "seconds": seen.frames.seconds, "segment": seen.segment_of + 1}
    after = {"mean_similarity_to_next": seen.similarity.mean(1), "share_above_tau": _above_tau(seen)}
    columns |= {name: np.append(values, np.nan) for name, values in after.items()}
    fates = {"dropped": DROPPED, "carried": CARRIED, "as_they_are": ALONE, "merged": MERGED}
    return pd.DataFrame(columns | {name: seen.per_frame(fate) for name, fate in fates.items()})


def draw_similarity(ax: Axes, seen: Outcome) -> None:
    """Cosine of every cell with the same cell of the next frame, cells in raster order."""
    rows, columns = seen.video.grid
    ax.set_title("Similarity of each cell to the next frame", pad=16)
    ax.set_ylabel(f"cell (raster order, {rows}×{columns})")
    if not len(seen.similarity):
        ax.text(0.5, 0.5, "one frame: no neighbour to compare with", transform=ax.transAxes, ha="center", color=MUTED)
        return
    at = np.arange(rows * columns + 1)
    mesh = ax.pcolormesh(seen.frames.seconds, at, seen.similarity.T, cmap="cividis", vmin=0, vmax=1, rasterized=True)
    bar = ax.figure.colorbar(mesh, ax=ax, pad=0.01, fraction=0.04, extend="min", label="cosine")
    bar.outline.set_visible(False)
    bar.ax.axhline(seen.method.tau, color=INK, lw=1.2)
    bar.ax.text(-0.25, seen.method.tau, "τ", ha="right", va="center", transform=bar.ax.get_yaxis_transform())
    _over_time(ax, seen)


def draw_share(ax: Axes, seen: Outcome) -> None:
    """The share of cells above tau: tau acts cell by cell, never on a mean."""
    ax.set(xlabel="time (s)", ylabel=f"cells above\nτ = {seen.method.tau:g} (%)", ylim=(-4, 104))
    if len(seen.similarity):
        ax.plot(seen.edges[1:-1], 100 * _above_tau(seen), color=INK, marker="o", markersize=3, lw=1.2)
    _cuts(ax, seen)


def draw_fates(ax: Axes, seen: Outcome) -> None:
    """What becomes of every cell of every frame, hatched as on the frames."""
    ax.set_title("What becomes of each cell", pad=16)
    ax.set_ylabel("cell (raster order)")
    edges, cells = seen.edges, seen.video.cells
    t = np.searchsorted(edges[1:-1], np.linspace(edges[0], edges[-1], 1200), side="right")  # of every column of pixels
    fate = seen.fate[t].T.repeat(-(-600 // cells), axis=0)
    pixels = _hatched(255 * to_rgba_array(FATE_COLOURS)[fate, :3], fate == CARRIED, 18)
    ax.imshow(pixels, extent=(edges[0], edges[-1], cells, 0), aspect="auto", interpolation="nearest")
    _over_time(ax, seen)


def draw_counts(ax: Axes, seen: Outcome) -> None:
    """Surviving tokens per frame; a merged token is counted at the first frame of its segment."""
    centre, wide = (seen.edges[1:] + seen.edges[:-1]) / 2, np.diff(seen.edges) * 0.86
    alone, merged = seen.per_frame(ALONE), seen.per_frame(MERGED)
    ax.bar(centre, alone, wide, color=FATE_COLOURS[ALONE])
    ax.bar(centre, merged, wide, bottom=alone, color=FATE_COLOURS[MERGED])
    words = f"{len(seen.kept)} of {seen.fate.size} tokens = {seen.realised:.1%} (asked for {100 * seen.budget:.3g}%)"
    ax.set_title(words, fontsize=8, fontweight="normal", loc="right", pad=3)
    ax.set(xlabel="time (s)", ylabel="tokens kept")
    _cuts(ax, seen)


def _over_time(ax: Axes, seen: Outcome) -> None:
    """The limits of a panel of cells, and above it a coloured band with the name of every segment."""
    edges, across = seen.edges, ax.get_xaxis_transform()
    ax.grid(visible=False)
    ax.set(xlim=(edges[0], edges[-1]), ylim=(seen.video.cells, 0))
    for number, (first, last) in enumerate(seen.segments):
        left, wide = edges[first], edges[last + 1] - edges[first]
        look = {"facecolor": SEGMENT_COLOURS[number % len(SEGMENT_COLOURS)], "edgecolor": "white", "lw": 1}
        ax.add_patch(Rectangle((left, 1.005), wide, 0.065, transform=across, clip_on=False, **look))
        if wide > 0.045 * (edges[-1] - edges[0]):
            name = f"S{number + 1}"
            ax.text(left + wide / 2, 1.037, name, fontsize=7.5, ha="center", va="center_baseline", transform=across)
    _cuts(ax, seen)


def _cuts(ax: Axes, seen: Outcome) -> None:
    """A dashed line where a segment begins, dark on light ground and with a light edge on dark ground."""
    for first, _ in seen.segments[1:]:
        ax.axvline(seen.edges[first], color="white", lw=2.6, zorder=1.8)
        ax.axvline(seen.edges[first], color=INK, lw=1.2, ls=(0, (4, 2)), zorder=1.9)  # under a curve


def _hatched(colours: np.ndarray, carried: np.ndarray, gap: int) -> np.ndarray:
    """[H, W, 3] with white diagonals, ``gap`` pixels apart, where ``carried`` [H, W] is True."""
    line = carried & (np.add.outer(*map(np.arange, carried.shape)) % gap < gap / 6)
    return np.where(line[..., None], 0.4 * colours + 0.6 * 255, colours).astype(np.uint8)


def draw_tokens(ax: Axes, seen: Outcome, t: int, numbers: float | int = 0) -> None:
    """Frame ``t`` with its tokens: kept as it is = full colour and an orange border; merged = a blue disc, with the
    count of tokens that it stands for in ``numbers`` points (0: none); static and carried by a disc = tinted and
    hatched; dropped = faded. Above it the time, and the segment with its colour."""
    rows, columns = seen.video.grid
    small = Image.fromarray(seen.frames.pixels[t])
    small.thumbnail((640, 640) if numbers else (240, 240))
    picture, (wide, high) = np.asarray(small), small.size
    fate, aspect = seen.fate[t], (high / rows) / (wide / columns)
    row, column = np.arange(high)[:, None] * rows // high, np.arange(wide) * columns // wide
    here = fate.reshape(rows, columns)[row, column]
    share = np.choose(here, [0.78, 0.5, 0, 0.5])[..., None]  # of white or of light blue
    tint = np.where((here == DROPPED)[..., None], 255, (205, 228, 244))
    shown = _hatched((1 - share) * picture + share * tint, here == CARRIED, 18 if numbers else 12)
    ax.imshow(shown, extent=(0, columns, rows, 0), aspect=aspect, interpolation="lanczos")
    alone = [Rectangle((i % columns + 0.08, i // columns + 0.08), 0.84, 0.84) for i in np.flatnonzero(fate == ALONE)]
    ax.add_collection(PatchCollection(alone, fc="none", ec=FATE_COLOURS[ALONE], lw=1.4 if numbers else 0.9))
    discs = np.flatnonzero(fate == MERGED)
    at = np.stack([discs % columns + 0.5, discs // columns + 0.5], axis=1)
    size = np.full(len(discs), 1.15 * min(1, 1 / aspect))  # in heights of a cell
    look = {"offset_transform": ax.transData, "fc": FATE_COLOURS[MERGED], "ec": "white", "lw": 0.6}
    ax.add_collection(EllipseCollection(size, size, 0 * size, units="y", offsets=at, **look))
    for (x, y), count in zip(at, seen.size[t, discs].tolist(), strict=True) if numbers else ():
        look = {"color": "white", "ha": "center", "va": "center_baseline"}
        ax.text(x, y, str(count), fontsize=numbers * (1 if count < 100 else 0.78), **look)
    colour = SEGMENT_COLOURS[seen.segment_of[t] % len(SEGMENT_COLOURS)]
    ax.add_patch(Rectangle((0, 1), 1, 0.05, transform=ax.transAxes, facecolor=colour, clip_on=False))
    words = f"{seen.frames.seconds[t]:.1f} s · S{seen.segment_of[t] + 1}"
    ax.set_title(words, fontsize=7, fontweight="normal", loc="left", y=1.05, pad=2)
    ax.set(xlim=(0, columns), ylim=(rows, 0))
    ax.set_axis_off()


def draw_frames(fig: FigureBase, seen: Outcome, shown: list[int], columns: int = 8) -> None:
    """The frames ``shown`` with their tokens, and a legend; four or fewer in a row have room for numbers."""
    axes = fig.subplots(-(-len(shown) // columns), columns, squeeze=False).ravel()
    for ax, t in zip(axes, shown, strict=False):
        draw_tokens(ax, seen, t, numbers=20 / columns if columns <= 4 else 0)
    for ax in axes[len(shown) :]:
        ax.axis("off")
    look = [{"facecolor": colour, "edgecolor": colour} for colour in FATE_COLOURS]
    look[CARRIED] |= {"linewidth": 0, "hatch": "/////", "edgecolor": "white"}
    look[ALONE] |= {"facecolor": "white", "linewidth": 1.4}
    marks = [Patch(label=FATES[fate], **look[fate]) for fate in (ALONE, MERGED, CARRIED, DROPPED)]
    fig.legend(handles=marks, loc="outside lower center", ncols=4, fontsize=8, handlelength=1.4, frameon=False)


def method_figure(seen: Outcome, title: str = "", note: str = NO_MODEL) -> Figure:
    """The whole method on one page, at most 32 frames of it, evenly chosen. note: what the features are."""
    shown = sorted({int(t) for t in np.linspace(0, len(seen.frames) - 1, min(32, len(seen.frames)))})
    high, wide = seen.frames.pixels.shape[1:3]
    below = -(-len(shown) // 8) * (min(1.2 * high / wide, 1.8) + 0.24) + 0.35
    style = {"font.size": 8, "axes.titlesize": 9, "axes.titleweight": "bold", "axes.titlelocation": "left"}
    style |= {"axes.grid": True, "axes.axisbelow": True, "grid.color": "#DDDDDD", "axes.edgecolor": "#9A9A9A"}
    style |= {"axes.spines.top": False, "axes.spines.right": False, "hatch.linewidth": 0.6}
    with matplotlib.style.context(["default", style]):
        fig = Figure(figsize=(10, 4.2 + below), layout="constrained")
        top, bottom = fig.subfigures(2, 1, height_ratios=[4.2, below])
        axes = top.subplots(2, 2, height_ratios=[2.1, 1], sharex=True)
        for ax, draw in zip(axes.T.flat, (draw_similarity, draw_share, draw_fates, draw_counts), strict=True):
            draw(ax, seen)
        fig.suptitle(title, x=0.006, ha="left", fontsize=11, fontweight="bold")
        box = {"boxstyle": "round,pad=0.35", "facecolor": STAMP, "edgecolor": "none"}
        fig.text(0.994, 0.994, note, ha="right", va="top", fontsize=6.5, color="white", bbox=box)
        draw_frames(bottom, seen, shown)
    return fig
