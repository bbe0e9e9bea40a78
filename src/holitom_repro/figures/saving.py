"""Finished figures: the tier stamp and the footer, and one atomic, deterministic write of PNG, SVG and CSV."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.transforms import ScaledTranslation
from PIL import Image

from holitom_repro import paths
from holitom.errors import BadUsage
from holitom_repro.figures.style import INK, MUTED, TIER_STAMPS, require_sources, styled
from holitom_repro.provenance import provenance
from holitom_repro.results import write_atomic

WIDTH_ON_SCREEN = 100  # pixels per inch a notebook shows a saved figure at
MOST_WIDE = 1000
EDGE = 4.0
"""Points between the text of the tier's stamp and the figure's edges: its box stands inside."""


@dataclass(frozen=True)
class Stamp:
    """What a figure or table says about its origin: tier, number of questions, hardware, commit. note replaces what the
    tier says by default, for a picture that needs no model."""

    tier: str
    n: str = ""
    hardware: str = ""
    commit: str = ""
    note: str = ""
    trial: bool = False

    def __post_init__(self) -> None:
        if self.tier not in TIER_STAMPS:
            raise BadUsage(f"tier {self.tier!r} is not known", fix=f"use one of {', '.join(TIER_STAMPS)}")

    @property
    def headline(self) -> str:
        words = f"{self.tier} tier: {self.note}" if self.note else TIER_STAMPS[self.tier]
        return f"TRIAL, few questions · {words}" if self.trial else words

    @property
    def folder(self) -> Path:
        """Where its figures are written by default."""
        return paths.runs(self.tier, "trial") if self.trial else paths.figures(self.tier)

    @property
    def footer(self) -> str:
        return " · ".join(
            part for part in (self.n, self.hardware, f"commit {self.commit}" if self.commit else "") if part
        )


@dataclass(frozen=True)
class Saved:
    """The files of one figure. As the last value of a notebook cell it shows exactly the PNG that was written."""

    png: Path
    svg: Path
    csv: Path | None = None

    def _repr_mimebundle_(self, **_: Any) -> tuple[dict[str, str], dict[str, Any]]:
        with Image.open(self.png) as picture:
            inches = picture.width / float(picture.info.get("dpi", (200, 200))[0])
        data = base64.b64encode(self.png.read_bytes()).decode()
        width = min(round(inches * WIDTH_ON_SCREEN), MOST_WIDE)
        return {"image/png": data, "text/plain": str(self.png)}, {"image/png": {"width": width}}


def stamp_of(records: Iterable[Any], tier: str) -> Stamp:
    """The stamp of a figure drawn from measured records: their n, hardware and commits as the records state them."""
    measured = [r for r in records if r.source == "measured"]
    wrong = {r.tier for r in measured} - {tier}
    if wrong:
        raise BadUsage(f"records of tier {', '.join(sorted(wrong))} in a figure of tier {tier}", fix="never mix tiers")
    counts = sorted({r.n for r in measured if r.n})
    span = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}" if counts else ""
    hardware = sorted({_hardware(r.provenance) for r in measured} - {""})
    commits = sorted({_commit(r.provenance) for r in measured} - {""})
    if len(commits) > 2:
        commits = [commits[0], f"{len(commits) - 1} others"]
    trial = any(r.extra.get("limit") is not None for r in measured)
    n = f"n = {span} questions per benchmark" if span else ""
    return Stamp(tier, n, " / ".join(hardware), ", ".join(commits), trial=trial)


def here(tier: str, note: str = "") -> Stamp:
    """The stamp of what is calculated on the spot, alike on every machine: this checkout's commit ("+": with
    uncommitted changes), no hardware and no number of questions."""
    return Stamp(tier, commit=_commit(provenance()), note=note)


def _hardware(facts: dict[str, Any]) -> str:
    if facts.get("gpu"):
        return f"{facts['gpu']} x{facts['gpus']}" if facts.get("gpus", 1) > 1 else str(facts["gpu"])
    return f"{facts.get('cpu', '')}, {facts.get('cores')} cores" if facts.get("cpu") else ""


def _commit(facts: dict[str, Any]) -> str:
    git = facts.get("git") or {}
    return f"{git['commit'][:9]}{'+' if git.get('dirty') else ''}" if git.get("commit") else ""


def stamp(fig: Figure, origin: Stamp) -> None:
    """Write the tier into the upper right corner and the footer under the figure; save() refuses a figure without
    them."""
    corner = fig.transFigure + ScaledTranslation(-EDGE / 72, -EDGE / 72, fig.dpi_scale_trans)
    box = {"boxstyle": "round,pad=0.35", "facecolor": INK if origin.tier != "tiny" else "#7A4A00", "edgecolor": "none"}
    look = {"fontsize": 6.5, "color": "white", "gid": "tier-stamp", "bbox": box}
    fig.text(1, 1, origin.headline, ha="right", va="top", transform=corner, **look)
    if origin.footer:
        fig.text(0.995, 0.004, origin.footer, ha="right", va="bottom", fontsize=6, color=MUTED, gid="footer")
    height = fig.get_figheight()
    fig.get_layout_engine().set(rect=(0.0, 0.17 / height, 1.0, 1.0 - 0.4 / height))  # type: ignore[union-attr]


def save(
    fig: Figure, name: str, origin: Stamp | str, data: pd.DataFrame | None = None, *, folder: Path | str | None = None
) -> Saved:
    """Write figures/<tier>/<name>.png (200 dpi), .svg and .csv, each whole or not at all, with commit and tier in the
    metadata.

    The same figure gives the same bytes: no dates, fixed SVG ids. origin: the Stamp drawn on the figure, or a tier, for
    which this checkout's stamp is drawn. data: the plotted points, every row with a source. Raises BadUsage for a point
    without one. folder: None or "" for figures/<tier>.
    """
    origin = here(origin) if isinstance(origin, str) else origin
    if data is not None:
        require_sources(data)
    target = Path(folder) if folder else origin.folder
    with styled():
        if not any(text.get_gid() == "tier-stamp" for text in fig.texts):
            stamp(fig, origin)
        facts = {"Title": name, "Description": origin.headline, "Source": f"commit {origin.commit or 'unknown'}"}
        png, svg = io.BytesIO(), io.BytesIO()
        fig.savefig(png, format="png", dpi=200, metadata={**facts, "Software": None}, facecolor="white")
        fig.savefig(svg, format="svg", metadata={**facts, "Date": None, "Creator": None}, facecolor="white")
    write_atomic(target / f"{name}.png", png.getvalue())
    write_atomic(target / f"{name}.svg", b"\n".join(line.rstrip() for line in svg.getvalue().splitlines()) + b"\n")
    if data is None:
        return Saved(target / f"{name}.png", target / f"{name}.svg")
    write_atomic(target / f"{name}.csv", data.to_csv(index=False, lineterminator="\n", float_format="%.6g").encode())
    return Saved(target / f"{name}.png", target / f"{name}.svg", target / f"{name}.csv")
