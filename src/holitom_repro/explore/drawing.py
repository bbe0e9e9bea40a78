"""One state of the explorer as HTML. Frames are painted with numpy, discs and bars are SVG, CSS places everything. What
is kept stays in full colour, the cells of one token are tinted alike, the rest fades."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from functools import lru_cache
from html import escape

import matplotlib
import numpy as np
from matplotlib.colors import to_hex, to_rgb
from PIL import Image

from holitom_repro.explore.clips import Clip
from holitom_repro.explore.outcome import Outcome
from holitom_repro.method_page import ALONE, CARRIED, FATE_COLOURS, INK, MERGED, SEGMENT_COLOURS, STAMP
from holitom_repro.style import MUTED, look

WIDTH, COLUMN, PER_ROW, SCALE = 1160, 568, 8, 1.5  # CSS pixels, small frames in a row, device pixels per CSS pixel
ORANGE, BLUE = FATE_COLOURS[ALONE], FATE_COLOURS[MERGED]
TINTS = (BLUE, "#029E73", "#CC78BC", "#ECE133", "#56B4E9", "#8C510A")
"""One for each number of ``Outcome.tint``; orange is left out, for it frames the tokens kept as they are."""
HUES = (np.array([to_rgb(colour) for colour in ("white", "black", *TINTS)]) * 255).astype(np.uint16)
SHARES = np.array([200, 0] + [104] * len(TINTS), dtype=np.uint16)  # of 256: how far a cell fades, stays, is tinted
GLYPHS = dict(zip("o^sDv<>PX*phHd8", "●▲■◆▼◀▶✚✖★⬟⬢⬣♦⬣", strict=True))
CIVIDIS = matplotlib.colormaps["cividis"](np.linspace(0, 1, 256))[:, :3]


# --- frames


def paint(pictures: np.ndarray, found: Outcome, frame: int | None, line: int) -> np.ndarray:
    """Fade, tint and frame the cells of ``pictures`` [t, H, W, 3], one frame or all, whose sides are multiples of the
    grid's; white lines of about ``line`` pixels part the groups."""
    rows, columns = found.clip.video.grid
    count, high, wide, _ = pictures.shape
    here = slice(frame, None if frame is None else frame + 1)
    owner, fate = (values[here].reshape(count, rows, columns) for values in (found.owner, found.fate))
    grouped = (fate == CARRIED) | (fate == MERGED)
    state = np.where(grouped, 2 + found.tint[np.maximum(owner, 0)], fate == ALONE)[:, :, None, :, None]
    share = SHARES[state][..., None]
    cells = pictures.reshape(count, rows, high // rows, columns, wide // columns, 3)
    out = ((cells * (256 - share) + HUES[state] * share) >> 8).astype(np.uint8)
    if line:
        below = (owner[:, 1:] != owner[:, :-1]) & (grouped[:, 1:] | grouped[:, :-1])
        beside = (owner[:, :, 1:] != owner[:, :, :-1]) & (grouped[:, :, 1:] | grouped[:, :, :-1])
        below, beside = (cut[:, :, None, :, None, None] for cut in (below, beside))
        np.copyto(out[:, :-1, -line:], 255, where=below)
        np.copyto(out[:, 1:, : line - 1], 255, where=below)
        np.copyto(out[:, :, :, :-1, -line:], 255, where=beside)
        np.copyto(out[:, :, :, 1:, : line - 1], 255, where=beside)
    y, x = np.arange(out.shape[2]), np.arange(out.shape[4])
    thick = max(1, min(1 + line, min(len(y), len(x)) // 3))
    edge = (np.minimum(y, y[::-1]) < thick)[:, None, None, None] | (np.minimum(x, x[::-1]) < thick)[:, None]
    np.copyto(out, (np.array(to_rgb(ORANGE)) * 255).astype(np.uint8), where=edge & (state == 1)[..., None])
    return out.reshape(pictures.shape)


@lru_cache(maxsize=256)
def _pictures(clip: Clip, frame: int | None, width: float | int, height: float | int) -> np.ndarray:
    """A frame, or all, of about this size in CSS pixels, their sides multiples of the grid in pixels of the device."""
    rows, columns = clip.video.grid
    size = columns * max(1, round(width * SCALE / columns)), rows * max(1, round(height * SCALE / rows))
    way = Image.Resampling.NEAREST if size[0] >= 2 * clip.frames.pixels.shape[2] else Image.Resampling.LANCZOS
    chosen = clip.frames.pixels if frame is None else clip.frames.pixels[frame : frame + 1]
    return np.stack([Image.fromarray(pixels).resize(size, way, reducing_gap=2.0) for pixels in chosen])


def _uri(pixels: np.ndarray, kind: str) -> str:
    """jpeg, with whole colour, for photographs; png for diagrams, whose pixels stay sharp."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind, **({"quality": 88, "subsampling": 0} if kind == "jpeg" else {}))
    return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}"


def _frame(found: Outcome, t: int, picture: np.ndarray, width: float | int, height: float | int, disc: int) -> str:
    """A painted frame, and a disc of at most this size on every token that stands for several cells; a large one says
    for how many."""
    rows, columns = found.clip.video.grid
    across = max(2.6, min(disc, 0.92 * height / rows, 0.92 * width / columns))
    body = f'<image href="{_uri(picture, "jpeg")}" width="{width}" height="{height}" preserveAspectRatio="none"/>'
    frame, cell = found.kept.frame.numpy(), found.kept.cell.numpy()
    for token in np.flatnonzero((frame == t) & (found.size > 1)):
        x, y = (cell[token] % columns + 0.5) * width / columns, (cell[token] // columns + 0.5) * height / rows
        look = f'fill="{BLUE}" stroke="white" stroke-width="{across / 16:.2f}"'
        body += f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{across / 2:.1f}" {look}/>'
        if across >= 14:
            number = str(found.size[token])
            size = (8, 8, 6.8, 5.6)[min(len(number), 4) - 1] * across / 19
            look = f'font-size="{size:.1f}" fill="white" text-anchor="middle"'
            body += f'<text x="{x:.1f}" y="{y + 0.36 * size:.1f}" {look}>{number}</text>'
    words = f"frame {t + 1} at {found.clip.frames.seconds[t]:.1f} s with its tokens"
    return f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{words}" style="display:block">{body}</svg>'


def _large(found: Outcome, t: int) -> str:
    """The name of a setting, what it keeps, and the frame that is looked at with its counts."""
    clip, side, style = found.clip, found.side, f"color:{MUTED}"
    inner = [] if side.inner == "none" else [f"K = {side.layer}", f"R = {side.ratio:g}"]
    parameters = ", ".join([f"τ = {side.tau:g}"] * (side.method == "HoliTom") + inner)
    kept = f"<b>{len(found.kept):,} of {found.owner.size:,} tokens</b> = {100 * found.realised:.1f} %"
    spent = f"(asked {100 * side.budget:.3g} %) · {100 * found.flops:.1f} % of the prefill FLOPs"
    high, wide = clip.frames.pixels.shape[1:3]
    height = round(min(318, COLUMN * high / wide))
    width = round(height * wide / high)
    picture = _frame(found, t, paint(_pictures(clip, t, width, height), found, t, 2)[0], width, height, 19)
    alone, merged, carried = (int(found.per_frame(fate)[t]) for fate in (ALONE, MERGED, CARRIED))
    cells = found.size[(found.kept.frame.numpy() == t) & (found.size > 1)].sum()
    words = f"{alone + merged} tokens: {alone} as they are, {merged} standing for {cells} cells; {carried} merged "
    words += f"into others, {clip.video.cells - alone - merged - carried} dropped"
    segment = f" · segment S{found.segment_of[t] + 1}" if found.segments else ""
    place = f"frame {t + 1} of {len(clip)} · {clip.frames.seconds[t]:.1f} s{segment}"
    return (
        f'<div>{_mark(found, 17)} <b style="font-size:15px">{escape(side.label)}</b> &nbsp;'
        f'<span style="{style}">{parameters}</span></div><div>{kept} {spent}</div>'
        '<div style="display:flex;flex-wrap:wrap;gap:4px 14px;margin:5px 0 8px">'
        f'<div style="flex:0 1 {width}px">{picture}</div>'
        f'<div style="flex:1 1 170px;font-size:11px"><b>{place}</b><br>{words}</div></div>'
    )


@lru_cache(maxsize=64)
def _small(found: Outcome) -> list[str]:
    """Every frame small, below its time, the name of its segment and the segment's colour."""
    clip, wide = found.clip, (COLUMN - 6 * (PER_ROW - 1)) / PER_ROW
    high = round(wide * clip.frames.pixels.shape[1] / clip.frames.pixels.shape[2], 1)
    frames = []
    for t, picture in enumerate(paint(_pictures(clip, None, wide, high), found, None, 0)):
        name, colour = f"S{found.segment_of[t] + 1}", SEGMENT_COLOURS[found.segment_of[t] % len(SEGMENT_COLOURS)]
        name, colour = (name, colour) if found.segments else ("", "white")
        words = f'{clip.frames.seconds[t]:.1f} s<span style="float:right">{name}</span>'
        style = f"font-size:9px;color:{MUTED};white-space:nowrap;overflow:hidden;border-bottom:2.5px solid {colour}"
        words = f'<div style="{style}">{words}</div>'
        frames.append(words + _frame(found, t, picture, wide, high, 8))
    return frames


def _mark(found: Outcome, size: int) -> str:
    colour, marker = look(found.side.row)
    return f'<span style="color:{colour};font-size:{size}px;line-height:1">{GLYPHS.get(marker, "●")}</span>'


# --- over time: one slot per frame


def _segments(found: Outcome) -> str:
    if not found.segments:
        return f"no token of {escape(found.side.label)} spans several frames"
    parts = ""
    for number, (first, last) in enumerate(found.segments):
        style = f"background:{SEGMENT_COLOURS[number % len(SEGMENT_COLOURS)]};flex:{last + 1 - first} 0 0;color:{INK}"
        parts += f'<span style="{style};overflow:hidden;text-align:center;min-width:0">S{number + 1}</span>'
    return f'<div style="display:flex">{parts}</div>'


def _bars(bars: Sequence[tuple], frames: int, tall: int, style: str) -> str:
    """Rectangles (x, y, width, height, colour) in units of one frame, and of one part of ``tall``."""
    rect = '<rect x="{:.3f}" y="{:.2f}" width="{:.3f}" height="{:.2f}" fill="{}"/>'
    body = "".join(rect.format(*bar) for bar in bars)
    return f'<svg viewBox="0 0 {frames} {tall}" preserveAspectRatio="none" style="width:100%;{style}">{body}</svg>'


def _similarity(outcomes: Sequence[Outcome]) -> str:
    """One column of pixels per pair of frames, in between them; white lines where segments begin, each method's in its
    part of the height."""
    clip, cut = outcomes[0].clip, [found for found in outcomes if found.segments]
    if len(clip) == 1:
        return "one frame: no neighbour to compare with"
    pixels = (CIVIDIS[(clip.similarity.clip(0, 1).T * 255).round().astype(int)] * 255).astype(np.uint8)
    style = f"display:block;box-sizing:border-box;width:100%;height:112px;padding:0 {50 / len(clip)}%"
    places = [(k, first) for k, found in enumerate(cut) for first, _ in found.segments[1:]]
    wide = len(clip) / 800
    lines = [(first - wide / 2, k / len(cut), wide, 1 / len(cut), "white") for k, first in places]
    image = f'<img src="{_uri(pixels, "png")}" alt="similarity" style="{style};image-rendering:pixelated">'
    return image + _bars(lines, len(clip), 1, "height:112px;position:absolute;left:0;top:0")


def _timeline(outcomes: Sequence[Outcome], focus: int) -> str:
    """Similarity of neighbouring frames, the segments of each method, the tokens kept per frame."""
    clip, rows = outcomes[0].clip, []
    most = max(1, *(int((found.fate >= ALONE).sum(1).max()) for found in outcomes))
    spread = "display:flex;flex-direction:column;justify-content:space-between;height:"
    for found in outcomes:
        rows.append((f"{_mark(found, 11)} segments", _segments(found), ""))
        if found is outcomes[0]:
            ramp = f"background:linear-gradient({','.join(to_hex(colour) for colour in CIVIDIS[::-51])})"
            words = "<span>1: same</span><span>0.5</span><span>≤ 0</span>"
            bar = f'<div style="float:left;width:9px;height:112px;margin-right:4px;{ramp}"></div>'
            label = f"<b>similarity</b><br>(cosine) of cells<br>1 to {clip.video.cells}, downwards"
            rows.append((label, _similarity(outcomes), f'{bar}<div style="{spread}112px">{words}</div>'))
        bars = []
        for t, (alone, merged) in enumerate(zip(found.per_frame(ALONE), found.per_frame(MERGED), strict=True)):
            bars.append((t + 0.1, most - alone, 0.8, alone, ORANGE))
            bars.append((t + 0.1, most - alone - merged, 0.8, merged, BLUE))
        drawn = _bars(bars, len(clip), most, "height:56px;display:block;border:solid #DDD;border-width:1px 0")
        scale = f'<div style="{spread}58px"><span>{most}</span><span>0</span></div>'
        rows.append((f"{_mark(found, 11)} <b>tokens kept</b><br>in each frame", drawn, scale))
    every = max(1, -(-len(clip) // 16))
    times = [f"{second:.1f}" if t % every == 0 else "" for t, second in enumerate(clip.frames.seconds)]
    ticks = "".join(f'<span style="flex:1 0 0;min-width:0;text-align:center">{time}</span>' for time in times)
    rows.append(("", f'<div style="display:flex;border-top:1px solid #9A9A9A">{ticks}</div>', "seconds"))
    stripe = f"left:{100 * focus / len(clip)}%;width:{100 / len(clip)}%;top:0;bottom:14px;background:#0001"
    stripe = f'<div style="position:absolute;{stripe};border:solid {INK};border-width:0 1px"></div>'
    body = f'<div style="grid-area:1/2/{len(rows) + 1}/3;position:relative;z-index:1">{stripe}</div>'
    for number, parts in enumerate(rows, start=1):
        for column, part in enumerate(parts, start=1):
            body += f'<div style="grid-area:{number}/{column};position:relative;min-width:0">{part}</div>'
    words = "similarity of each cell to the next frame, the segments found, and the tokens kept in each frame"
    head = f'<b>Over time</b> &nbsp;<span style="font-size:10.5px;color:{MUTED}">{words}</span>'
    grid = f"display:grid;grid-template-columns:124px minmax(420px,1fr) 58px;gap:5px 8px;font-size:10px;color:{MUTED}"
    return f'<div style="margin:12px 0 5px">{head}</div><div style="{grid};overflow-x:auto">{body}</div>'


# --- the page


def _legend(note: str) -> str:
    """What each mark means, and what the features are."""
    box = "display:inline-block;width:18px;height:12px;vertical-align:-2px;margin-right:5px;box-sizing:border-box;"
    tints = ",".join(f"color-mix(in srgb,{TINTS[k]} 55%,#B9B9B9) {33 * k}% {33 * k + 33}%" for k in range(3))
    marks = {
        "kept as it is": f"border:2px solid {ORANGE};background:#8FA3AD",
        "kept, stands for several cells (how many)": f"width:13px;height:13px;border-radius:9px;background:{BLUE}",
        "cells of one token, tinted alike": f"background:linear-gradient(90deg,{tints})",
        "dropped": "background:#E9E9E9;border:1px solid #C8C8C8",
    }
    body = "".join(f'<span><span style="{box}{style}"></span>{words}</span>' for words, style in marks.items())
    stamp = f'<span style="margin-left:auto;background:{STAMP};color:white;padding:1px 6px">{escape(note)}</span>'
    return f'<div style="display:flex;flex-wrap:wrap;gap:4px 18px;font-size:10.5px;margin-top:6px">{body}{stamp}</div>'


def page(outcomes: Sequence[Outcome], focus: int) -> str:
    """One or two settings on a clip, beside each other; ``focus`` is the frame drawn large."""
    parts = []
    for found in outcomes:
        outlines = [f"outline:2px solid {INK}" if t == focus else "" for t in range(len(found.clip))]
        frames = zip(outlines, _small(found), strict=True)
        cells = "".join(f'<div style="min-width:0;{outline}">{frame}</div>' for outline, frame in frames)
        strip = f'<div style="display:grid;grid-template-columns:repeat({PER_ROW},1fr);gap:5px 6px">{cells}</div>'
        parts.append((_large(found, focus), strip))
    columns = parts[0] if len(parts) == 1 else ["".join(part) for part in parts]
    cells = "".join(f'<div style="min-width:0">{column}</div>' for column in columns)
    grid = "display:grid;gap:12px 24px;grid-template-columns:repeat(auto-fit,minmax(min(100%,420px),1fr))"
    style = f"max-width:{WIDTH}px;background:white;color:{INK};padding:6px 8px;font:12px/1.35 'DejaVu Sans',Verdana"
    body = f'<div style="{grid}">{cells}</div>' + _timeline(outcomes, focus) + _legend(outcomes[0].clip.note)
    return f'<div class="holitom-page" style="{style},sans-serif">{body}</div>'
