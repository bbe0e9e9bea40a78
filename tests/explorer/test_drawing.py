"""Outcomes add up, the picture shows them, and it changes when they change."""

import io
import re

import numpy as np
import pytest
from PIL import Image

from holitom_repro.explorer import Side, State, view
from holitom_repro.explorer.canvas import Canvas, device, rgb
from holitom_repro.explorer.cells import paint, segment_of
from holitom_repro.explorer.outcome import ALONE, CARRIED, DROPPED, GROUP, outcome, similarity
from holitom_repro.explorer.page import describe, draw_page
from holitom_repro.explorer.state import outer_methods
from holitom_repro.explorer.table import compare, percent, signed
from holitom_repro.explorer.timing import time_updates
from holitom_repro.figures.overlay import DYNAMIC_COLOUR
from holitom.methods import HoliTom


@pytest.mark.parametrize("name", outer_methods())
def test_every_cell_has_one_fate(name, clip):
    found = outcome(clip, Side(name, 0.3))
    counts = [int(found.per_frame(fate).sum()) for fate in (DROPPED, CARRIED, ALONE, GROUP)]
    assert sum(counts) == found.total and counts[2] + counts[3] == len(found.kept)
    assert int(found.size.sum()) == found.total - counts[0]
    if found.segments:
        frames = [t for first, last in found.segments for t in range(first, last + 1)]
        assert frames == list(range(len(clip)))


def test_segments_are_the_methods_own(clip):
    found = outcome(clip, Side(budget=0.1))
    assert list(found.segments) == HoliTom(tau=0.8).segments(clip.video).pairs
    assert segment_of(found)[0] == 0 and outcome(clip, Side("VisionZip")).segments == ()


def test_stretches_end_where_no_token_reaches_on(drawn):
    found = outcome(drawn, Side("PruneVid", 0.2))
    assert (0, 3) in found.segments and found.segments[-1][1] == 7


def test_equal_frames_merge_into_the_first(drawn):
    found = outcome(drawn, Side(budget=0.25))
    assert found.segments == ((0, 3), (4, 7)) and set(found.frame) == {0, 4}
    assert (found.owner[0] == found.owner[3]).all() and not (found.owner[3] == found.owner[4]).any()


def test_touching_groups_have_different_colours(clip):
    found = outcome(clip, Side(budget=0.1))
    owner = found.owner.reshape(-1, *found.grid)
    a, b = owner[:, :, 1:].ravel(), owner[:, :, :-1].ravel()
    both = (a != b) & (a >= 0) & (b >= 0)
    a, b = a[both], b[both]
    grouped = (found.size[a] > 1) & (found.size[b] > 1)
    clash = (found.paint[a] == found.paint[b])[grouped]
    assert clash.mean() < 0.02


def test_paint_fades_frames_and_tints():
    pictures = np.full((1, 40, 40, 3), 100, np.uint8)
    fate = np.array([[ALONE, DROPPED, GROUP, CARRIED]])
    owner = np.array([[0, -1, 1, 1]])
    out = paint(pictures, fate, owner, np.array([0, 2]), (2, 2), line=0)[0]
    assert (out[10, 10] == 100).all() and (out[0, 0] == rgb(DYNAMIC_COLOUR)).all()
    assert (out[10, 30] > 200).all(), "dropped cells fade to white"
    assert (out[30, 10] == out[30, 30]).all() and not (out[30, 10] == 100).all()
    parted = paint(pictures, fate, owner, np.array([0, 2]), (2, 2), line=2)[0]
    assert (parted[19:21] == 255).all(axis=-1).any(), "white lines part a group from its neighbours"
    assert (pictures == 100).all(), "the cached picture is left alone"


@pytest.mark.parametrize(("frames", "second"), [(16, "VisionZip"), (8, None), (3, "ToMe")])
def test_the_picture_is_a_png_of_its_size(frames, second):
    shown = view(State(frames=frames, second=second and Side(second)))
    made = shown.picture()
    image = Image.open(io.BytesIO(made.png))
    assert image.size == (device(made.width), device(made.height)) and image.format == "PNG"
    assert len(image.convert("RGB").getcolors(1 << 24)) > 1000


def test_every_choice_changes_the_picture(clip):
    base = Side(inner="merge")
    sides = [base, Side(inner="merge", budget=0.3), Side(inner="merge", tau=0.95), Side(), Side("ToMe"),
             Side(inner="merge", layer=4), Side(inner="merge", ratio=0.9)]  # fmt: skip
    pictures = [draw_page(clip, [(side, outcome(clip, side))], 3).png for side in sides]
    pictures.append(draw_page(clip, [(base, outcome(clip, base))], 4).png)
    assert len(set(pictures)) == len(pictures)


def test_the_same_state_gives_the_same_bytes(clip):
    side = Side()
    assert len({draw_page(clip, [(side, outcome(clip, side))], 2).png for _ in range(2)}) == 1


def test_the_words_say_what_the_picture_shows(clip):
    side = Side()
    found = outcome(clip, side)
    words = describe(clip, [(side, found)], 3)
    assert f"{len(found.kept)} of {found.total} tokens" in words and f"{len(found.segments)} segments" in words
    made = draw_page(clip, [(side, found)], 3)
    assert made.alt == words and 'alt="three_shots.mp4' in made.html
    bundle, metadata = made._repr_mimebundle_()
    assert bundle["text/plain"] == words and metadata["image/png"]["alt"] == words


def test_similarity_is_of_neighbours(drawn):
    values = similarity(drawn)
    assert values.shape == (7, 24) and values[0].min() > 0.999 and values[3].max() < 0.999


def test_the_table_compares(clip):
    pairs = [(side, outcome(clip, side)) for side in (Side(budget=0.1), Side("RandomDrop", budget=0.2))]
    made = compare(pairs, ())
    frame = made.frame()
    kept = frame.loc["visual tokens that enter the language model"]
    assert list(kept) == ["3,136", f"{len(pairs[0][1].kept):,}", "627", signed(627 - len(pairs[0][1].kept), ",")]
    assert frame.columns[-1] == "second − first" and "nothing recorded" in " ".join(made.notes)
    html = made._repr_html_()
    assert html.count('scope="row"') == len(made.rows) and "<caption" in html
    assert "second − first" not in compare(pairs[:1], ()).frame().columns


def test_numbers_in_words():
    assert percent(0.1034) == "10.3 %" and signed(-1234, ",") == "−1,234" and signed(3, "d") == "+3"


def test_files_of_a_view(tmp_path, clip):
    shown = view(State(frames=16))
    shown.save(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"explore.png", "explore.csv"}
    table = shown.per_frame()
    assert len(table) == 32 and set(table["source"]) == {"derived"}
    kept = table.groupby("setting", sort=False)[["kept_as_it_is", "kept_for_several"]].sum().sum(axis=1)
    assert kept.tolist() == [len(found.kept) for _, found in shown.pairs]


def test_a_canvas_keeps_to_its_pixels():
    canvas = Canvas(60, 40)
    canvas.rectangle((10, 10, 20, 20), "#FF0000")
    canvas.hatch((10, 10, 20, 20))
    canvas.rectangle((30, 10, 30, 20), "#00FF00")
    pixels = np.asarray(canvas.image)
    red = (pixels[:, :, 0] == 255) & (pixels[:, :, 1] == 0)
    assert red[15:30, 15:30].any() and not red[:15].any() and not red[30:].any()
    assert not ((pixels[..., 1] == 255) & (pixels[..., 0] == 0)).any(), "an empty box draws nothing"
    assert re.match(rb"\x89PNG", canvas.png())


def test_updates_can_be_timed():
    seconds = time_updates(State(frames=8), 2)
    assert len(seconds) == 2 and min(seconds) > 0
