"""One state of the explorer as HTML (page.html.j2). Frames are painted with numpy, discs and bars are SVG. What is kept
stays in full colour, the cells of one token are tinted alike, the rest fades."""

import base64
import io
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import jinja2
import matplotlib
import numpy as np
from markupsafe import Markup
from matplotlib.colors import to_hex, to_rgb
from PIL import Image

from holitom_repro.explore.clips import Clip
from holitom_repro.explore.outcome import Outcome
from holitom_repro.method_page import ALONE, CARRIED, FATE_COLOURS, INK, MERGED, SEGMENT_COLOURS, STAMP
from holitom_repro.style import MUTED, look

COLUMN, PER_ROW, SCALE = 568, 8, 1.5  # CSS pixels of a side, small frames in a row, device pixels per CSS pixel
ORANGE, BLUE = FATE_COLOURS[ALONE], FATE_COLOURS[MERGED]
TINTS = (BLUE, "#029E73", "#CC78BC", "#ECE133", "#56B4E9", "#8C510A")
"""One for each number of ``Outcome.tint``; orange is left out, for it frames the tokens kept as they are."""
HUES = (np.array([to_rgb(colour) for colour in ("white", "black", *TINTS)]) * 255).astype(np.uint16)
SHARES = np.array([200, 0] + [104] * len(TINTS), dtype=np.uint16)  # of 256: how far a cell fades, stays, is tinted
GLYPHS = dict(zip("o^sDv<>PX*phHd8", "●▲■◆▼◀▶✚✖★⬟⬢⬣♦⬣", strict=True))
CIVIDIS = matplotlib.colormaps["cividis"](np.linspace(0, 1, 256))[:, :3]
TEMPLATES = jinja2.Environment(loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True)


def page(outcomes: Sequence[Outcome], focus: int) -> str:
    """One or two settings on a clip, beside each other; ``focus`` is the frame drawn large."""
    clip = outcomes[0].clip
    high, wide = clip.frames.pixels.shape[1:3]
    height = round(min(318, COLUMN * high / wide))
    most = max(1, *(int((found.fate >= ALONE).sum(1).max()) for found in outcomes))
    return TEMPLATES.get_template("page.html.j2").render(
        **{
            "INK": INK,
            "BLUE": BLUE,
            "ORANGE": ORANGE,
            "MUTED": MUTED,
            "STAMP": STAMP,
            "TINTS": TINTS,
            "ALONE": ALONE,
            "MERGED": MERGED,
        },
        PER_ROW=PER_ROW,
        outcomes=outcomes,
        clip=clip,
        focus=focus,
        most=most,
        large=(round(height * wide / high), height),
        every=-(-len(clip) // 16),  # which times are written
        ramp=",".join(to_hex(colour) for colour in CIVIDIS[::-51]),
        similarity=_similarity(clip),
        glyph=lambda found: (look(found.side.row)[0], GLYPHS.get(look(found.side.row)[1], "●")),
        hue=lambda number: SEGMENT_COLOURS[number % len(SEGMENT_COLOURS)] if number >= 0 else "white",
        frame=_large,
        small=_small,
        counts=_counts,
    )


def paint(pictures: np.ndarray, found: Outcome, frames: slice, line: int) -> np.ndarray:
    """Fade, tint and frame the cells of ``pictures`` [t, H, W, 3], those of ``frames``, whose sides are multiples of
    the grid's; white lines of ``line`` pixels part the groups."""
    rows, columns = found.clip.video.grid
    high, wide = pictures.shape[1] // rows, pictures.shape[2] // columns
    owner, fate = (values[frames].reshape(-1, rows, 1, columns, 1) for values in (found.owner, found.fate))
    group = np.where((fate == CARRIED) | (fate == MERGED), owner, -1)
    state = np.where(group >= 0, 2 + found.tint[group], fate == ALONE)
    share = SHARES[state][..., None]
    cells = pictures.reshape(-1, rows, high, columns, wide, 3)
    out = ((cells * (256 - share) + HUES[state] * share) >> 8).astype(np.uint8)
    y, x, thick = np.arange(high), np.arange(wide), max(1, min(1 + line, min(high, wide) // 3))
    edge = (np.minimum(y, y[::-1]) < thick)[:, None, None] | (np.minimum(x, x[::-1]) < thick)
    np.copyto(out, (np.array(to_rgb(ORANGE)) * 255).astype(np.uint8), where=(edge & (state == 1))[..., None])
    out = out.reshape(pictures.shape)
    if line:
        group = group.repeat(high, axis=2).repeat(wide, axis=4).reshape(pictures.shape[:3])
        out[:, :-line][group[:, line:] != group[:, :-line]] = 255
        out[:, :, :-line][group[:, :, line:] != group[:, :, :-line]] = 255
    return out


@lru_cache(maxsize=256)
def _pictures(clip: Clip, first: int, stop: int, width: float | int, height: float | int) -> np.ndarray:
    """Frames of about this size in CSS pixels, their sides multiples of the grid in pixels of the device."""
    rows, columns = clip.video.grid
    size = columns * max(1, round(width * SCALE / columns)), rows * max(1, round(height * SCALE / rows))
    way = Image.Resampling.NEAREST if size[0] >= 2 * clip.frames.pixels.shape[2] else Image.Resampling.LANCZOS
    chosen = clip.frames.pixels[first:stop]
    return np.stack([Image.fromarray(pixels).resize(size, way, reducing_gap=2.0) for pixels in chosen])


def _uri(pixels: np.ndarray, kind: str) -> str:
    """jpeg, with whole colour, for photographs; png for diagrams, whose pixels stay sharp."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind, **({"quality": 88, "subsampling": 0} if kind == "jpeg" else {}))
    return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}"


def _frame(found: Outcome, t: int, picture: np.ndarray, width: float | int, height: float | int, disc: int) -> Markup:
    """A painted frame, and a disc of at most this size on every token that stands for several cells; a large one says
    for how many."""
    rows, columns = found.clip.video.grid
    across = max(2.6, min(disc, 0.92 * height / rows, 0.92 * width / columns))
    body = f'<image href="{_uri(picture, "jpeg")}" width="{width}" height="{height}" preserveAspectRatio="none"/>'
    frame, cell = found.kept.frame.numpy(), found.kept.cell.numpy()
    for token in np.flatnonzero((frame == t) & (found.size > 1)):
        x, y = (cell[token] % columns + 0.5) * width / columns, (cell[token] // columns + 0.5) * height / rows
        body += f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{across / 2:.1f}" stroke-width="{across / 16:.2f}"/>'
        if across >= 14:
            number = str(found.size[token])
            size = min(8, 20.4 / len(number)) * across / 19
            body += f'<text x="{x:.1f}" y="{y + 0.36 * size:.1f}" font-size="{size:.1f}">{number}</text>'
    words = f"frame {t + 1} at {found.clip.frames.seconds[t]:.1f} s with its tokens"
    return Markup(f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{words}">{body}</svg>')


def _large(found: Outcome, t: int, width: int, height: int) -> Markup:
    picture = paint(_pictures(found.clip, t, t + 1, width, height), found, slice(t, t + 1), 2)[0]
    return _frame(found, t, picture, width, height, 19)


@lru_cache(maxsize=64)
def _small(found: Outcome) -> list[Markup]:
    """Every frame, small."""
    clip, wide = found.clip, (COLUMN - 6 * (PER_ROW - 1)) / PER_ROW
    high = round(wide * clip.frames.pixels.shape[1] / clip.frames.pixels.shape[2], 1)
    painted = paint(_pictures(clip, 0, len(clip), wide, high), found, slice(None), 0)
    return [_frame(found, t, picture, wide, high, 8) for t, picture in enumerate(painted)]


def _counts(found: Outcome, t: int) -> str:
    """What becomes of the cells of one frame, in words."""
    alone, merged, carried = (int(found.per_frame(fate)[t]) for fate in (ALONE, MERGED, CARRIED))
    cells = found.size[(found.kept.frame.numpy() == t) & (found.size > 1)].sum()
    words = f"{alone + merged} tokens: {alone} as they are, {merged} standing for {cells} cells; {carried} merged "
    return words + f"into others, {found.clip.video.cells - alone - merged - carried} dropped"


def _similarity(clip: Clip) -> str:
    """One column of pixels per pair of frames, a row for every cell."""
    if len(clip) == 1:
        return ""
    return _uri((CIVIDIS[(clip.similarity.clip(0, 1).T * 255).round().astype(int)] * 255).astype(np.uint8), "png")
