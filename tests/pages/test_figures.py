"""Stamps, sources, hollow and filled markers, and the same bytes for the same figure."""

import itertools
import math

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex, to_rgb
from PIL import Image

from holitom_repro import paths
from holitom.errors import BadUsage
from holitom_repro.figures import Stamp, save, stamp_of
from holitom_repro.figures.frames import frames_figure
from holitom_repro.figures.inner import inner_figure
from holitom_repro.figures.points import (
    measured_frames,
    measured_inner,
    measured_tradeoff,
    quoted_frames,
    quoted_inner,
    quoted_tradeoff,
)
from holitom_repro.figures.series import check_points
from holitom_repro.figures.style import LOOKS, look, marker_style, new_figure, spread
from holitom_repro.figures.tradeoff import tradeoff_figure
from holitom_repro.scores import score_frame

STAMP = Stamp("tiny", "n = 60 questions per benchmark", "a processor, 2 cores", "abc")


def scores_of(made, name):
    found = made(name)
    return found, score_frame(found.cells, found.records, "tiny", samples=found.samples)


@pytest.fixture(scope="module")
def drawn(made):
    """The three figures from synthetic records: name -> (figure, data)."""
    _, trade = scores_of(made, "fig_tradeoff")
    _, inner = scores_of(made, "fig_inner")
    _, frames = scores_of(made, "fig_frames")
    points, middle = measured_inner(inner, "tiny")
    long = measured_frames(frames, "tiny", "tiny_long")
    return {
        "tradeoff": tradeoff_figure(quoted_tradeoff(), measured_tradeoff(trade, "tiny"), model="tiny"),
        "inner": inner_figure(quoted_inner(), points, model="tiny", fixed=f"K = {middle}"),
        "frames": frames_figure(
            quoted_frames(), measured_frames(frames, "tiny"), long, model="tiny", benchmark="tiny_long"
        ),
    }


@pytest.mark.parametrize("name", ["tradeoff", "inner", "frames"])
def test_a_figure_is_stamped_and_saved_in_three_forms(drawn, name, tmp_path):
    fig, data = drawn[name]
    saved = save(fig, name, STAMP, data, folder=tmp_path)
    words = [text.get_text() for text in fig.texts]
    assert STAMP.headline in words and STAMP.footer in words
    assert STAMP.headline in saved.svg.read_text() and Image.open(saved.png).info["Description"] == STAMP.headline
    assert Image.open(saved.png).width == 1400
    written = pd.read_csv(saved.csv)
    assert set(written["source"]) == {"quoted", "measured"} and len(written) == len(data)
    assert written.loc[written["source"] == "measured", ["low", "high"]].notna().all(axis=None)
    bundle, _ = saved._repr_mimebundle_()
    assert bundle["text/plain"].endswith(f"{name}.png")
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]


def test_the_same_figure_gives_the_same_bytes(made, tmp_path):
    _, trade = scores_of(made, "fig_tradeoff")
    for folder in ("a", "b"):
        fig, data = tradeoff_figure(quoted_tradeoff(), measured_tradeoff(trade, "tiny"), model="tiny")
        save(fig, "x", STAMP, data, folder=tmp_path / folder)
    for suffix in ("png", "svg", "csv"):
        assert (tmp_path / "a" / f"x.{suffix}").read_bytes() == (tmp_path / "b" / f"x.{suffix}").read_bytes()


def test_a_point_without_a_source_is_refused(tmp_path):
    points = quoted_tradeoff()
    fig, _ = new_figure(3.4, 2)
    with pytest.raises(BadUsage, match="source"):
        save(fig, "x", STAMP, points.drop(columns="source"), folder=tmp_path)
    points.loc[0, "source"] = ""
    with pytest.raises(BadUsage, match="1 points have no valid source"):
        check_points(points)
    assert not list(tmp_path.iterdir())


def test_a_measured_point_without_an_interval_is_refused():
    with pytest.raises(BadUsage, match="no interval"):
        check_points(quoted_tradeoff().assign(source="measured"))


def test_quoted_points_are_hollow_and_measured_ones_filled():
    assert to_hex(marker_style("HoliTom", "quoted")["markerfacecolor"]) == "#ffffff"
    assert to_hex(marker_style("HoliTom", "measured")["markerfacecolor"]) == LOOKS["HoliTom"].colour.lower()
    assert (look("HoliTom").colour, look("HoliTom").marker) == ("#0173B2", "o")


SIGHTS = {  # Machado et al. 2009: linear RGB as a reader without one kind of cone sees it
    "all cones": np.eye(3),
    "no red": np.array([[0.152, 1.053, -0.205], [0.115, 0.786, 0.099], [-0.004, -0.048, 1.052]]),
    "no green": np.array([[0.367, 0.861, -0.228], [0.280, 0.673, 0.047], [-0.012, 0.043, 0.969]]),
    "no blue": np.array([[1.256, -0.077, -0.179], [-0.078, 0.931, 0.148], [0.005, 0.691, 0.304]]),
}


def lab(colour, sight):
    """CIE L*a*b* of a colour as seen by one kind of reader."""
    rgb = np.array(to_rgb(colour))
    linear = np.clip(sight @ np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4), 0, 1)
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    white = np.array([0.9505, 1.0, 1.089])
    x, y, z = np.cbrt(np.maximum(to_xyz @ linear / white, 0.008856))
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


@pytest.mark.parametrize("sight", SIGHTS)
def test_every_two_methods_have_colours_that_every_reader_tells_apart(sight):
    seen = {name: lab(style.colour, SIGHTS[sight]) for name, style in LOOKS.items()}
    apart = {(a, b): np.linalg.norm(seen[a] - seen[b]) for a, b in itertools.combinations(LOOKS, 2)}
    assert min(apart.values()) > 10, min(apart, key=apart.get)


def test_no_two_methods_differ_by_colour_alone():
    marks = [style.marker for style in LOOKS.values()]
    assert len(set(marks)) == len(marks)
    assert len({style.colour for style in LOOKS.values()}) == len(marks)
    with pytest.raises(BadUsage, match="no colour is fixed"):
        look("SomethingNew")


def test_the_panels_hold_what_was_measured(made, drawn):
    found, _ = scores_of(made, "fig_inner")
    data = drawn["inner"][1]
    merged = data[(data["panel"] == "measured") & (data["method"] == "HoliTom") & (data["sweep"] == "R")]
    ratios = {c.reduction.inner[0].ratio for c in found.cells if c.row == "HoliTom" and c.reduction.inner}
    assert set(merged["x"]) == ratios
    assert data[data["panel"] == "measured"]["y"].between(0, 100).all()


def test_every_dashed_line_is_named_in_its_own_panel_and_hollow_is_explained(drawn):
    for ax in drawn["inner"][0].axes[2:]:
        names = " ".join(text.get_text() for text in ax.texts)
        assert "all tokens " in names and "HoliTom (w/o M) " in names
    for name in ("tradeoff", "inner", "frames"):
        assert any("hollow: quoted" in text.get_text() for text in drawn[name][0].axes[0].texts)


def test_a_trial_never_overwrites_a_finished_figure(made):
    assert stamp_of(made("table1").records, "tiny").folder == paths.figures("tiny")
    trial = stamp_of(made("table1", limit=6).records, "tiny")
    assert trial.folder == paths.runs("tiny", "trial") and trial.headline.startswith("TRIAL")


def test_tiers_are_never_mixed(made):
    with pytest.raises(BadUsage, match="records of tier tiny in a figure of tier paper"):
        stamp_of(made("table1").records, "paper")
    with pytest.raises(BadUsage, match="tier 'huge'"):
        Stamp("huge")


def test_labels_move_apart_and_stay_inside():
    places = spread([0.5, 0.5, 0.51, 0.99, 1.0], 0.06)
    gaps = [b - a for a, b in itertools.pairwise(places)]
    assert min(gaps) >= 0.06 - 1e-9 and places[0] >= 0 and places[-1] <= 1 + 1e-9
    assert spread([0.1, 0.9], 0.06) == [0.1, 0.9]
    assert not math.isnan(sum(spread([], 0.06)))
