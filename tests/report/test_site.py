"""What the files of the site say, without a browser."""

import json
import re
from itertools import pairwise
from urllib.parse import unquote

import pytest
from bs4 import BeautifulSoup

from holitom_repro import cli, paths
from holitom.errors import BadUsage
from holitom_repro.report.site import MARK, build, check

LARGEST = 15_000_000
CELL = "0123456789abcdef"  # the record that conftest.py makes


@pytest.fixture(scope="module")
def soups(site):
    return {p.name: BeautifulSoup(p.read_text(encoding="utf-8"), "html.parser") for p in site.glob("*.html")}


def test_every_notebook_has_a_page_that_the_start_page_leads_to(site, soups):
    named = {a["href"].split("#")[0] for a in soups["index.html"].select("main a[href]")}
    for notebook in (paths.root() / "notebooks").glob("*.ipynb"):
        assert f"{notebook.stem}.html" in soups
        assert f"{notebook.stem}.html" in named


def test_every_link_and_asset_is_in_the_site(site, soups):
    for name, soup in soups.items():
        for tag, attribute in (("a", "href"), ("img", "src"), ("link", "href"), ("script", "src")):
            for found in soup.find_all(tag, **{attribute: True}):
                target, _, section = found[attribute].partition("#")
                if target.startswith("data:"):
                    continue
                assert not re.match(r"[a-z]+:|//", target), (name, target)
                assert (site / unquote(target or name)).is_file(), (name, target)
                if section and (target or name).endswith(".html"):
                    assert soups[target or name].find(id=section), (name, found[attribute])


def test_no_address_of_the_internet_is_loaded(site):
    for path in [*site.glob("*.html"), site / "style.css"]:
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"(src|href)=[\"']?(https?:)?//|url\(|@import", text), path.name


def test_nothing_says_where_the_checkout_is(site):
    for path in site.rglob("*"):
        if path.suffix in (".html", ".json", ".css", ".txt"):
            assert str(paths.root()) not in path.read_text(encoding="utf-8"), path


def test_pictures_have_words_and_a_size(soups):
    assert sum(len(soup.find_all("img")) for soup in soups.values()) >= 5
    for name, soup in soups.items():
        for image in soup.find_all("img"):
            assert len(image["alt"]) > 30, (name, image)
            assert int(image["width"]) > 0 and int(image["height"]) > 0
    drawn = soups["table1.html"].find("img")
    assert "Look at" in drawn["alt"], "the prose above a figure says what it shows"


def test_tables_have_heads_with_a_scope_and_a_box_to_scroll(soups):
    for name, soup in soups.items():
        for table in soup.find_all("table"):
            heads = table.find_all("th")
            assert heads and all(head.get("scope") for head in heads), (name, str(table)[:200])
            assert all(head.get_text().strip() for head in heads), name
            assert {"col", "row"} <= {head["scope"] for head in heads}, (name, str(table)[:300])
            box = table.parent
            assert "scroll" in box["class"] and box["tabindex"] == "0" and box["aria-label"], name


def test_a_heading_inside_a_table_spans_it(soups):
    heading, line = soups["table1.html"].select(".shown tbody tr")
    assert [(cell.get_text(), cell["colspan"]) for cell in heading.find_all(["td", "th"])] == [("At 10 %", "30")]
    assert len(line.find_all(["td", "th"])) == 30


def test_landmarks_and_headings(soups):
    for name, soup in soups.items():
        assert soup.html["lang"] == "en" and soup.title.get_text().strip()
        for landmark in ("header", "main", "footer"):
            assert len(soup.select(f"body {landmark}")) == 1, name
        labels = [nav["aria-label"] for nav in soup.find_all("nav")]
        assert labels and len(set(labels)) == len(labels), name
        assert soup.find("a", class_="skip")["href"] == "#main"
        levels = [int(h.name[1]) for h in soup.find_all(re.compile(r"^h[1-6]$"))]
        assert levels.count(1) == 1 and levels[0] == 1, (name, levels)
        assert all(after <= before + 1 for before, after in pairwise(levels)), (name, levels)
        ids = [tag["id"] for tag in soup.find_all(id=True)]
        assert len(ids) == len(set(ids)), name


def test_code_is_folded_and_parameters_are_not(soups):
    blocks = soups["table1.html"].select("details.code")
    assert [block.has_attr("open") for block in blocks] == [True] + [False] * (len(blocks) - 1)


def test_progress_bars_are_left_out(soups):
    text = soups["table1.html"].get_text()
    assert "%|" not in text and "read data" in text


def test_a_notebook_that_was_not_run_says_how(soups):
    text = soups["fig_inner.html"].main.get_text(" ", strip=True)
    assert "Not executed on this machine" in text and "./reproduce.sh fig-inner" in text
    assert "Executed 2026-01-02 03:04 UTC" in soups["table1.html"].main.get_text(" ", strip=True)


def test_a_notebook_that_failed_shows_the_error_without_colour_codes(soups):
    page = soups["table2.html"]
    assert "Stopped with an error" in page.main.get_text()
    assert "ValueError: broken\nsrc/holitom/x.py" in page.select_one("pre.failed").get_text()


def test_the_ledger_shows_every_claim_once(site, soups):
    listed = json.loads((site / "claims.json").read_text())
    rows = soups["index.html"].select("table.ledger tbody tr")
    assert len(rows) == len(listed) == 23
    keys = [row["data-v"] for row in rows]
    tally = soups["index.html"].select(".tally li")
    assert [int(li.b.get_text()) for li in tally] == [
        keys.count(key) for key in ("reproduced", "noise", "not", "notrun", "quoted")
    ]
    matrix = soups["index.html"].select("table.matrix td")
    assert sum(int(cell.get_text()) for cell in matrix) == len(listed)


def test_a_verdict_leads_to_its_page_and_its_record(soups):
    start = soups["index.html"]
    for row in start.select("table.ledger tbody tr"):
        assert row.select_one(".verdict a")["href"] in ("table1.html#verdict", "table2.html#verdict")
    linked = start.select_one(f'a[href="records.html#record-{CELL}"]')
    assert linked is not None
    record = soups["records.html"].find(id=f"record-{CELL}").get_text(" ", strip=True)
    assert "90.0 [88.0, 92.0], n = 1200" in record and "a processor" in record


def test_reasons_are_escaped_and_their_commands_are_code(soups):
    why = next(td for td in soups["index.html"].select("td.why") if "the reason" in td.get_text())
    assert why.code.get_text() == "./reproduce.sh table1 --tier paper" and "measures <it>" in why.get_text()


def test_colours_of_tables_can_follow_the_scheme(soups):
    style = soups["table1.html"].select_one("main style").get_text()
    assert "color: var(--ink-8a8a8a, #8a8a8a)" in style


def test_it_is_small(site):
    assert sum(path.stat().st_size for path in site.rglob("*") if path.is_file()) < LARGEST


def test_a_folder_with_other_files_is_never_replaced(tmp_path, capsys):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(BadUsage, match="holds other files"):
        build("tiny", tmp_path, judged=[])
    assert cli.main(["report", "--out", str(tmp_path)]) == 3
    assert "name a new folder: --out dir" in capsys.readouterr().err.lower()
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


def test_a_failed_build_leaves_the_old_site(site, monkeypatch, tmp_path):
    old = tmp_path / "site"
    old.mkdir()
    (old / MARK).write_text("")
    (old / "index.html").write_text("old")
    monkeypatch.setattr("holitom_repro.report.site._method", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        build("tiny", old, judged=[])
    assert (old / "index.html").read_text() == "old" and [p.name for p in tmp_path.iterdir()] == ["site"]
    assert check(old) == old


def test_wrong_usage(capsys):
    assert cli.main(["report", "--tier", "tinny"]) == 3
    assert "nearest: tiny" in capsys.readouterr().err
    assert cli.main(["report", "--colour"]) == 3
