"""The explorer: what every token stands for, the picture of a state, the widgets, and the notebook in a real
JupyterLab."""

import json
import os
import re
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import replace
from html import unescape

import browser
import nbformat
import numpy as np
import pytest
import torch
from videos import scenes

from holitom.errors import BadUsage, BadVideo, KitError
from holitom.flops import paper_flops
from holitom.methods import FastV, FastVID, HoliTom, HoliTomMerge, RandomDrop
from holitom.types import TokenSet, VideoFeatures
from holitom.video import Frames
from holitom_repro import method_page, paths
from holitom_repro.explore import METHODS, Explorer, Side, State, view
from holitom_repro.explore.drawing import ORANGE, draw, paint
from holitom_repro.explore.page import NONE
from holitom_repro.explore.state import STAGES, Clip, open_clip, outcome
from holitom_repro.method_page import ALONE, CARRIED, DROPPED, MERGED, Outcome
from holitom_repro.sources import NOBODY, _recorded, reduce_with_sources
from holitom_repro.style import LOOKS
from holitom_repro.tiny.benchmarks import write_video


@pytest.fixture(scope="module")
def clip() -> Clip:
    return open_clip("three_shots", 16)


@pytest.fixture(scope="module")
def drawn() -> Clip:
    """Eight frames of noise with one cut, 4 x 6 cells: the first four frames are equal, and so are the others."""
    pixels = np.random.default_rng(0).integers(0, 255, (2, 48, 72, 3), dtype=np.uint8).repeat(4, axis=0)
    frames = Frames(pixels, np.arange(8), np.arange(8) / 2, 4.0, 8)
    return Clip(frames, method_page.colour_features(pixels, (4, 6)), "noise")


@pytest.fixture
def noise() -> VideoFeatures:
    """Random features, wide enough for every method."""
    return scenes(12, (6, 6), 16)


@pytest.mark.parametrize("name", METHODS)
def test_watching_a_method_does_not_change_it_and_its_tokens_are_sums_under_the_weights_found(name, noise):
    method = METHODS[name]()
    alone = method(noise, 0.3)
    watched, owner = reduce_with_sources(method, noise, 0.3)
    if name in ("HoliTom", "ToMe"):  # which tell the sizes themselves
        assert np.bincount(owner[owner != NOBODY], minlength=len(alone)).tolist() == alone.size.tolist()
    assert torch.equal(alone.tokens, watched.tokens) and torch.equal(alone.cell, watched.cell)
    assert owner.shape == noise.tokens.shape[:2] and not watched.tokens.requires_grad
    assert torch.equal(owner[watched.frame, watched.cell], torch.arange(len(watched)))
    assert int(owner.min()) >= NOBODY and int(owner.max()) < len(watched)
    kept, leaf = _recorded(method, noise, 0.3)
    mix = torch.rand(len(kept), generator=torch.Generator().manual_seed(0))
    (weights,) = torch.autograd.grad(kept.tokens, leaf, mix[:, None].expand_as(kept.tokens))
    rebuilt, total = (weights * leaf.detach()).sum((0, 1)), (kept.tokens.detach() * mix[:, None]).sum(0)
    assert (rebuilt - total).abs().max() / mix.sum() < 1e-5


def test_a_source_of_several_tokens_goes_to_the_heaviest_then_the_nearest(noise):
    """FastVID: every token that is not kept joins an anchor in each anchor frame of its segment."""
    kept, owner = reduce_with_sources(FastVID(tau=-1.0, segments=1, head="substitute"), noise, 0.3)
    merged = torch.bincount(owner[owner != NOBODY], minlength=len(kept)) > 1
    assert int(merged.sum()) > 1 and not (owner == NOBODY).any() and len(kept.frame[merged].unique()) > 1


class Twice(RandomDrop):
    def __call__(self, video, budget):
        cells = torch.arange(video.cells)
        return TokenSet(video.tokens[:2].mean(0), torch.zeros_like(cells), cells)


def test_a_method_of_ones_own(noise, clip, monkeypatch):
    _, owner = reduce_with_sources(Twice(), noise, 0.3)
    assert torch.equal(owner[:2], torch.arange(36).expand(2, 36)) and bool((owner[2:] == NOBODY).all())
    monkeypatch.setitem(METHODS, "mine", Twice)
    shown = view(State(frames=16, first=Side("mine"), second=None))
    assert shown.outcomes[0].segments[0] == (0, 1) and "mine</b>" in draw(shown)
    monkeypatch.setitem(METHODS, "mine", METHODS["VisionZip"])
    assert Explorer() and view(shown.state).outcomes[0].segments == ()


@pytest.mark.parametrize("name", METHODS)
def test_every_cell_has_one_fate(name, clip):
    found = outcome(clip, Side(name, 0.3))
    counts = [int(found.per_frame(fate).sum()) for fate in (DROPPED, CARRIED, ALONE, MERGED)]
    assert sum(counts) == found.owner.size and counts[ALONE] + counts[MERGED] == len(found.kept)
    assert int(found.size.sum()) == found.owner.size - counts[DROPPED]
    assert [t for first, last in found.segments for t in range(first, last + 1)] in ([], list(range(16)))


def test_segments_are_the_methods_own_or_end_where_no_token_reaches_on(clip, drawn):
    assert list(outcome(clip, Side()).segments) == HoliTom(tau=0.8).segments(clip.video).pairs
    assert outcome(clip, Side("VisionZip")).segments == () and outcome(clip, Side("MMG-Vid", 0.3)).segments[0][0] == 0
    reaching = outcome(drawn, Side("PruneVid", 0.2)).segments
    assert (0, 3) in reaching and reaching[-1][1] == 7
    equal = outcome(drawn, Side(budget=0.25))
    assert equal.segments == ((0, 3), (4, 7)) and set(equal.kept.frame.tolist()) == {0, 4}
    assert (equal.owner[0] == equal.owner[3]).all() and not (equal.owner[3] == equal.owner[4]).any()


def test_paint_fades_frames_and_tints(drawn):
    owner = np.full((8, 24), NOBODY)
    owner[0, :4] = (0, NOBODY, 1, 1)
    kept = TokenSet(torch.zeros(2, 8), torch.zeros(2, dtype=torch.long), torch.tensor([0, 2]))
    found = Outcome(drawn.frames, drawn.video, HoliTom(), 0.1, kept, owner, ())
    assert found.fate[0, :4].tolist() == [ALONE, DROPPED, MERGED, CARRIED]
    pictures = np.full((1, 80, 120, 3), 100, np.uint8)
    out = paint(pictures, found, slice(0, 1), 0)[0]
    assert (out[10, 10] == 100).all() and (out[0, 0] == [int(ORANGE[k : k + 2], 16) for k in (1, 3, 5)]).all()
    assert (out[10, 30] > 200).all(), "dropped cells fade to white"
    assert (out[10, 50] == out[10, 70]).all() and not (out[10, 50] == 100).all(), "one token, one tint"
    parted = paint(pictures, found, slice(0, 1), 2)[0]
    assert (parted[5, 37:42] == 255).all(1).any() and not (parted[5, 57:62] == 255).all(1).any(), "lines part groups"
    assert (pictures == 100).all(), "the cached picture is left alone"


def test_the_picture_says_what_it_shows_and_changes_with_every_setting():
    base = State(frames=16, focus=7, first=Side(), second=None)
    sides = Side("ToMe"), Side(budget=0.2), Side(tau=0.6), Side(inner="merge")
    states = [base, replace(base, focus=8), replace(base, second=Side())]
    states += [replace(base, first=side) for side in sides]
    pictures = [draw(view(state)) for state in states]
    assert len(set(pictures)) == len(pictures) and pictures[0] == draw(view(base))
    (found,) = view(base).outcomes
    assert found.segments[2][0] == 7, "a frame with discs"
    words = unescape(re.sub("<[^>]+>", "", pictures[0]))
    assert f"{len(found.kept):,} of 3,136 tokens" in words and "frame 8 of 16" in words and "S3" in words
    numbers = [int(number) for number in re.findall(r">(\d+)</text>", pictures[0])]
    assert numbers == found.size[7][found.fate[7] == MERGED].tolist() and len(numbers) > 9


def test_costs_are_the_papers_formula_at_the_realised_count():
    side, whole = Side(inner="merge", layer=18, ratio=0.5), paper_flops([6272] * 28, 3584, 18944)
    assert side.flops(0.25) == pytest.approx(paper_flops([1568] * 18 + [784] * 10, 3584, 18944) / whole)


def test_a_side_is_a_reduction_and_every_method_has_a_look_of_its_own():
    side = Side("HoliTom", 0.15, 0.7, "merge", 18, 0.5)
    made = side.reduction()
    assert made.outer == HoliTom(tau=0.7) and made.budget == 0.15 and side.label == "HoliTom"
    assert made.inner == (HoliTomMerge(18, 0.5, causal=False, include_newlines=True),)
    assert Side("HieraVid", inner="drop").label == "HieraVid, first stage + FastV"
    assert Side(inner="drop").reduction(6).inner == (FastV(4, 0.5),)
    assert {Side(method, inner=inner).row for method in METHODS for inner in STAGES} <= set(LOOKS)


def test_bad_settings_are_refused_in_words():
    refused = {"budget 0.0": Side(budget=0.0), "HoliTon": Side("HoliTon"), "28": Side(inner="merge", layer=28)}
    for words, side in (refused | {"DyCoke keeps one whole frame": Side("DyCoke", 0.1)}).items():
        with pytest.raises(BadUsage, match=words):
            draw(view(State(frames=8, first=side, second=None)))


def test_files_of_ones_own(tmp_path):
    (tmp_path / "broken.mp4").write_bytes(b"\0" * 2000)
    for name in ("none.mp4", "broken.mp4"):
        with pytest.raises(BadVideo, match=name):
            open_clip(str(tmp_path / name))
    noise = np.random.default_rng(0).integers(0, 255, (1, 64, 64, 3), dtype=np.uint8)
    file = str(write_video(tmp_path / "clip.mp4", noise))
    for name in METHODS:  # one frame: drawn, or refused in words
        try:
            shown = view(State(file, 8, focus=90, first=Side(name, 0.5), second=None))
            assert "one frame: no neighbour" in draw(shown) and shown.state.focus == 0
        except KitError as error:
            assert name in str(error)


def test_the_tiny_model_answers_before_and_after():
    assert open_clip("tiny_general/001", 16).questions == ()
    shown = view(State("tiny_general/001", question=7, first=Side(budget=1.0), second=Side("Uniform stride", 0.02)))
    assert shown.clip.video.grid == (4, 4) and shown.state.question == len(shown.clip.questions) - 1 == 2
    full, same, starved = shown.answers
    assert full.startswith("✓") and same == full and re.match(r"[✓✗] \w+ \(\d+ %\)", starved)
    words = re.sub("<[^>]+>", "", draw(shown))
    assert shown.clip.questions[2][0] in words and f"{full} with every token" in words and starved in words


def test_a_change_changes_picture_and_state_and_a_failure_leaves_them(tmp_path):
    explorer = Explorer(State(frames=8, focus=2))
    _ = explorer.page
    assert explorer.chosen() == State(frames=8, focus=2) and not explorer.first["layer"].disabled
    before = explorer.picture.value
    explorer.first["budget"].value = 0.2
    after = explorer.picture.value
    assert explorer.state.first.budget == 0.2 and before != after
    explorer.first["budget"].value = 0.0
    assert 'role="alert"' in explorer.message.value and explorer.picture.value == after
    explorer.first["budget"].value = 0.1
    assert explorer.message.value == "" and "computed and drawn in" in explorer.status.value
    explorer.second["method"].value = NONE
    assert explorer.state.second is None and explorer.picture.value != after
    explorer.path.value = str(write_video(tmp_path / "own.mp4", np.full((4, 64, 64, 3), 90, np.uint8)))
    assert explorer.focus.max == 4 and "8 frames were asked" in explorer.status.value
    explorer.clip.value = "tiny_ego/000"
    assert explorer.path.value == "" and explorer.state.clip == "tiny_ego/000" and explorer.question.disabled
    explorer.frames.value = 32
    assert not explorer.question.disabled and "✓" in explorer.picture.value


def test_a_change_takes_less_than_half_a_second_of_computing():
    took = []
    for number in range(6):
        started = time.process_time()
        assert draw(view(State(first=Side(inner="merge", budget=0.1003 + 0.002 * number), focus=number)))
        took.append(time.process_time() - started)
    assert sorted(took[1:])[2] < 0.5


@contextmanager
def lab(folder, notebook):
    """A Tab that shows ``notebook`` of ``folder`` in a JupyterLab of its own; what that writes stays there."""
    own = {f"JUPYTER_{name}_DIR": str(folder / f".{name.lower()}") for name in ("CONFIG", "DATA", "RUNTIME")}
    server = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", f"--ServerApp.root_dir={folder}"]
    server += ["--ServerApp.port=0", "--LabApp.expose_app_in_browser=True"]
    (folder / ".browser").mkdir()
    with (folder / "lab.log").open("w") as log, browser.chromium(folder / ".browser") as tab:
        jupyter = subprocess.Popen(server, stdout=log, stderr=log, env=os.environ | own, cwd=folder)
        try:
            told = folder / ".runtime" / f"jpserver-{jupyter.pid}.json"
            facts = json.loads(browser.until(lambda: told.is_file() and told.read_text("utf-8"), "a JupyterLab"))
            tab.command("Page.navigate", url=f"{facts['url']}lab/tree/{notebook}?token={facts['token']}")
            opened = "[...(globalThis.jupyterapp?.shell.widgets('main') ?? [])].find(one => one.sessionContext)"
            tab.wait(f"{opened}?.sessionContext.session?.kernel?.status === 'idle'")
            tab.value(f"jupyterapp.shell.activateById({opened}.id)")
            yield tab
        finally:
            jupyter.terminate()
            jupyter.wait()


@pytest.mark.slow
@pytest.mark.browser
@browser.needed
def test_in_jupyterlab_a_slider_changes_the_picture_and_a_fault_is_said(tmp_path):
    copy = nbformat.read(paths.root() / "notebooks" / "explore.ipynb", as_version=4)
    last = next(number for number, cell in enumerate(copy.cells) if "Explorer(state)" in cell.source)
    copy.cells = copy.cells[: last + 1]
    copy.cells[1].source = re.sub(r"frames: int = \d+", "frames: int = 8", copy.cells[1].source)
    nbformat.write(copy, tmp_path / "explore.ipynb")
    said = "document.querySelector('.holitom-explorer [role=alert]')?.innerText"
    words = "document.querySelector('.holitom-page')?.innerText"
    with lab(tmp_path, "explore.ipynb") as tab:
        tab.value("jupyterapp.commands.execute('notebook:run-all-cells'), true")
        before = tab.wait(words)
        kept = [int(number) for number in re.findall(r"(\d+) of 1,568 tokens", before)]
        assert "HoliTom" in before and "VisionZip" in before and len(kept) == 2

        handle = "document.querySelectorAll('.holitom-explorer .noUi-handle')[1]"  # 0 is the frame, 1 the first budget
        tab.value(f"{handle}.focus()")
        tab.press("ArrowRight", 39)
        after = tab.wait(f"{words} !== {json.dumps(before)} && {words}")
        more = [int(number) for number in re.findall(r"(\d+) of 1,568 tokens", after)]
        assert more[0] > kept[0] and more[1] == kept[1]

        tab.press("Home", 36)
        assert "budget 0.0" in tab.wait(said)
        assert tab.value(words) == after, "the last picture that worked stays"
        tab.value("document.querySelector('.holitom-explorer input[type=text]').focus()")
        tab.command("Input.insertText", text="nowhere.mp4")
        tab.press("Enter", 13)
        assert "no file nowhere.mp4" in tab.wait(f"{said}?.includes('nowhere') && {said}")
        kinds = tab.value("[...document.querySelectorAll('.jp-OutputArea-output')].map(o => o.dataset.mimeType).join()")
        assert "stderr" not in kinds and "error" not in kinds
