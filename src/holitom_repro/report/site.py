"""Builds the whole site beside its place and moves it there when it is complete: an old one stays until then."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from itertools import groupby
from pathlib import Path

from holitom_repro import paths, verdicts
from holitom_repro.claims import Judged
from holitom.errors import BadUsage
from holitom_repro.figures.style import TIER_STAMPS
from holitom_repro.report import ledger, notebook, records
from holitom_repro.report.attachments import Attachments
from holitom_repro.report.frame import Frame, script
from holitom_repro.report.markup import finish
from holitom_repro.report.outline import NotebookPage
from holitom_repro.report.pictures import Picture, Pictures

MARK = "holitom-report.txt"
HERO, HERO_PAGE = "fig_tradeoff.png", "fig_tradeoff"
OTHER_HERO = "method.png"
HERO_ALT = (
    "Score over prefill FLOPs for HoliTom, the methods it is compared with and plain controls. Printed points of the "
    "paper's model are hollow; points measured here are filled, with 95 % intervals. The figure's own page has the "
    "numbers."
)
HERO_CAPTION = (
    "How much score each method keeps for how much prefill computation. Hollow: printed in the paper, for its own "
    "model. Filled: measured here, with 95 % intervals."
)
METHOD_ALT = (
    "The 32 frames of the shipped clip with every token that HoliTom keeps drawn on them: discs stand for many cells "
    "and frames, orange frames for one cell. The first frame of each segment carries the discs, later frames only what "
    "changed."
)
SIMILARITY_ALT = (
    "Similarity of each cell with itself one frame later, over time. Two dark columns are the cuts of the clip, where "
    "nearly every cell changes at once; the segments found begin there."
)


def build(tier: str, out: Path, *, judged: list[Judged] | None = None, tell: Callable[[str], object] = str) -> Path:
    """Write the site of a tier to ``out``; returns its start page.

    judged: the claims, by default all of this machine; tell: is called with the name of each step. BadUsage when
    ``out`` holds something that is not such a site.
    """
    out = check(out)
    building = out.with_name(f".{out.name}.new")
    shutil.rmtree(building, ignore_errors=True)
    building.mkdir(parents=True)
    try:
        _write(tier, building, judged, tell)
        (building / MARK).write_text("Written by ./reproduce.sh report, which replaces this folder as a whole.\n")
        if out.exists():
            shutil.rmtree(out)
        building.rename(out)
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return out / "index.html"


def check(out: Path) -> Path:
    """The folder as an absolute path. BadUsage for a file, or a folder with anything else in it."""
    out = Path(out).expanduser().resolve()
    if out.is_file():
        raise BadUsage(f"{out} is a file", fix="name a folder for the report")
    if out.is_dir() and any(out.iterdir()) and not (out / MARK).is_file():
        raise BadUsage(
            f"the folder {out} holds other files, and a report replaces it", fix="name a new folder: --out DIR"
        )
    return out


def _write(tier: str, site: Path, judged: list[Judged] | None, tell: Callable[[str], object]) -> None:
    frame, pictures, attachments = Frame(tier, site), Pictures(site), Attachments(site)
    frame.css()
    tell("claims")
    judged = verdicts.everything(tier) if judged is None else judged
    _start(frame, judged, pictures, attachments)
    tell("method")
    _method(frame, pictures)
    for place, page in enumerate(frame.pages):
        tell(page.name)
        around = (frame.pages[place - 1] if place else None, (frame.pages[place + 1 :] or [None])[0])
        _notebook(frame, page, around, pictures, attachments)


def _start(frame: Frame, judged: list[Judged], pictures: Pictures, attachments: Attachments) -> None:
    kept = records.behind(judged, frame.tier)
    frame.write("records.html", "Records", frame.fill("records.html.j2", records=kept))
    addresses = {record.key: f"{records.PAGE}#{record.anchor}" for record in kept}
    both = verdicts.with_entries(judged)

    def address(name: str) -> str | None:
        key = name.split("/")[-1].removesuffix(".json")
        return addresses.get(key) or attachments.add(paths.root() / name)

    groups = ledger.groups(both, frame.pages, address)
    tally = [
        (
            key,
            f"{ledger.GLYPHS[verdict]} {verdict}",
            ledger.MEANINGS[verdict],
            sum(c.verdict is verdict for c in judged),
        )
        for verdict, key in ledger.KEYS.items()
    ]
    trade = paths.figures(frame.tier, HERO).is_file()
    hero = _file(frame.tier, HERO if trade else OTHER_HERO, pictures)
    content = frame.fill(
        "start.html.j2",
        total=len(judged),
        tally=tally,
        tier_says=TIER_STAMPS[frame.tier].partition(": ")[2].capitalize() + ".",
        hero=hero,
        hero_alt=HERO_ALT if trade else METHOD_ALT,
        hero_caption=HERO_CAPTION if trade else "What HoliTom keeps of a clip.",
        hero_page=f"{HERO_PAGE}.html" if trade else "method.html",
        matrix=ledger.matrix(groups),
        papers=[(paper, list(parts)) for paper, parts in groupby(groups, key=lambda group: group.paper)],
    )
    data = json.dumps([verdicts.full(*pair) for pair in both], indent=1, ensure_ascii=False)
    (frame.site / "claims.json").write_text(data + "\n", encoding="utf-8")
    about = "Every claim that the HoliTom reproduction kit looks at, with its verdict"
    frame.write("index.html", "Every claim, with its verdict", content, description=about, script=script("filter.js"))


def _method(frame: Frame, pictures: Pictures) -> None:
    content = frame.fill(
        "method.html.j2",
        similarity=_shown(_file(frame.tier, "method_similarity.png", pictures), SIMILARITY_ALT, "What stays the same"),
        page=_shown(_file(frame.tier, "method.png", pictures), METHOD_ALT, "Every token that is kept, on its frame"),
    )
    sections = [("segments", "Cut"), ("merge", "Merge"), ("inner", "Fold"), ("look", "Look for yourself")]
    frame.write("method.html", "The method in pictures", content, sections=sections)


def _notebook(
    frame: Frame,
    page: NotebookPage,
    around: tuple[NotebookPage | None, NotebookPage | None],
    pictures: Pictures,
    attachments: Attachments,
) -> None:
    def numbers(stem: str) -> str | None:
        folder = paths.runs(page.tier, "trial") if page.trial else paths.figures(page.tier)
        return attachments.add(folder / f"{stem}.csv")

    made = finish(notebook.body(page.notebook), pictures, attachments, [p.name for p in frame.pages], numbers)
    content = frame.fill("notebook.html.j2", page=page, body=made.html, before=around[0], after=around[1])
    origin = f"This page: notebooks/{page.name}.ipynb, " + (
        f"executed {page.ended} UTC in the {page.tier} tier; figures carry their own hardware and commit."
        if page.executed
        else "not executed."
    )
    frame.write(page.href, page.title, content, description=page.question, sections=made.sections, origin=origin)


def _file(tier: str, name: str, pictures: Pictures) -> Picture | None:
    path = paths.figures(tier, name)
    return pictures.add(path.read_bytes()) if path.is_file() else None


def _shown(picture: Picture | None, alt: str, label: str) -> str:
    """A picture as a figure; a sentence where it has not been drawn."""
    if picture is None:
        return '<p class="note">Not drawn yet: <code>./reproduce.sh method</code></p>'
    box = f'<div class="scroll card" role="group" tabindex="0" aria-label="figure: {label.lower()}">'
    return (
        f"<figure>{box}"
        f'<img src="{picture.href}" width="{picture.width}" height="{picture.height}" alt="{alt}" loading="lazy"></div>'
        f"<figcaption>{label}: the shipped clip, budget 10 %, τ = 0.80; features are colour statistics, no model "
        "was run.</figcaption></figure>"
    )
