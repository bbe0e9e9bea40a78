"""The notebook in a real JupyterLab: a slider moves and the picture changes; what is wrong is said in the page."""

import re

import nbformat
import pytest
from explorer_browser import chromium, lab

from holitom_repro import paths

pytest.importorskip("websocket")
BROWSER = chromium()
PICTURE = "document.querySelector('.holitom-explorer img')"
SAID = "document.querySelector('.holitom-explorer [role=alert]')?.innerText"
HANDLE = "document.querySelectorAll('.holitom-explorer .noUi-handle')"


@pytest.mark.slow
@pytest.mark.browser
@pytest.mark.skipif(BROWSER is None, reason="no Chromium on this machine (apt install chromium)")
def test_moving_a_slider_changes_the_picture(tmp_path):
    copy = nbformat.read(paths.root() / "notebooks" / "explore.ipynb", as_version=4)
    copy.cells[1].source = re.sub(r"frames: int = \d+", "frames: int = 8", copy.cells[1].source)
    copy.cells = copy.cells[:4]
    nbformat.write(copy, tmp_path / "explore.ipynb")
    with lab(tmp_path, "explore.ipynb", BROWSER) as tab:
        accept = ".jp-Dialog .jp-mod-accept"
        tab.click_until('[data-jp-item-name="restart-and-run"] jp-button', f"!!document.querySelector('{accept}')")
        tab.click_until(accept, f"!document.querySelector('{accept}')")
        tab.wait(f"{PICTURE}?.complete && {PICTURE}.naturalWidth > 1000")
        tab.wait("document.querySelector('.holitom-explorer caption')?.innerText === 'What changes'")
        before, words = tab.value(f"{PICTURE}.src"), tab.value(f"{PICTURE}.alt")
        assert "HoliTom keeps" in words and "VisionZip keeps" in words

        tab.value(f"{HANDLE}[1].focus()")  # 0 is the frame, 1 the first method's budget
        tab.press("ArrowRight", 39)
        tab.wait(f"{PICTURE}.src !== {before!r}")
        after = tab.value(f"{PICTURE}.alt")
        kept = [int(re.search(r"HoliTom keeps (\d+) of", text)[1]) for text in (words, after)]
        assert kept[0] < kept[1]
        assert re.search(r"VisionZip.*", words)[0] == re.search(r"VisionZip.*", after)[0]
        assert f"{kept[1]:,}" in tab.value("document.querySelector('.holitom-explorer table').innerText")

        last = tab.value(f"{PICTURE}.src")
        tab.press("Home", 36)
        assert "Budget 0.0 is outside (0, 1]" in tab.wait(SAID)
        assert tab.value(f"{PICTURE}.src") == last, "the last picture that worked stays"

        tab.value(f"{HANDLE}[1].focus()")
        tab.press("ArrowRight", 39)
        tab.wait(f"!({SAID})")
        tab.value(
            "(s => { s.selectedIndex = s.options.length - 1; s.dispatchEvent(new Event('change', {bubbles: true})) })"
            "(document.querySelector('.holitom-explorer select'))"
        )
        assert "No video has been chosen" in tab.wait(SAID)
        tab.value("document.querySelector('.holitom-explorer input[type=text]').focus()")
        tab.type("nowhere.mp4")
        tab.press("Enter", 13)
        assert "There is no file nowhere.mp4" in tab.wait(f"{SAID}?.includes('nowhere') && {SAID}")
        wrong = "[...document.querySelectorAll('.jp-OutputArea-output')].map(o => o.dataset.mimeType).join()"
        assert "stderr" not in tab.value(wrong) and "error" not in tab.value(wrong)
