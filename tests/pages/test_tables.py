"""The paper's layout, row by row; quoted numbers that never look reproduced; every number with its source."""

import pandas as pd
import pytest

from holitom import paper
from holitom.errors import BadUsage
from holitom.figures import Stamp
from holitom.scores import score_frame
from holitom.tables import derived, render
from holitom.tables.parts import CSS, Text


def rows_of(part):
    return [row for row in part.rows if row.cells]


@pytest.fixture(scope="module")
def view(made):
    found = made("table1")
    return render("table1", score_frame(found.cells, found.records, "tiny", samples=found.samples), "tiny")


@pytest.mark.parametrize("name", ["table1", "table2"])
def test_part_a_has_the_papers_rows_in_the_papers_order(name):
    printed = paper.table(name)
    rows = rows_of(render(name).parts[0])
    assert [row.cells[0].value for row in rows] == printed["method"].tolist()
    assert [row.cells[1].value for row in rows] == [f"{kept:.0f}%" for kept in printed["retained_pct"]]
    for row, expected in zip(rows, printed.itertuples(), strict=True):
        assert row.cells[2] == Text(f"{expected.flops_t:.1f}", "quoted")
        assert row.cells[4] == Text(f"{expected.flops_pct:.1f}", "quoted")


@pytest.mark.parametrize("name", ["table1", "table2"])
def test_every_flops_cell_is_judged_and_every_open_average_stays_quoted(name):
    for row, expected in zip(rows_of(render(name).parts[0]), paper.table(name).itertuples(), strict=True):
        assert row.cells[6].value == "✓ REPRODUCED"
        assert row.cells[-1].value == ("“ QUOTED" if pd.isna(expected.avg) else "✓ REPRODUCED")


def test_a_wrong_digit_is_not_reproduced():
    cost = paper.flops_columns("table1").iloc[0].copy()
    assert derived.flops_verdict(cost) == "REPRODUCED"
    cost["flops_t"] += 0.1
    assert derived.flops_verdict(cost) == "NOT REPRODUCED"
    row = paper.table("table1").iloc[0].copy()
    base = row.copy()
    row["avg"] += 0.1
    assert derived.averages_verdict(row, base) == "NOT REPRODUCED"


def test_quoted_scores_never_look_measured(view):
    printed = {f"{v:.1f}" for v in paper.table("table1")[list(paper.BENCHMARKS)].to_numpy().ravel() if v == v}
    for part in view.parts:
        for place, column in enumerate(part.columns):
            for row in rows_of(part):
                cell = row.cells[place]
                if column.head in ("quoted", "printed") or column.group == "scores (quoted)":
                    assert cell.kind in ("quoted", "muted") or not cell.value
                    assert not cell.value or cell.value == "–" or cell.markdown() == f"_{cell.value}_"
                elif cell.kind == "quoted":
                    assert cell.value == "“ QUOTED"
    assert printed and CSS["quoted"] != CSS["measured"] and "italic" in CSS["quoted"]


def test_part_b_measures_what_exists_and_says_why_not(view):
    rows = {(r.cells[0].value, r.cells[1].value): r.cells for r in rows_of(view.parts[1])}
    assert rows["HoliTom", "10%"][-1].value == "measured" and rows["HoliTom", "10%"][5].kind == "measured"
    assert rows["DyCoke", "25%"][-1].value == "not measured yet" and rows["DyCoke", "25%"][5].value == "–"
    assert rows["Random", "10%"][-1].value == "control of this kit" and rows["Random", "10%"][4].value == ""
    order = [r.cells[0].value for r in rows_of(view.parts[1])]
    assert order[: len(paper.table("table1"))] == paper.table("table1")["method"].tolist()


def test_a_measured_score_carries_interval_and_paired_difference(view):
    row = next(r for r in rows_of(view.parts[1]) if (r.cells[0].value, r.cells[1].value) == ("HoliTom", "10%"))
    assert "±" in row.cells[5].value and "±" in row.cells[5].second
    vanilla = rows_of(view.parts[1])[0].cells
    assert vanilla[5].second == "" and vanilla[-2].value == "100.0"


def test_table2_quotes_the_block_that_the_tier_has_no_model_for(made):
    found = made("table2")
    part = render("table2", score_frame(found.cells, found.records, "tiny", samples=found.samples), "tiny").parts[1]
    headings = [row.heading for row in part.rows if row.heading]
    assert "LLaVA-OneVision-72B" in headings[0] and "no model of this kind" in headings[0]
    assert all(row.cells[-1].value == "no such model here" for row in rows_of(part)[:6])
    assert "LLaVA-Video-7B" in headings[1] and len(headings) >= 3


def test_every_number_is_written_with_its_source(view, tmp_path):
    saved = view.save(Stamp("tiny", commit="abc"), folder=tmp_path)
    numbers = pd.read_csv(tmp_path / "table1.csv")
    assert set(numbers["source"]) == {"quoted", "derived", "measured"}
    assert numbers.loc[numbers["source"] == "measured", ["low", "high", "n"]].notna().all(axis=None)
    text = (tmp_path / "table1.md").read_text()
    assert "trends only" in text and "| **HoliTom** | 10% |" in text
    assert [s.png.name for s in saved] == ["table1.png", "table1_measured.png"]


def test_html_has_caption_and_looks(view):
    html = view._repr_html_()
    assert "trends only" in html and "font-style: italic" in html and "✓ REPRODUCED" in html
    assert html == view._repr_html_()


def test_an_unknown_table_is_refused():
    with pytest.raises(BadUsage, match="table1, table2"):
        render("table9")
