"""The pictures of the method and the demo on the shipped clip: segments at the cuts, counts that add up, bad input."""

import shutil

import numpy as np
import pytest
from matplotlib.figure import Figure

from holitom.errors import BadUsage, BadVideo
from holitom.methods.holitom import HoliTom
from holitom.video import load_frames
from holitom_repro import demo, method_page, paths
from holitom_repro.method_page import ALONE, CARRIED, DROPPED, MERGED
from holitom_repro.tiny.benchmarks import write_video

CLIP = paths.data("videos", "three_shots.mp4")


@pytest.fixture(scope="module")
def seen():
    frames = load_frames(CLIP, 32)
    return method_page.walk(frames, method_page.colour_features(frames.pixels), HoliTom(tau=0.8), 0.1)


def test_segments_begin_at_the_cuts_and_carry_what_is_static(seen):
    cut = seen.method.segments(seen.video)
    assert list(seen.segments) == cut.pairs
    for second in (4.0, 9.2):
        assert np.searchsorted(seen.frames.seconds, second) in cut.first
    counts = [int(seen.per_frame(fate).sum()) for fate in (DROPPED, CARRIED, ALONE, MERGED)]
    assert sum(counts) == 32 * 196 and counts[ALONE] + counts[MERGED] == len(seen.kept)
    assert np.flatnonzero(seen.per_frame(MERGED)).tolist() == cut.first.tolist()
    assert (np.isin(seen.fate, (MERGED, CARRIED)) == cut.static[seen.segment_of]).all(), "all static cells"


def test_the_table_is_what_is_drawn(seen):
    table = method_page.frame_table(seen)
    assert (table["merged"] + table["as_they_are"]).sum() == len(seen.kept)
    assert table["segment"].tolist() == (seen.segment_of + 1).tolist()
    share = (seen.similarity > np.float32(0.8)).mean(1)
    assert table["share_above_tau"].to_numpy()[:-1] == pytest.approx(share)
    ax = Figure().subplots()
    method_page.draw_share(ax, seen)
    assert ax.lines[0].get_ydata() == pytest.approx(100 * share), "tau acts on cells, never on a mean"


def test_only_carried_cells_are_hatched(seen):
    ax = Figure().subplots()
    method_page.draw_fates(ax, seen)
    pixels = np.asarray(ax.images[0].get_array())
    rows = np.arange(len(pixels)) * 196 // len(pixels)
    t = np.searchsorted(seen.edges[1:-1], np.linspace(seen.edges[0], seen.edges[-1], pixels.shape[1]), side="right")
    fate = seen.fate[t][:, rows].T
    found = [len(np.unique(pixels[fate == code][::20], axis=0)) for code in (DROPPED, CARRIED, ALONE, MERGED)]
    assert found == [1, 2, 1, 1], "two colours: the ground and the lines of the hatch"


def test_discs_and_borders_stand_for_tokens_and_large_frames_say_how_many(seen):
    figure = Figure(figsize=(12, 4))
    first = [first for first, _ in seen.segments]
    method_page.draw_frames(figure, seen, first, columns=4)
    for ax, t in zip(figure.axes, first, strict=True):
        borders, discs = ax.collections
        assert len(borders.get_paths()) == (seen.fate[t] == ALONE).sum()
        assert len(discs.get_offsets()) == (seen.fate[t] == MERGED).sum()
        numbers = [int(text.get_text()) for text in ax.texts]
        assert numbers == seen.size[t][seen.fate[t] == MERGED].tolist()


@pytest.mark.parametrize("frames", [1, 9])
def test_short_videos_and_odd_sizes_are_drawn(tmp_path, frames):
    pixels = np.random.default_rng(0).integers(0, 255, (frames, 70, 50, 3), dtype=np.uint8)
    clip = load_frames(write_video(tmp_path / "short.mp4", pixels), 32)
    seen = method_page.walk(clip, method_page.colour_features(clip.pixels, (3, 5)), HoliTom(), 0.5)
    figure = method_page.method_figure(seen, "short")
    figure.savefig(tmp_path / "page.png", dpi=40)
    assert len(seen.edges) == frames + 1 and (np.diff(seen.edges) > 0).all()


def test_colour_features_are_finite_and_need_a_picture_larger_than_the_grid():
    assert method_page.colour_features(np.full((3, 28, 28, 3), 127, np.uint8)).tokens.isfinite().all()
    with pytest.raises(BadVideo, match="smaller than the grid"):
        method_page.colour_features(np.zeros((2, 8, 8, 3), np.uint8))


def test_the_demo_writes_a_picture_and_tells_both_budgets(tmp_path, capsys):
    clip, out = tmp_path / r"a $\frac$ {b} [x] 100%.mp4", tmp_path / "schön, out"
    shutil.copy(paths.data("videos", "three_shots.mp4"), clip)
    assert demo.main([str(clip), "--frames", "6", "--out", str(out)]) == 0
    assert {path.name for path in out.iterdir()} == {f"demo_{clip.stem}.png", f"demo_{clip.stem}.csv"}
    told = capsys.readouterr().out
    assert "asked 10.00%, realised" in told and "6 of 330 frames" in told


def test_the_demo_with_a_model_answers(tmp_path, capsys):
    words = ["--model", str(paths.data("tiny", "onevision")), "--out", str(tmp_path)]
    words += ["--question", "how many scenes are there ?"]
    assert demo.main([str(CLIP), "--frames", "8", *words]) == 0
    told = capsys.readouterr().out
    assert "4x4 cells" in told and "question     how many scenes are there ?" in told and "answer " in told


def test_bad_input_is_refused_in_words():
    with pytest.raises(BadVideo, match="no/such/file"):
        demo.main(["no/such/file.mp4"])
    for words, said in (("--budget 0", "budget"), ("--question what?", "--model")):
        with pytest.raises(BadUsage, match=said):
            demo.main(words.split())
