"""One state of the explorer as HTML (page.html.j2). Frames are painted with numpy, discs and bars are SVG. What is kept
stays in full colour, the cells of one token are tinted alike, the rest fades."""

import base64
import io
from functools import lru_cache
from pathlib import Path

import jinja2
import matplotlib
import numpy as np
from markupsafe import Markup
from matplotlib.colors import to_hex, to_rgb
from PIL import Image

from holitom_repro import method_page
from holitom_repro.explore.state import Clip, View
from holitom_repro.method_page import ALONE, CARRIED, FATE_COLOURS, MERGED, SEGMENT_COLOURS, Outcome
from holitom_repro.style import MUTED, look

COLUMN, PER_ROW, SCALE = 568, 8, 1.5  # CSS pixels of a side, small frames in a row, device pixels per CSS pixel
ORANGE, BLUE = FATE_COLOURS[ALONE], FATE_COLOURS[MERGED]
TINTS = (BLUE, "#029E73", "#CC78BC", "#ECE133", "#56B4E9", "#8C510A")
"""Of tokens that stand for several cells, in turn; orange is left out, for it frames the tokens kept as they are."""
HUES = (np.array([to_rgb(colour) for colour in ("white", "black", *TINTS)]) * 255).astype(np.uint16)
SHARES = np.array([200, 0] + [104] * len(TINTS), dtype=np.uint16)  # of 256: how far a cell fades, stays, is tinted
CIVIDIS = matplotlib.colormaps["cividis"](np.linspace(0, 1, 256))[:, :3]
TEMPLATES = jinja2.Environment(loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True)


def draw(shown: View) -> str:
    """One or two settings on a clip, beside each other."""
    film = shown.clip.frames
    high, wide = film.pixels.shape[1:3]
    height = round(min(318, COLUMN * high / wide))
    level = (shown.outcomes[0].similarity.clip(0, 1) * 255).round().astype(int)
    return TEMPLATES.get_template("page.html.j2").render(
        {"BLUE": BLUE, "ORANGE": ORANGE, "MUTED": MUTED, "TINTS": TINTS, "PER_ROW": PER_ROW},
        method=method_page,
        shown=shown,
        clip=shown.clip,
        seconds=film.seconds,
        focus=shown.state.focus,
        sides=[(side, found, look(side.row)[0]) for side, found in zip(shown.sides, shown.outcomes, strict=True)],
        most=max(1, *(int((found.fate >= ALONE).sum(1).max()) for found in shown.outcomes)),
        large=(round(height * wide / high), height),
        every=-(-len(film) // 16),  # which times are written
        ramp=",".join(to_hex(colour) for colour in CIVIDIS[::-51]),
        similarity=_uri((CIVIDIS[level.T] * 255).astype(np.uint8), "png") if level.size else "",
        hue=lambda number: SEGMENT_COLOURS[number % len(SEGMENT_COLOURS)] if number >= 0 else "white",
        frame=_large,
        small=_small,
    )


def paint(pictures: np.ndarray, found: Outcome, frames: slice, line: int) -> np.ndarray:
    """Fade, tint and frame the cells of ``pictures`` [t, H, W, 3], those of ``frames``, whose sides are multiples of
    the grid's; white lines of ``line`` pixels part the groups."""
    rows, columns = found.video.grid
    high, wide = pictures.shape[1] // rows, pictures.shape[2] // columns
    owner, fate = (values[frames].reshape(-1, rows, 1, columns, 1) for values in (found.owner, found.fate))
    group = np.where((fate == CARRIED) | (fate == MERGED), owner, -1)
    state = np.where(group >= 0, 2 + group % len(TINTS), fate == ALONE)
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


def _large(clip: Clip, found: Outcome, t: int, width: int, height: int) -> Markup:
    picture = _resized(clip, t, width, height)
    return _frame(found, t, paint(picture[None], found, slice(t, t + 1), 2)[0], width, height, 19)


@lru_cache(maxsize=64)
def _small(clip: Clip, found: Outcome) -> list[Markup]:
    """Every frame, small."""
    pixels, wide = clip.frames.pixels, (COLUMN - 6 * (PER_ROW - 1)) / PER_ROW
    high = round(wide * pixels.shape[1] / pixels.shape[2], 1)
    pictures = np.stack([_resized(clip, t, wide, high) for t in range(len(pixels))])
    painted = paint(pictures, found, slice(None), 0)
    return [_frame(found, t, picture, wide, high, 8) for t, picture in enumerate(painted)]


@lru_cache(maxsize=512)
def _resized(clip: Clip, t: int, width: float, height: float) -> np.ndarray:
    """Frame ``t`` in about this size in CSS pixels, its sides multiples of the grid in pixels of the device."""
    picture, (rows, columns) = clip.frames.pixels[t], clip.video.grid
    size = columns * max(1, round(width * SCALE / columns)), rows * max(1, round(height * SCALE / rows))
    way = Image.Resampling.NEAREST if size[0] >= 2 * picture.shape[1] else Image.Resampling.LANCZOS
    return np.asarray(Image.fromarray(picture).resize(size, way, reducing_gap=2.0))


def _uri(pixels: np.ndarray, kind: str, **options: int) -> str:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind, **options)
    return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}"


def _frame(found: Outcome, t: int, picture: np.ndarray, width: float, height: float, disc: int) -> Markup:
    """A painted frame, and a disc of at most this size on every token that stands for several cells; a large one says
    for how many."""
    rows, columns = found.video.grid
    across = max(2.6, min(disc, 0.92 * height / rows, 0.92 * width / columns))
    uri = _uri(picture, "jpeg", quality=88, subsampling=0)
    body = f'<image href="{uri}" width="{width}" height="{height}" preserveAspectRatio="none"/>'
    for cell in np.flatnonzero(found.fate[t] == MERGED):
        x, y = (cell % columns + 0.5) * width / columns, (cell // columns + 0.5) * height / rows
        body += f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{across / 2:.1f}" stroke-width="{across / 16:.2f}"/>'
        if across >= 14:
            number = str(found.size[t, cell])
            size = min(8, 20.4 / len(number)) * across / 19
            body += f'<text x="{x:.1f}" y="{y + 0.36 * size:.1f}" font-size="{size:.1f}">{number}</text>'
    return Markup(f'<svg viewBox="0 0 {width} {height}">{body}</svg>')
