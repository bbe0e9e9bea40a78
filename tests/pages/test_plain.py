"""Frames for readers: headings instead of column names, one cell per interval, and a setting in one line."""

import math

import pandas as pd
import pytest

from holitom_repro.describing import in_words, settings
from holitom.errors import BadUsage
from holitom_repro.figures import Saved
from holitom.methods import DyCoke, DyCokeDecode, FastV, HoliTom, HoliTomMerge, PyramidDrop
from holitom_repro.scores import averages, score_frame
from holitom_repro.tables import notebooks
from holitom_repro.tables.lines import tasks
from holitom_repro.tables.plain import (
    difference,
    estimate,
    figures,
    mark,
    name,
    number,
    p_value,
    percent,
    plain,
    quoted,
    scored,
    small,
    words,
)
from holitom_repro.tiny.vocabulary import QUESTION_TYPES
from holitom.types import Reduction

FRAME = pd.DataFrame(
    {
        "who": ["a", "a", "b"],
        "diff": [-3.14, 0.04, math.nan],
        "low": [-4.6, -1.0, math.nan],
        "high": [-1.6, 1.1, math.nan],
        "p": [0.0004, 0.0432, 0.384],
    }
)
INTERVAL = ("diff", "low", "high")


def values(table):
    return [[cell.value for cell in row.cells] for row in table.rows if row.cells]


def test_an_interval_is_one_cell_and_a_missing_value_a_dash():
    table = plain(FRAME, {"who": ("row", name), INTERVAL: ("difference (points)", difference), "p": ("p", p_value)})
    assert [column.head for column in table.columns] == ["row", "difference (points)", "p"]
    assert values(table) == [
        ["a", "−3.1 [−4.6, −1.6]", "<0.001"],
        ["a", "0.0 [−1.0, +1.1]", "0.043"],
        ["b", "–", "0.38"],
    ]
    clear, unclear = (row.cells[1] for row in table.rows[:2])
    assert clear.bold and not unclear.bold
    assert "who" not in table._repr_html_() and "&lt;0.001" in table._repr_html_()
    assert repr(table).startswith("| row | difference (points) | p |\n| :--- | ---: | ---: |")


def test_words_stand_left_and_numbers_right():
    table = plain(FRAME, {"who": ("who", words), "p": ("p", number(2))})
    assert [column.align for column in table.columns] == ["left", "right"]


def test_headings_below_a_common_one():
    table = plain(FRAME, {"who": ("who", words), "p": ("test | p", p_value), "diff": ("test | d", number(1))})
    assert [(column.group, column.head) for column in table.columns] == [("", "who"), ("test", "p"), ("test", "d")]


def test_groups_head_their_rows_and_lines_part_them():
    table = plain(FRAME, {"p": ("p", p_value)}, groups="who")
    assert [row.heading for row in table.rows] == ["a", "", "", "b", ""]
    assert [row.rule for row in plain(FRAME, {"p": ("p", p_value)}, lines="who").rows] == [False, False, True]


def test_a_column_that_is_not_there_is_named():
    with pytest.raises(BadUsage, match="no column nothing") as caught:
        plain(FRAME, {"nothing": ("x", words)})
    assert "who, diff" in caught.value.fix


@pytest.mark.parametrize(
    ("form", "given", "text"),
    [
        (number(), (1200,), "1,200"),
        (number(1, unit=" ms"), (-0.26,), "−0.3 ms"),
        (number(2, sign=True), (0.125,), "+0.12"),
        (percent, (0.125,), "12.5 %"),
        (figures, ("25, 20",), "25, 20"),
    ],
)
def test_numbers(form, given, text):
    assert form(*given) == text


def test_looks():
    assert estimate(95.3, 92.9, 98.1).value == "95.3 [92.9, 98.1]" and estimate(1, 0, 2).kind == "measured"
    assert mark(True).kind == "good" and mark(False).kind == "bad" and small("x").kind == "muted"
    assert quoted(number(1))(2.0).kind == "quoted" and quoted(mark)(True).kind == "quoted"


def test_a_score_near_100_shows_its_true_interval_and_no_impossible_accuracy():
    text = scored(99.0, 95.8, 99.8, second="−0.4 ±1.0")
    assert text.markdown() == "99.0 [95.8, 99.8] (−0.4 ±1.0)" and "±" not in text.value + text.interval


@pytest.mark.parametrize(
    ("setting", "text"),
    [
        (Reduction("x"), "all tokens"),
        (
            Reduction("x", HoliTom(tau=0.65), 0.10, (HoliTomMerge(4, 0.5),)),
            "HoliTom(tau 0.65) at 10 %, inside: HoliTomMerge(layer 4, ratio 0.5)",
        ),
        (Reduction("x", inner=(FastV(2, 0.8),)), "inside: FastV(layer 2, ratio 0.8)"),
        (
            Reduction("x", DyCoke(), 0.25, decode=DyCokeDecode()),
            "DyCoke at 25 %, while generating: DyCokeDecode(layer 3, ratio 0.7)",
        ),
    ],
)
def test_a_setting_in_one_line(setting, text):
    assert in_words(setting) == text


def test_stages_of_one_kind_are_named_once():
    text = in_words(Reduction("x", inner=PyramidDrop().stages()))
    assert text.count("PyramidDropStage") == 1 and text.count("(layer ") == 3


def test_the_plan_has_a_line_for_every_setting(made):
    plan = made("table1").cells
    found = settings(plan)
    assert found["cells"].sum() == len(plan)
    holitom = found[found["row"] == "HoliTom"]
    assert holitom["budgets"].tolist() == ["25, 20, 15", "10"] and "tau 0.65" in holitom["setting"].iloc[1]
    table = notebooks.plan_table(plan)
    assert "tiny_ego" in table.caption and "{" not in repr(table)


def test_the_full_model_and_paired_differences(made):
    found = made("table2")
    scores = score_frame(found.cells, found.records, "tiny", samples=found.samples)
    table = notebooks.full_model(scores)
    assert len(values(table)) == (scores["row"] == "Vanilla").sum() and "[" in values(table)[0][3]
    line = {"model": "m", "at": 0.1, "a": "A", "b": "B", "diff": 1.0, "diff_low": -1.0, "diff_high": 3.0}
    paired = notebooks.paired(pd.DataFrame([line | {"p_holm": 0.5, "changed": 7}]))
    assert values(paired) == [["m", "10 %", "A", "B", "+1.0 [−1.0, +3.0]", "0.50", "7"]]
    placed = notebooks.paired(
        pd.DataFrame([line | {"at": "K = 3", "p_holm": 0.5, "changed": 7}]), at=("layer", figures)
    )
    assert values(placed)[0][1] == "K = 3" and placed.columns[1].head == "layer"


def test_the_points_of_a_curve_stand_in_one_line():
    points = pd.DataFrame(
        {
            "method": ["all tokens", "A", "A", "B"],
            "x": [math.nan, 2.0, 10.0, 5.0],
            "y": [97.0, 60.0, 90.0, 80.0],
            "low": [96.0, 58.0, 88.0, 79.0],
            "high": [98.0, 62.0, 92.0, 81.0],
            "n": 1200,
        }
    )
    table = notebooks.curves(points)
    assert values(table) == [["all tokens", "97.0", "–"], ["A", "90.0", "60.0"], ["B", "80.0", "–"]]
    assert table.rows[0].cells[1].interval == "[96.0, 98.0]"
    assert [column.head for column in table.columns] == ["method", "dearest", "2nd"]
    assert [cell.second for cell in table.rows[1].cells[1:]] == ["10.0 % FLOPs", "2.0 % FLOPs"]


def test_every_type_of_question_has_words():
    assert set(notebooks.TYPES) == set(QUESTION_TYPES)


def test_a_row_at_two_budgets_is_two_rows(made):
    found = made("table2")
    scores = score_frame(found.cells, found.records, "tiny", samples=found.samples)
    table = notebooks.by_model(averages(scores, tasks("tiny").values()))
    rows = [line[0] for line in values(table)]
    assert {"VisionZip at 15 %", "VisionZip at 20 %", "FastV"} <= set(rows) and len(rows) == len(set(rows))
    assert {column.head for column in table.columns[1:]} == {cell.model for cell in found.cells}


def test_losses_are_points_below_the_full_model():
    kinds = ["needle_scene", "action_antonym"]
    types = pd.DataFrame({"Vanilla": [90.0] * 2, "A at 25%": [80.0] * 2, "questions": [10] * 2}, index=kinds)
    table = notebooks.losses(types)
    assert values(table) == [[kind, "90.0", "−10.0", "10"] for kind in ("scene of the star", "action antonym")]
    assert (table.columns[2].group, table.columns[2].head) == ("A, change in points", "25%")


def test_what_was_written_is_said_with_its_folder(tmp_path):
    (tmp_path / "t.md").touch()
    files = [[tmp_path / f"{stem}{end}" for end in (".png", ".svg", ".csv")] for stem in "tu"]
    text = notebooks.written([Saved(*files[0]), Saved(*files[1][:2])])
    assert text == f"in {tmp_path}: t.md, t.csv\nas .png and .svg: t, u"
