"""Pages that open from disk: one for every notebook as it was executed here, and a start page with every claim.

nbconvert makes the cells, report.html.j2 the start page and the frame around all. A page needs nothing of the network,
and no other file.
"""

import base64
import json
import logging
import re
from collections import Counter
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jinja2
import nbformat
from markupsafe import Markup
from nbconvert import HTMLExporter

from holitom import __version__
from holitom.errors import BadUsage
from holitom_repro import paths
from holitom_repro.claims import ledger
from holitom_repro.notebooks import NOTEBOOKS, Notebook, source
from holitom_repro.style import TIERS, VERDICTS

KINDS = {
    "checked": "Calculated from printed numbers",
    "score": "Scores of the papers' models",
    "time": "Times of the papers' models",
    "trend": "Trends on the tiny model, which say nothing about those scores",
}
CELLS = """{%- extends 'classic/base.html.j2' -%}
{%- block input -%}
<details{% if 'parameters' in cell.metadata.get('tags', []) %} open{% endif %}><summary>code</summary>
{{ cell.source | highlight_code(metadata=cell.metadata) }}</details>
{%- endblock input -%}
"""
"""nbconvert's plainest cells, with the code folded away, except for the parameters."""


@dataclass(frozen=True)
class Page:
    """One notebook: its executed copy of a tier where there is one, else its source. line: what runs it; executed: when
    it ended, to the minute, empty for a source; failed: whether a cell did."""

    notebook: Notebook
    line: str
    cells: dict[str, Any]
    executed: str
    failed: bool


def build(tier: str, out: Path) -> Path:
    """Write the pages of a tier into the folder ``out``; returns the start page. BadUsage where others' pages lie."""
    start = out / "index.html"
    if start.exists() and "HoliTom, reproduced" not in start.read_text(encoding="utf-8", errors="replace"):
        raise BadUsage(f"{start} is of others, and a report would replace it", fix="name a new folder: --out DIR")
    pages = [_page(NOTEBOOKS[name], tier) for name in sorted(NOTEBOOKS)]
    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    template = jinja2.Environment(loader=loader, autoescape=True).get_template("report.html.j2")
    made = f"HoliTom, reproduced, {__version__} (Apache-2.0) · built {datetime.now(UTC):%Y-%m-%d %H:%M} UTC"
    out.mkdir(parents=True, exist_ok=True)

    def write(name: str, **values: Any) -> Path:
        text = template.render(pages=pages, footer=f"{tier} tier · {made}", **values)
        (out / f"{name}.html").write_text(text, encoding="utf-8")
        return out / f"{name}.html"

    for page in pages:
        write(page.notebook.name, title=page.notebook.command, page=page, body=Markup(body(page.cells)))
    return write("index", title="every claim", page=None, **_start(tier))


def _page(notebook: Notebook, tier: str) -> Page:
    line = f"./reproduce.sh {notebook.command}" + (f" --tier {tier}" if tier != "tiny" else "")
    copy = paths.runs(tier, "notebooks", f"{notebook.name}.ipynb")
    path = copy if copy.is_file() else source(notebook.name)
    cells = json.loads(path.read_text(encoding="utf-8"))
    run = cells["metadata"].get("papermill") or {}
    return Page(notebook, line, cells, (run.get("end_time") or "")[:16].replace("T", " "), bool(run.get("exception")))


def body(notebook: dict[str, Any]) -> str:
    """The cells as HTML: without progress bars, widgets and the place of the checkout, links from page to page."""
    said = json.dumps(notebook).replace(json.dumps(f"{paths.root()}/")[1:-1], "")
    node, heading = nbformat.reads(said, as_version=4), ""
    node.metadata.pop("widgets", None)
    for cell in node.cells:
        if cell.cell_type == "markdown":
            heading = (re.findall(r"^#+ (.+)$", cell.source, flags=re.MULTILINE) or [heading])[-1]
            cell.source = re.sub(r"\]\((\w+)\.ipynb", r"](\1.html", cell.source)
            cell.source = re.sub(r"\[([^]]+)\]\(\.\./([^)]+)\)", r"\1 (`\2`)", cell.source)
        cell.outputs = [one for one in cell.get("outputs", []) if one.get("name") != "stderr"]
        for output in cell.outputs:
            output.metadata = {"alt": f"Figure: {heading}"}
            output.get("data", {}).pop("application/vnd.jupyter.widget-view+json", None)
    logging.getLogger("traitlets").setLevel(logging.ERROR)
    plain = {"exclude_input_prompt": True, "exclude_output_prompt": True, "anchor_link_text": ""}
    return HTMLExporter(template_name="basic", raw_template=CELLS, **plain).from_notebook_node(node)[0]


def _start(tier: str) -> dict[str, Any]:
    """What the start page shows: look: verdict -> glyph and class; counts: of each kind of claim."""
    pairs = ledger()
    css = {"✓": "good", "✗": "bad", "≈": "undecided", "?": "undecided"}
    picture = paths.figures(tier, "fig_tradeoff.png")
    figure = f"data:image/png;base64,{base64.b64encode(picture.read_bytes()).decode()}" if picture.is_file() else ""
    return {
        "look": {word: (glyph, css.get(glyph, "open")) for word, (glyph, _) in VERDICTS.items()},
        "kinds": KINDS,
        "counts": {kind: Counter(found.verdict for claim, found in pairs if claim.kind == kind) for kind in KINDS},
        "words": [word for word in VERDICTS if any(found.verdict == word for _, found in pairs)],
        "pairs": pairs,
        "figure": figure,
        "tier_says": TIERS[tier].capitalize(),
    }
