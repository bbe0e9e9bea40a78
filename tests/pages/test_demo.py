"""The demo on the shipped clip: segments at the cuts, counts that add up, a picture, and the exit codes of bad
input."""

import numpy as np
import pytest
import torch

from holitom_repro import cli, paths
from holitom_repro.colour import colour_features
from holitom_repro.demo import begins_at, main, report
from holitom.errors import BadUsage, BadVideo
from holitom_repro.figures.method import frame_table, method_figure, segment_table, similarity_figure
from holitom_repro.figures.style import INK
from holitom.methods import HoliTom
from holitom.video import load_frames, write_video
from holitom_repro.walkthrough import CARRIED, DROPPED, DYNAMIC, MERGED, walk

CLIP = paths.data("videos", "three_shots.mp4")


@pytest.fixture(scope="module")
def clip():
    return load_frames(CLIP, 32)


@pytest.fixture(scope="module")
def found(clip):
    return walk(colour_features(torch.from_numpy(clip.pixels)), HoliTom(tau=0.8), 0.1)


def test_segments_begin_at_the_cuts(clip, found):
    assert begins_at(clip, found, 4.0) and begins_at(clip, found, 9.2)
    assert not begins_at(clip, found, 2.0) and not begins_at(clip, found, 11.0)


def test_most_of_a_shot_is_static(found):
    assert 0.6 < found.static.float().mean() < 0.95


def test_every_cell_has_one_fate_and_every_token_is_drawn_once(found):
    counts = [int(found.per_frame(fate).sum()) for fate in (DROPPED, CARRIED, DYNAMIC, MERGED)]
    assert sum(counts) == found.total == 32 * 196
    assert counts[2] + counts[3] == len(found.kept)
    first_frames = {first for first, _ in found.segments}
    assert set(torch.nonzero(found.per_frame(MERGED)).flatten().tolist()) == first_frames


def test_merged_tokens_carry_every_static_cell(found):
    merged = found.kept.size > 1
    assert int(found.kept.size[merged].sum()) == int(found.static.sum())


def test_tables_agree_with_the_walk(clip, found):
    frames, segments = frame_table(clip, found), segment_table(clip, found)
    assert (frames["merged_tokens"] + frames["dynamic_tokens"]).sum() == len(found.kept)
    assert (segments["merged tokens"] + segments["dynamic tokens"]).sum() == len(found.kept)
    assert set(frames["source"]) == {"derived"} and len(segments) == len(found.segments)


def test_tau_is_shown_where_it_acts_on_cells_and_never_on_a_mean(clip, found):
    figure, table = similarity_figure(clip, found)
    curve = figure.axes[1].lines[0].get_ydata()
    expected = 100 * (found.similarity > 0.8).double().mean(dim=1)
    assert curve == pytest.approx(expected.numpy()) and "τ = 0.8" in figure.axes[1].get_ylabel()
    assert all(len(set(line.get_ydata())) > 1 for line in figure.axes[1].lines)  # no line across
    assert table["share_above_tau"].to_numpy()[:-1] == pytest.approx(expected.numpy() / 100)


def test_a_hatch_means_carried_in_every_panel_and_borders_show_on_every_ground(clip, found):
    figure, _ = method_figure(clip, found)
    fates, tokens = (next(ax for ax in figure.axes if ax.get_ylabel() == name) for name in ("cell (raster order)",
                                                                                           "tokens kept"))  # fmt: skip
    (legend,) = (legend for part in figure.subfigs for legend in part.legends)
    marks = {text.get_text(): patch.get_hatch() for text, patch in zip(legend.texts, legend.get_patches(), strict=True)}
    hatch = marks.pop("static, carried by a merged token")
    assert hatch and not any(marks.values())
    assert hatch in {patch.get_hatch() for patch in fates.patches}
    assert not any(bar.get_hatch() for bar in tokens.patches)
    for ax in (figure.axes[0], fates):
        assert {line.get_color() for line in ax.lines} == {"white", INK}


def test_report_states_both_budgets(clip, found):
    text = "\n".join(report(clip, found))
    assert f"{len(found.kept)} tokens" in text and "asked 10.00%" in text and f"realised {found.realised:.2%}" in text


def test_budget_one_merges_nothing(clip):
    everything = walk(colour_features(torch.from_numpy(clip.pixels[:6])), HoliTom(), 1.0)
    assert int(everything.per_frame(DYNAMIC).sum()) == everything.total


def test_the_command_writes_the_picture(tmp_path, capsys):
    assert main(["--frames", "6", "--out", str(tmp_path)]) == 0
    assert {p.name for p in tmp_path.iterdir()} == {f"demo_three_shots.{end}" for end in ("png", "svg", "csv")}
    assert "realised" in capsys.readouterr().out


@pytest.mark.parametrize("frames", [1, 2])
def test_one_or_two_frames_are_enough(tmp_path, frames):
    video = write_video(tmp_path / "short.mp4", np.full((frames, 64, 64, 3), 90, np.uint8))
    assert main(["--video", str(video), "--out", str(tmp_path)]) == 0


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["--video", "no/such/file.mp4"], 2),
        (["--video", str(paths.root() / "pyproject.toml")], 2),
        (["--budget", "0"], 3),
        (["--budget", "1.5"], 3),
        (["--budget", "much"], 3),
        (["--frames", "0"], 3),
        (["--tau", "2"], 3),
        (["--question", "what?"], 3),
        (["--unknown"], 3),
        (["--model", str(paths.data("videos")), "--frames", "4"], 2),
    ],
)
def test_bad_input_is_refused_in_words(words, code, capsys):
    assert cli.main(["demo", *words]) == code
    told = capsys.readouterr().err
    assert told.strip() and "Traceback" not in told


def test_colours_need_a_picture_larger_than_the_grid():
    with pytest.raises(BadVideo, match="smaller than the grid"):
        colour_features(torch.zeros(2, 8, 8, 3, dtype=torch.uint8))


def test_colour_features_are_finite_on_a_flat_video():
    flat = colour_features(torch.full((3, 28, 28, 3), 127, dtype=torch.uint8))
    assert flat.tokens.isfinite().all() and flat.saliency.sum(1).tolist() == pytest.approx([1.0] * 3)


def test_errors_name_the_fix():
    with pytest.raises(BadUsage) as refused:
        main(["--question", "what?"])
    assert "--model" in refused.value.fix
