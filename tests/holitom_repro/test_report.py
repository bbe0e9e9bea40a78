"""The report: claims and notebooks on pages that open from disk, light and dark, on a telephone, without a network."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import time
import urllib.request
from contextlib import contextmanager
from html import unescape
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nbformat
import pandas as pd
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from holitom.errors import BadUsage
from holitom_repro import paths, report
from holitom_repro.notebooks import NOTEBOOKS

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
browser_test = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine (apt install chromium)")
PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNkYPhfDwAChwGA60e6kgAAAABJRU5ErkJggg=="
WORDS = {
    "checked": ("CHECKED", "DIFFERS"),
    "score": ("NOT RUN",),
    "time": ("NOT RUN",),
    "trend": ("HOLDS", "FAILS", "OPEN"),
}
"""Kind -> the verdicts of the claims made here, one each."""


def pairs() -> list[tuple[Any, Any]]:
    made = []
    for kind, words in WORDS.items():
        for word in words:
            claim = SimpleNamespace(
                id=f"{kind}-{word.lower().replace(' ', '-')}",
                paper="HoliTom",
                kind=kind,
                statement=f"keeps <95 %> & more, {word}",
                place="Table 2",
                notebook="table2",
                printed="95.8",
                reason="half a point.",
                takes="7 minutes",
                expected=word,
            )
            ours = (
                {"ours": 93.21, "low": 92.1, "high": 94.5}
                if kind == "trend"
                else dict.fromkeys(("ours", "low", "high"))
            )
            made.append((claim, SimpleNamespace(id=claim.id, verdict=word, why="93.2 of 97.1, measured", **ours)))
    return made


def notebook(name: str) -> nbformat.NotebookNode:
    """A notebook with every kind of output that ours have."""
    wide = pd.DataFrame([range(30)], columns=[f"column {i}" for i in range(30)]).style.map(lambda _: "color:#0b4f78")
    outputs = [
        new_output("stream", name="stderr", text="cells: 100%|##########| 3/3\n"),
        new_output("stream", name="stdout", text=f"read {paths.root()}/data <b>\n"),
        new_output("execute_result", {"text/html": wide.to_html(), "text/plain": "<Styler>"}),
        new_output("display_data", {"image/png": PIXEL, "text/plain": "<Figure>"}),
        new_output(
            "display_data", {"application/vnd.jupyter.widget-view+json": {}, "text/plain": f"at {paths.root()}/x"}
        ),
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
    (folder / "sources").mkdir()
    (folder / "runs" / "tiny" / "notebooks").mkdir(parents=True)
    for name in NOTEBOOKS:
        nbformat.write(notebook(name), folder / "sources" / f"{name}.ipynb")
    for name, exception in (("table2", None), ("table1", True)):
        executed = notebook(name)
        executed.metadata["papermill"] = {"end_time": "2026-01-02T03:04:05.6+00:00", "exception": exception}
        if exception:
            trace = ["\x1b[31mValueError\x1b[0m: broken", f"{paths.root()}/src/x.py"]
            executed.cells[-1].outputs = [new_output("error", ename="ValueError", evalue="broken", traceback=trace)]
        nbformat.write(executed, folder / "runs" / "tiny" / "notebooks" / f"{name}.ipynb")
    patch = pytest.MonkeyPatch()
    patch.setattr(paths, "runs", lambda *parts: (folder / "runs").joinpath(*parts))
    try:
        start = report.build("tiny", folder / "report", pairs(), folder / "sources")
    finally:
        patch.undo()
    return start.parent


def text(site: Path, name: str) -> str:
    return (site / f"{name}.html").read_text(encoding="utf-8")


def test_every_claim_stands_in_the_ledger_with_its_verdict(site):
    start = text(site, "index")
    rows = re.findall(r'<tr id="([^"]+)" data-verdict="([^"]+)">', start)
    assert rows == [(claim.id, found.verdict) for claim, found in pairs()]
    assert "keeps &lt;95 %&gt; &amp; more" in start and "93.21 [92.1, 94.5]" in start and "Expected: DIFFERS" in start


def test_kinds_of_verdicts_are_counted_apart(site):
    for kind, about in report.KINDS.items():
        (item,) = re.findall(rf"<li>{re.escape(about)}<br>(.*?)</li>", unescape(text(site, "index")), flags=re.DOTALL)
        counted = re.findall(r"<b>(\d+)</b>. ([A-Z ]+)</span>", item.replace("·", "."))
        assert {word: int(number) for number, word in counted} == dict.fromkeys(WORDS[kind], 1)


def test_every_notebook_has_a_page_that_says_how_far_it_got(site):
    for name, one in NOTEBOOKS.items():
        assert f"./reproduce.sh {one.command}</code>" in text(site, name) and f'href="{name}.html"' in text(
            site, "index"
        )
    assert "Executed 2026-01-02 03:04 UTC" in text(site, "table2")
    assert "Stopped with an error" in text(site, "table1") and "ValueError: broken\nsrc/x.py" in text(site, "table1")
    assert "Not executed here" in text(site, "fig_inner")


def test_a_page_has_what_the_notebook_shows_and_nothing_of_this_machine(site):
    page = text(site, "table2")
    assert "read data &lt;b&gt;" in page and "color: #0b4f78" in page and f"base64,{PIXEL}" in page
    assert 'alt="Figure: 1. Scores"' in page and 'href="table1.html#verdict"' in page
    assert "papers (<code>data/papers/README.md</code>)" in page, "a link that leads out of the folder is a name"
    assert "cells:" not in page and "widget-view" not in page and str(paths.root()) not in page


def test_nothing_is_asked_of_the_network(site):
    for page in site.glob("*.html"):
        found = re.findall(r'(?:src|href)="([^"]{1,200})', page.read_text(encoding="utf-8"))
        assert found and not [one for one in found if re.match(r"\w+:|//", one) and not one.startswith("data:")], page
        assert not re.search(r"@import|url\(", page.read_text(encoding="utf-8"))


def test_a_report_replaces_a_report_and_nothing_else(site, tmp_path, monkeypatch):
    sources = site.parent / "sources"
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").touch()
    with pytest.raises(BadUsage, match="holds something else"):
        report.build("tiny", tmp_path / "mine", pairs(), sources)
    copy = shutil.copytree(site, tmp_path / "report")
    (copy / "old.html").touch()
    monkeypatch.setattr(report, "body", lambda _: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        report.build("tiny", copy, pairs(), sources)
    assert (copy / "old.html").exists(), "an old one stays until a new one is complete"
    monkeypatch.setattr(report, "body", lambda _: "<p>new</p>")
    report.build("tiny", copy, pairs(), sources)
    assert not (copy / "old.html").exists() and "<p>new</p>" in text(copy, "table2")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine", "report"]


# ---- in a browser


class Tab:
    """One tab of a headless Chromium, through the DevTools protocol."""

    def __init__(self, address: str) -> None:
        import websocket

        self.socket, self.number = websocket.create_connection(address, suppress_origin=True, timeout=120), 0
        self.said: list[dict[str, Any]] = []
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.command(f"{domain}.enable")

    def command(self, method: str, **parameters: Any) -> dict[str, Any]:
        self.number += 1
        self.socket.send(json.dumps({"id": self.number, "method": method, "params": parameters}))
        while (answer := json.loads(self.socket.recv())).get("id") != self.number:
            self.said.append(answer)
        assert "error" not in answer, answer
        return answer["result"]

    def open(self, path: Path, width: int, scheme: str = "light") -> None:
        self.said.clear()
        self.command(
            "Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=width < 500
        )
        self.command("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        self.command("Page.navigate", url=path.as_uri())
        self.wait(f"document.readyState === 'complete' && location.pathname === {json.dumps(path.as_posix())}")

    def value(self, script: str) -> Any:
        found = self.command("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def wait(self, script: str) -> None:
        end = time.monotonic() + 60
        while not self.value(script):
            assert time.monotonic() < end, script
            time.sleep(0.05)

    def complaints(self) -> list[str]:
        names = ("Runtime.exceptionThrown", "Log.entryAdded", "Network.loadingFailed")
        return [str(one["params"]) for one in self.said if one.get("method") in names]


@contextmanager
def chromium(folder: Path):
    flags = (
        "--headless --no-sandbox --disable-gpu --no-first-run --disable-background-networking --remote-debugging-port=0"
    )
    command = [CHROMIUM, *flags.split(), f"--user-data-dir={folder}", "about:blank"]
    running = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        end, port = time.monotonic() + 120, folder / "DevToolsActivePort"
        while not (port.is_file() and port.read_text().strip()):
            assert time.monotonic() < end and running.poll() is None
            time.sleep(0.1)
        with urllib.request.urlopen(f"http://127.0.0.1:{port.read_text().split()[0]}/json", timeout=60) as answer:
            yield Tab(next(one["webSocketDebuggerUrl"] for one in json.load(answer) if one["type"] == "page"))
    finally:
        running.kill()
        running.wait()


@pytest.fixture(scope="module")
def tab(tmp_path_factory):
    with chromium(tmp_path_factory.mktemp("browser")) as opened:
        yield opened


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


@browser_test
@pytest.mark.browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_pages_fit_the_screen_and_can_be_read(tab, site, width, scheme):
    for name in ("index", "table1", "table2"):
        tab.open(site / f"{name}.html", width, scheme)
        tab.value("document.querySelectorAll('details').forEach(one => { one.open = true })")
        assert tab.complaints() == [] and tab.value("[...document.images].every(one => one.naturalWidth)"), name
        assert tab.value("document.documentElement.scrollWidth <= innerWidth"), f"{name} scrolls sideways"
        dark = tab.value("getComputedStyle(document.body).backgroundColor") != "rgb(255, 255, 255)"
        assert dark == (scheme == "dark") and tab.value(CONTRAST) == [], name
    tab.value("document.body.style.color = document.body.style.backgroundColor = '#888'")
    assert tab.value(CONTRAST), "too little contrast would be seen"


@browser_test
@pytest.mark.browser
def test_the_ledger_can_be_searched(tab, site):
    tab.open(site / "index.html", 390)
    shown = "[...document.querySelectorAll('tr[data-verdict]')].filter(row => row.checkVisibility()).map(row => row.id)"
    assert tab.value(shown) == [claim.id for claim, _ in pairs()]
    tab.value("document.querySelector('input[value=HOLDS]').click()")
    assert tab.value(shown) == ["trend-holds"]
    assert tab.value("document.querySelector('output').textContent") == "1 of 7 claims"
    tab.value("document.querySelector('input[type=radio]').click()")
    typed = "box.value = 'DiffERS'; box.dispatchEvent(new Event('input', {bubbles: true}))"
    tab.value(f"(box => {{ {typed} }})(document.forms[0].search)")
    assert tab.value(shown) == ["checked-differs"]
