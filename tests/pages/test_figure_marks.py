"""What a reader has to see in the figures of scores: every method, the dashed line, remarks that nothing crosses."""

import pytest

from holitom_repro.figures.points import measured_tradeoff, quoted_tradeoff
from holitom_repro.figures.series import MARKER, note
from holitom_repro.figures.style import marker_style, new_figure
from holitom_repro.figures.tradeoff import INSIDE, tradeoff_figure, upper_range
from holitom_repro.scores import score_frame


@pytest.fixture(scope="module")
def trade(made):
    """The trade-off figure of synthetic records, and its measured points."""
    found = made("fig_tradeoff")
    scores = score_frame(found.cells, found.records, "tiny", samples=found.samples)
    measured = measured_tradeoff(scores, "tiny")
    return tradeoff_figure(quoted_tradeoff(), measured, model="tiny")[0], measured


def test_names_never_rub_out_the_dashed_line(trade):
    for ax in trade[0].axes:
        dashed = [line for line in ax.lines if line.get_linestyle() == "--" and line.get_color() == "#222222"]
        names = [text for text in ax.texts if text.get_text().startswith("all tokens")]
        assert dashed and names
        assert all(name.get_zorder() < line.get_zorder() and name.get_bbox_patch() is None
                   for name in ax.texts if name.get_path_effects() for line in dashed)  # fmt: skip


def test_the_scores_where_most_points_lie_have_panels_of_their_own(trade):
    fig, measured = trade
    low, high = upper_range(measured)
    assert (measured["y"] >= low).mean() >= 0.6 and measured["high"].max() <= high
    assert [ax.get_ylim() == (low, high) for ax in fig.axes[4:]] == [True, True]
    assert all(ax.get_ylim()[0] < low for ax in fig.axes[2:4])
    inside = measured[measured["method"].isin(INSIDE)]
    assert fig.axes[1].get_ylim()[0] < inside["low"].min()  # it has no second panel, so it shows everything
    assert upper_range(measured.assign(y=57.0, high=58.0)) == (55.0, 60.0)


def test_the_printed_panel_has_more_than_two_ticks(trade):
    ax = trade[0].axes[0]
    low, high = ax.get_xlim()
    assert len([tick for tick in ax.get_xticks() if low <= tick <= high]) >= 4


def test_methods_at_one_cost_stand_beside_each_other(trade):
    starts = {bar.get_label(): bar.lines[0].get_xdata()[0] for bar in trade[0].axes[2].containers}
    assert starts["VisionZip"] != starts["ToMe"]
    assert starts["VisionZip"] == pytest.approx(starts["ToMe"], rel=0.2)


def test_filled_markers_have_a_rim_that_parts_them():
    assert marker_style("ToMe", "measured")["markeredgecolor"] == "white"
    assert marker_style("ToMe", "quoted")["markeredgecolor"] != "white"
    assert marker_style("Random", "measured")["markeredgecolor"] != "white"  # a cross has nothing to fill
    assert MARKER < 5


def test_a_remark_stands_under_its_panel():
    fig, ax = new_figure(3.4, 2, nrows=1)
    ax.set_xlabel("x")
    note(ax, "one line\nanother")
    fig.canvas.draw()
    assert ax.texts[0].get_window_extent().y1 <= ax.xaxis.label.get_window_extent().y0
