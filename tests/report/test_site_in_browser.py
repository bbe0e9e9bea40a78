"""The site as a reader meets it: opened from disk in headless Chromium, at two widths, light and dark."""

import pytest
from site_browser import browser, chromium

pytest.importorskip("websocket")
PROGRAM = chromium()
pytestmark = [
    pytest.mark.browser,
    pytest.mark.slow,
    pytest.mark.skipif(PROGRAM is None, reason="no Chromium on this machine (apt install chromium)"),
]
PHONE, DESK = 390, 1280
CONTRAST, LARGE = 4.5, 3.0
LOW_CONTRAST = """
(() => {
  const canvas = document.createElement("canvas").getContext("2d", {willReadFrequently: true});
  const rgba = text => {
    canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = text; canvas.fillRect(0, 0, 1, 1);
    const d = canvas.getImageData(0, 0, 1, 1).data;
    return [d[0], d[1], d[2], d[3] / 255];
  };
  const over = (top, under) => [0, 1, 2].map(i => top[i] * top[3] + under[i] * (1 - top[3]));
  const light = c => {
    const [r, g, b] = c.map(v => v / 255).map(v => v <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4);
    return .2126 * r + .7152 * g + .0722 * b;
  };
  const behind = node => {
    for (const stack = []; ; node = node.parentElement) {
      const colour = node ? rgba(getComputedStyle(node).backgroundColor) : [255, 255, 255, 1];
      stack.push(colour);
      if (colour[3] === 1) return stack.reverse().reduce((under, top) => over(top, under), [255, 255, 255]);
    }
  };
  const found = {};
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const node = walker.currentNode.parentElement, text = walker.currentNode.textContent.trim();
    if (!text || node.closest("svg, script, style") || !node.getClientRects().length) continue;
    const style = getComputedStyle(node), ground = behind(node), size = parseFloat(style.fontSize);
    const [a, b] = [light(over(rgba(style.color), ground)), light(ground)].sort((x, y) => y - x);
    const ratio = (a + .05) / (b + .05);
    const large = size >= 24 || (size >= 18.66 && +style.fontWeight >= 700);
    if (ratio < (large ? %s : %s)) found[`${style.color} on ${ground.map(Math.round)}`] = [text.slice(0, 40), ratio];
  }
  return found;
})()
""" % (LARGE, CONTRAST)  # noqa: UP031  (the script is full of braces)
OPEN_ALL = "document.querySelectorAll('details').forEach(d => { d.open = true })"


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    with browser(tmp_path_factory.mktemp("browser"), PROGRAM) as opened:
        yield opened


@pytest.fixture(scope="module")
def pages(site):
    return sorted(site.glob("*.html"))


def test_nothing_is_missing_and_nothing_is_asked_of_the_network(page, pages):
    for path in pages:
        page.open(path)
        assert page.complaints == [], path.name
        assert page.asked_for and all(url.startswith(("file:", "data:")) for url in page.asked_for), path.name
        assert page.value("[...document.images].every(i => i.naturalWidth > 0)"), path.name


def test_a_missing_picture_would_be_noticed(page, site, tmp_path):
    broken = tmp_path / "broken.html"
    broken.write_text('<!DOCTYPE html><title>b</title><link rel="icon" href="data:,"><img src="nowhere.webp" alt="x">')
    page.open(broken)
    assert page.complaints
    assert not page.value("[...document.images].every(i => i.naturalWidth > 0)")


@pytest.mark.parametrize("width", [PHONE, DESK])
def test_no_page_scrolls_sideways(page, pages, width):
    for path in pages:
        page.open(path, width=width)
        page.value(OPEN_ALL)
        assert page.value("document.documentElement.scrollWidth <= innerWidth"), path.name
        outside = page.value(
            "[...document.querySelectorAll('main *')].filter(e => !e.closest('.scroll, pre, svg, thead')"
            " && e.getBoundingClientRect().right > innerWidth + 1).map(e => e.outerHTML.slice(0, 80))"
        )
        assert outside == [], path.name


def test_what_scrolls_can_be_reached_by_keyboard(page, pages):
    for path in pages:
        page.open(path, width=PHONE)
        page.value(OPEN_ALL)
        stuck = page.value(
            "[...document.querySelectorAll('main *')].filter(e => e.scrollWidth > e.clientWidth + 1"
            " && getComputedStyle(e).overflowX === 'auto' && (e.tabIndex < 0 || !e.ariaLabel))"
            ".map(e => e.outerHTML.slice(0, 80))"
        )
        assert stuck == [], path.name
    page.open(next(path for path in pages if path.name == "table1.html"), width=PHONE)
    page.value("document.querySelector('main .scroll table').parentElement.focus()")
    page.press("ArrowRight", 39)
    page.wait("document.activeElement.scrollLeft > 0")


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_contrast(page, pages, dark):
    for path in pages:
        page.open(path, dark=dark)
        page.value(OPEN_ALL)
        ground = page.value("getComputedStyle(document.body).backgroundColor")
        assert (ground == "rgb(255, 255, 255)") is not dark, "the scheme is followed"
        assert page.value(LOW_CONTRAST) == {}, path.name


def test_low_contrast_would_be_noticed(page, site):
    page.open(site / "method.html")
    page.value("document.querySelector('.lede').style.color = '#999'")
    found = page.value(LOW_CONTRAST)
    assert list(found) == ["rgb(153, 153, 153) on 255,255,255"] and 2.8 < found.popitem()[1][1] < 2.9


def test_figures_stand_on_a_light_card_in_the_dark(page, site):
    page.open(site / "table1.html", dark=True)
    colour = "getComputedStyle(document.querySelector('main figure img').parentElement).backgroundColor"
    assert page.value(colour) == "rgb(255, 255, 255)"


def test_every_figure_and_every_verdict_can_be_reached(page, site, pages):
    page.open(site / "index.html")
    reached = set(page.value("[...document.querySelectorAll('a[href]')].map(a => new URL(a.href).pathname)"))
    with_figures = [path for path in pages if "<figure" in path.read_text(encoding="utf-8")]
    assert {path.as_posix() for path in with_figures} - {(site / "index.html").as_posix()} <= reached
    page.value(OPEN_ALL)
    hidden = page.value(
        "[...document.querySelectorAll('td.verdict a')].filter(a => !a.checkVisibility()).map(a => a.href)"
    )
    assert hidden == []
    for target in page.value("[...new Set([...document.querySelectorAll('td.verdict a')].map(a => a.href))]"):
        name, _, section = target.rpartition("/")[2].partition("#")
        page.open(site / name)
        assert page.value(f"!!document.getElementById({section!r})"), target


def test_the_ledger_can_be_filtered(page, site):
    page.open(site / "index.html")
    shown = "[...document.querySelectorAll('tr[data-v]')].filter(r => r.checkVisibility())"
    assert page.value(f"{shown}.length") == 0, "groups begin folded"
    page.value("document.getElementById('show-not').click()")
    assert page.value(f"{shown}.map(r => r.dataset.v).join()") == "not"
    assert page.value("document.querySelector('.found').textContent") == "1 claims"
    page.value("document.getElementById('show-all').click()")
    page.value("(w => { w.value = 'FASTV'; w.dispatchEvent(new Event('input', {bubbles: true})) })(words)")
    texts = page.value(f"{shown}.map(r => r.textContent.toLowerCase().includes('fastv'))")
    assert texts and all(texts)


def test_a_link_to_a_claim_unfolds_its_group(page, site):
    page.open(site / "index.html")
    page.value("location.hash = document.querySelector('tr[data-v]').id")
    page.wait("document.querySelector('tr:target').checkVisibility()")


def test_the_first_key_leads_past_the_navigation(page, site):
    page.open(site / "table1.html")
    page.press("Tab", 9)
    assert page.value("document.activeElement.className") == "skip"
    assert page.value("document.activeElement.getBoundingClientRect().left >= 0")
    page.command(
        "Input.dispatchKeyEvent", type="keyDown", key="Enter", code="Enter", windowsVirtualKeyCode=13, text="\r"
    )
    page.wait("document.activeElement.id === 'main'")


def test_it_works_without_scripts(page, site):
    page.command("Emulation.setScriptExecutionDisabled", value=True)
    try:
        page.command("Page.navigate", url=(site / "index.html").as_uri())
        page.wait("document.readyState === 'complete' && !!document.querySelector('.tally')")
    finally:
        page.command("Emulation.setScriptExecutionDisabled", value=False)
    assert page.value("document.querySelector('.search').hidden"), "a box that would do nothing is not shown"
    page.value(OPEN_ALL)
    page.value("document.getElementById('show-quoted').checked = true")
    shown = "[...document.querySelectorAll('tr[data-v]')].filter(r => r.checkVisibility())"
    assert set(page.value(f"{shown}.map(r => r.dataset.v)")) == {"quoted"}
