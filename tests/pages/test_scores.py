"""Measured cells become scores with paired differences; what cannot be paired is refused."""

import math
from dataclasses import replace

import pandas as pd
import pytest

from holitom.errors import BadUsage
from holitom_repro.scores import AVERAGE, FEWER_FRAMES, averages, by_type, score_frame, with_average

TINY = ("tiny_actions", "tiny_ego", "tiny_long", "tiny_general")


def frame(found):
    return score_frame(found.cells, found.records, "tiny", samples=found.samples)


def test_the_difference_is_that_of_the_same_questions(made):
    found = made("table1")
    scores = frame(found)
    by = {c.benchmark: r.value for c, r in zip(found.cells, found.records, strict=True) if c.row == "Vanilla"}
    for row in scores[~scores["row"].isin(["Vanilla", FEWER_FRAMES])].itertuples():
        assert row.diff == pytest.approx(row.value - by[row.benchmark])
        assert row.diff_low <= row.diff <= row.diff_high
    assert scores[scores["row"] == "Vanilla"]["diff"].isna().all()


def test_shares_are_relative_to_the_full_model(made):
    scores = frame(made("table1"))
    ten = scores[(scores["row"] == "HoliTom (w/o M)") & (scores["budget"] == 0.10)]
    assert ten["kept_pct"].tolist() == pytest.approx([10.0] * 4)
    assert (ten["flops_pct"] < 10).all()


def test_what_was_spent_is_what_the_record_says(made):
    found = made("table1")
    odd = {"kept_tokens": 77.0, "kept_newlines": 9.0, "layer_tokens": 44.0, "off_per_frame": 0.8}
    records = [replace(r, budget=replace(r.budget, **odd)) for r in found.records]
    scores = with_average(score_frame(found.cells, records, "tiny", samples=found.samples), TINY)
    for row in scores[~scores["row"].isin(["Vanilla", FEWER_FRAMES])].itertuples():
        whole = 16 * row.frames
        assert (row.kept_pct, row.layer_pct) == pytest.approx((7700 / whole, 4400 / whole))
        assert row.newline_pct == pytest.approx(8600 / (whole + 1)) and row.off_per_frame == 0.8
        assert row.spent.layer_tokens == 44 and row.spent.asked_share == pytest.approx(row.budget)
    silent = [replace(r, budget=None) for r in found.records]
    bare = score_frame(found.cells, silent, "tiny", samples=found.samples)
    assert bare[["kept_pct", "newline_pct", "layer_pct", "off_per_frame"]].isna().all(axis=None)
    assert bare["spent"].isna().all()


def test_fewer_frames_are_compared_with_all_frames(made):
    scores = frame(made("table1"))
    fewer = scores[scores["row"] == FEWER_FRAMES]
    assert set(fewer["budget"]) == {0.25, 0.125} and set(fewer["frames"]) == {8, 4}
    full = scores[scores["row"] == "Vanilla"].set_index("benchmark")["value"]
    for row in fewer.itertuples():
        assert row.diff == pytest.approx(row.value - full[row.benchmark])
        assert row.kept_pct == pytest.approx(100 * row.budget)
        assert row.off_per_frame == 0


def test_the_average_is_the_mean_of_the_benchmarks_with_a_narrower_interval(made):
    scores = frame(made("table1"))
    mean = averages(scores, TINY)
    full = mean[mean["row"] == "Vanilla"].iloc[0]
    single = scores[scores["row"] == "Vanilla"]
    assert full["value"] == pytest.approx(single["value"].mean())
    assert full["high"] - full["low"] < (single["high"] - single["low"]).min()
    assert full["n"] == single["n"].sum()


def test_a_setting_without_all_benchmarks_has_no_average(made):
    found = made("table1")
    scores = frame(found)
    partial = scores[~((scores["row"] == "FastV") & (scores["benchmark"] == "tiny_ego"))]
    mean = with_average(partial, TINY)
    assert "FastV" not in set(mean[mean["benchmark"] == AVERAGE]["row"])


def test_other_questions_cannot_be_paired(made):
    found = made("table1")

    def fewer(cell):
        return found.samples(cell)[: 30 if cell.row == "FastV" else 60]

    with pytest.raises(BadUsage, match="different questions"):
        score_frame(found.cells, found.records, "tiny", samples=fewer)


def test_records_of_other_cells_are_refused(made):
    found = made("table1")
    with pytest.raises(BadUsage, match="cells but"):
        score_frame(found.cells, found.records[:-1], "tiny", samples=found.samples)


def test_by_type_weighs_by_questions(made):
    found = made("table1")
    table = by_type(found.cells, found.records, ["Vanilla", "HoliTom"])
    assert isinstance(table, pd.DataFrame) and table.loc["color", "Vanilla"] == 50.0
    assert not math.isnan(table.loc["color", "HoliTom at 10%"])
