"""The report: claims and notebooks on pages that open from disk, light and dark, on a telephone, without a network."""

import json
import re
from html import unescape
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import browser
import nbformat
import pandas as pd
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from holitom.errors import BadUsage
from holitom_repro import paths, report
from holitom_repro.notebooks import NOTEBOOKS

PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNkYPhfDwAChwGA60e6kgAAAABJRU5ErkJggg=="
VERDICTS = {"checked": ["CHECKED", "DIFFERS"], "score": ["NOT RUN"], "time": ["NOT RUN"]}
VERDICTS |= {"trend": ["HOLDS", "FAILS", "OPEN"]}


def pair(kind: str, verdict: str) -> tuple[Any, Any]:
    """A claim and what was found."""
    claim = {"id": f"{kind}-{verdict.lower().replace(' ', '-')}", "paper": "HoliTom", "kind": kind, "place": "Table 2"}
    claim |= {"statement": f"keeps <95 %> & more, {verdict}", "notebook": "table2", "printed": "95.8"}
    claim |= {"reason": "half a point.", "takes": "7 minutes", "expected": verdict}
    ours = (93.21, 92.1, 94.5) if kind == "trend" else (None, None, None)
    found = {"id": claim["id"], "verdict": verdict, "why": "93.2 of 97.1, measured"}
    return SimpleNamespace(**claim), SimpleNamespace(**found, **dict(zip(("ours", "low", "high"), ours, strict=True)))


PAIRS = [pair(kind, verdict) for kind, verdicts in VERDICTS.items() for verdict in verdicts]


def notebook(name: str) -> nbformat.NotebookNode:
    """A notebook with every kind of output that ours have."""
    wide = pd.DataFrame([range(30)], columns=[f"column {i}" for i in range(30)]).style.map(lambda _: "color:#0b4f78")
    widget = {"application/vnd.jupyter.widget-view+json": {}, "text/plain": f"at {paths.root()}/x"}
    outputs = [
        new_output("stream", name="stderr", text="cells: 100%|##########| 3/3\n"),
        new_output("stream", name="stdout", text=f"read {paths.root()}/data <b>\n"),
        new_output("execute_result", {"text/html": wide.to_html(), "text/plain": "<Styler>"}),
        new_output("display_data", {"image/png": PIXEL, "text/plain": "<Figure>"}),
        new_output("display_data", widget),
    ]
    prose = f"# {name}\n\nSee [table1](table1.ipynb#verdict) and [papers](../data/papers/README.md).\n\n## 1. Scores"
    cells = [
        new_markdown_cell(prose),
        new_code_cell('tier: str = "tiny"', metadata={"tags": ["parameters"]}),
        new_code_cell("scores = evaluate(model)  # measured", outputs=outputs),
    ]
    return new_notebook(cells=cells)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A finished report: table2 executed, table1 stopped with an error, the others not executed."""
    folder = tmp_path_factory.mktemp("made")
    (folder / "tiny" / "notebooks").mkdir(parents=True)
    for name in NOTEBOOKS:
        nbformat.write(notebook(name), folder / f"{name}.ipynb")
    for name, exception in (("table2", None), ("table1", True)):
        executed = notebook(name)
        executed.metadata["papermill"] = {"end_time": "2026-01-02T03:04:05.6+00:00", "exception": exception}
        if exception:
            trace = ["\x1b[31mValueError\x1b[0m: broken", f"{paths.root()}/src/x.py"]
            executed.cells[-1].outputs = [new_output("error", ename="ValueError", evalue="broken", traceback=trace)]
        nbformat.write(executed, folder / "tiny" / "notebooks" / f"{name}.ipynb")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(paths, "runs", folder.joinpath)
        patch.setattr(report, "source", lambda name: folder / f"{name}.ipynb")
        patch.setattr(report, "ledger", lambda: PAIRS)
        return report.build("tiny", folder / "report").parent


def text(site: Path, name: str) -> str:
    return (site / f"{name}.html").read_text(encoding="utf-8")


def test_every_claim_stands_in_the_ledger_with_its_verdict(site):
    start = text(site, "index")
    rows = re.findall(r'<tr id="([^"]+)" data-verdict="([^"]+)">', start)
    assert rows == [(claim.id, found.verdict) for claim, found in PAIRS]
    assert "keeps &lt;95 %&gt; &amp; more" in start and "93.21 [92.1, 94.5]" in start and "Expected: DIFFERS" in start


def test_kinds_of_verdicts_are_counted_apart(site):
    for kind, about in report.KINDS.items():
        (item,) = re.findall(rf"<li>{re.escape(about)}<br>(.*?)</li>", unescape(text(site, "index")), flags=re.DOTALL)
        counted = re.findall(r"<b>(\d+)</b>. ([A-Z ]+)</span>", item.replace("·", "."))
        assert {word: int(number) for number, word in counted} == dict.fromkeys(VERDICTS[kind], 1)


def test_every_notebook_has_a_page_that_says_how_far_it_got(site):
    for name, one in NOTEBOOKS.items():
        assert f"./reproduce.sh {one.command}</code>" in text(site, name)
        assert f'href="{name}.html"' in text(site, "index")
    assert "Executed 2026-01-02 03:04 UTC" in text(site, "table2")
    assert "Stopped with an error" in text(site, "table1") and "</span>: broken\nsrc/x.py" in text(site, "table1")
    assert "Not executed here" in text(site, "fig_inner")


def test_a_page_has_what_the_notebook_shows_and_nothing_of_this_machine(site):
    page = text(site, "table2")
    assert "read data &lt;b&gt;" in page and "color: #0b4f78" in page and f"base64,{PIXEL}" in page
    assert 'alt="Figure: 1. Scores"' in page and 'href="table1.html#verdict"' in page
    assert "papers (<code>data/papers/README.md</code>)" in page, "a link that leads out of the folder is a name"
    assert "cells:" not in page and "widget-view" not in page and str(paths.root()) not in page


def test_pages_of_something_else_are_not_replaced(tmp_path):
    (tmp_path / "index.html").write_text("my own site")
    with pytest.raises(BadUsage, match="would replace it"):
        report.build("tiny", tmp_path)


def test_nothing_is_asked_of_the_network(site):
    for page in site.glob("*.html"):
        found = re.findall(r'(?:src|href)="([^"]{1,200})', page.read_text(encoding="utf-8"))
        assert found and not [one for one in found if re.match(r"\w+:|//", one) and not one.startswith("data:")], page
        assert not re.search(r"@import|url\(", page.read_text(encoding="utf-8"))


# ---- in a browser
@pytest.fixture(scope="module")
def tab(tmp_path_factory):
    with browser.chromium(tmp_path_factory.mktemp("browser")) as opened:
        yield opened


def show(tab, path: Path, width: int, scheme: str = "light") -> None:
    screen = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
    tab.command("Emulation.setDeviceMetricsOverride", **screen)
    tab.command("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
    tab.command("Page.navigate", url=path.as_uri())
    tab.wait(f"document.readyState === 'complete' && location.pathname === {json.dumps(path.as_posix())}")


CONTRAST = """
(() => {
  const rgb = text => text.match(/[\\d.]+/g).map(Number), found = [];
  const light = c => c.slice(0, 3).map(v => v / 255).map(v => v <= .04 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [.21, .72, .07][i], 0);
  const ground = node => { for (; node; node = node.parentElement) {
    const c = rgb(getComputedStyle(node).backgroundColor); if (c.length < 4 || c[3]) return c; }
    return [255, 255, 255]; };
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const node = walker.currentNode.parentElement;
    if (!walker.currentNode.textContent.trim() || !node.getClientRects().length) continue;
    const [a, b] = [light(rgb(getComputedStyle(node).color)), light(ground(node))].sort((x, y) => y - x);
    if ((a + .05) / (b + .05) < 4.5) found.push(walker.currentNode.textContent.slice(0, 40));
  }
  return found;
})()
"""


@browser.needed
@pytest.mark.browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_pages_fit_the_screen_and_can_be_read(tab, site, width, scheme):
    for name in ("index", "table1", "table2"):
        show(tab, site / f"{name}.html", width, scheme)
        tab.value("document.querySelectorAll('details').forEach(one => { one.open = true })")
        assert tab.value("[...document.images].every(one => one.naturalWidth)"), name
        assert tab.value("document.documentElement.scrollWidth <= innerWidth"), f"{name} scrolls sideways"
        dark = tab.value("getComputedStyle(document.body).backgroundColor") != "rgb(255, 255, 255)"
        assert dark == (scheme == "dark") and tab.value(CONTRAST) == [], name
    tab.value("document.body.style.color = document.body.style.backgroundColor = '#888'")
    assert tab.value(CONTRAST), "too little contrast would be seen"


@browser.needed
@pytest.mark.browser
def test_the_ledger_can_be_cut_to_one_verdict(tab, site):
    show(tab, site / "index.html", 390)
    shown = "[...document.querySelectorAll('tr[data-verdict]')].filter(row => row.checkVisibility()).map(row => row.id)"
    assert tab.value(shown) == [claim.id for claim, _ in PAIRS]
    tab.value("document.querySelector('input[value=HOLDS]').click()")
    assert tab.value(shown) == ["trend-holds"]
