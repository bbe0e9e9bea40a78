"""One look for every figure and verdict: colours and markers by method, the footer that says where numbers come from.

A method that nobody has given a look gets one: nothing is left out of a figure. ::

    ax = sns.lineplot(scores, x="flops_pct", y="accuracy", hue="method", style="method", **looks(scores["method"]))
    stamp(ax.figure, scores)
    save_figure(ax.figure, "fig_tradeoff", scores, tier)
"""

from __future__ import annotations

import io
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from holitom_repro import paths
from holitom_repro.records import Store, write_atomic

if TYPE_CHECKING:
    from matplotlib.figure import Figure

GOOD, BAD, UNDECIDED, MUTED = "#1b7f4b", "#b3261e", "#8a5a00", "#6b6b6b"
VERDICTS = {
    "CHECKED": ("✓", GOOD),
    "DIFFERS": ("✗", BAD),
    "REPRODUCED": ("✓", GOOD),
    "WITHIN NOISE": ("≈", UNDECIDED),
    "NOT REPRODUCED": ("✗", BAD),
    "HOLDS": ("✓", GOOD),
    "FAILS": ("✗", BAD),
    "OPEN": ("?", UNDECIDED),
    "NOT RUN": ("·", MUTED),
}
"""Every word of the ledger -> glyph, colour."""
TIERS = {
    "tiny": "tiny tier: trends only, not the paper's model",
    "speed": "speed tier: random weights, times only",
    "paper": "paper tier: the published checkpoints",
}
LOOKS = {
    "all tokens": ("#222222", "*"),
    "HoliTom": ("#0173b2", "o"),
    "HoliTom (w/o M)": ("#56b4e9", "D"),
    "HoliTom (text)": ("#004a76", "8"),
    "VisionZip": ("#029e73", "^"),
    "PruneVid": ("#d55e00", "v"),
    "FastVID": ("#cc78bc", "<"),
    "MMG-Vid": ("#5e3c99", ">"),
    "HieraVid": ("#335566", "p"),
    "UniComp": ("#b3261e", "X"),
    "V-CAST": ("#e36bae", "P"),
    "FlashVID": ("#2e4a9e", "*"),
    "FlashVID (fe = 1)": ("#8fa3dd", "*"),
    "Unified pool": ("#6b8e23", "d"),
    "FastV": ("#de8f05", "s"),
    "PDrop": ("#8c6d1f", "P"),
    "DyCoke": ("#ca9161", "X"),
    "ToMe": ("#661111", "h"),
    "Random": ("#949494", "d"),
    "Uniform stride": ("#777799", "H"),
    "Average pooling": ("#779977", "s"),
    "Saliency top-k": ("#aa6633", "^"),
    "fewer frames": ("#444444", "v"),
}
"""Method -> colour, marker. The papers' methods begin with seaborn's colour-blind list."""
SPARE = [
    (colour, marker)
    for marker in ("o", "s", "D", "^", "P", "X")
    for colour in ("#b8558f", "#1f6f8b", "#9c9a00", "#7a4a00", "#c23b22", "#3b7d3b", "#6f4fa0")
]
"""What other methods get: always the same one, unless it is taken."""


def use_style() -> None:
    """seaborn's theme for the plots of a notebook: white grid, colour-blind palette, crisp inline pictures."""
    import seaborn as sns

    sns.set_theme("notebook", "whitegrid", "colorblind", rc={"figure.dpi": 110, "axes.titlelocation": "left"})


def look(method: str) -> tuple[str, str]:
    """Colour and marker of a method, known or not."""
    if method not in LOOKS:
        start = zlib.crc32(method.encode()) % len(SPARE)
        free = [one for one in SPARE[start:] + SPARE[:start] if one not in LOOKS.values()]
        LOOKS[method] = free[0] if free else SPARE[start]
    return LOOKS[method]


def looks(methods: Iterable[str]) -> dict[str, Any]:
    """Arguments for seaborn where hue and style are the method: palette, markers, dashes and the order of the legend,
    that of LOOKS, for every method that occurs."""
    present = {method: look(method) for method in methods}
    order = [method for method in LOOKS if method in present]
    palette = {method: colour for method, (colour, _) in present.items()}
    markers = {method: marker for method, (_, marker) in present.items()}
    return {"palette": palette, "markers": markers, "dashes": False, "hue_order": order, "style_order": order}


def origin(data: pd.DataFrame) -> str:
    """Where the numbers of a frame of scores or of times come from, in one line: tier, questions, device, code and day
    of the last measurement; TRIAL where only the first questions were asked."""
    last = (data[data["cell"].ne("")] if "cell" in data else data).iloc[-1]
    facts = last.to_dict()
    if "device" not in facts and (found := Store(facts["tier"]).load(facts["cell"])):
        facts |= found[0].model_dump(include={"device", "code", "created"})
    parts = ["TRIAL, first questions only"] if _trial(data) else []
    parts += [TIERS[facts["tier"]], f"n = {data['n'].max():.0f} questions" if "n" in data else ""]
    parts += [facts.get("device", ""), f"code {facts['code'][:8]}" if "code" in facts else ""]
    return " · ".join(part for part in [*parts, facts.get("created", "")[:10]] if part)


def stamp(figure: Figure, data: pd.DataFrame) -> None:
    """Write ``origin`` below a figure."""
    figure.text(0.99, -0.01, origin(data), ha="right", va="top", fontsize=7, color=MUTED, gid="origin")


def save_figure(
    figure: Figure, name: str, data: pd.DataFrame | None = None, tier: str = "tiny", out: str | Path = ""
) -> Path:
    """Write <name>.png (150 dpi, the same bytes for the same figure) and the plotted points as <name>.csv to
    ``folder``; the path of the PNG."""
    picture, target = io.BytesIO(), folder(data, tier, out)
    plain: dict[str, Any] = {"metadata": {"Software": None}, "pil_kwargs": {"optimize": True}}
    figure.savefig(picture, format="png", dpi=150, bbox_inches="tight", **plain)
    if data is not None:
        write_csv(target / f"{name}.csv", data)
    return write_atomic(target / f"{name}.png", picture.getvalue())


def write_csv(path: Path, data: pd.DataFrame) -> Path:
    """A frame with six digits, as ``flattened``."""
    return write_atomic(path, flattened(data).to_csv(index=False, lineterminator="\n", float_format="%.6g"))


def flattened(data: pd.DataFrame) -> pd.DataFrame:
    """One row of heads, and no index: its names become columns."""
    flat = data.reset_index() if any(data.index.names) else data.copy()
    if flat.columns.nlevels > 1:
        flat.columns = [" ".join(part for part in column if part) for column in flat.columns]
    return flat


def folder(data: pd.DataFrame | None, tier: str, out: str | Path = "") -> Path:
    """Where results go: ``out``, else figures/<tier>, but runs/<tier>/trial for the first questions only."""
    return Path(out) if str(out) else paths.runs(tier, "trial") if _trial(data) else paths.figures(tier)


def _trial(data: pd.DataFrame | None) -> bool:
    if data is None:
        return False
    return bool(data["limit"].notna().any() if "limit" in data else data.attrs.get("trial"))
