"""The paper's layout, row by row; quoted numbers that never look reproduced; every number with its source."""

from dataclasses import replace

import pandas as pd
import pytest

from holitom_repro import paper
from holitom.errors import BadUsage
from holitom_repro.figures import Stamp
from holitom_repro.scores import FEWER_FRAMES, score_frame
from holitom_repro.tables import derived, render
from holitom_repro.tables.drawing import COLOURS, MARGIN, draw
from holitom_repro.tables.html import CSS
from holitom_repro.tables.measured import columns
from holitom_repro.tables.parts import VERDICTS, Text, verdict


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
def test_every_flops_cell_is_judged_and_an_average_that_nobody_prints_is_not(name):
    for row, expected in zip(rows_of(render(name).parts[0]), paper.table(name).itertuples(), strict=True):
        assert row.cells[6].value == "✓ REPRODUCED"
        assert row.cells[-1].value == ("–" if pd.isna(expected.avg) else "✓ REPRODUCED")


def test_what_the_data_do_not_decide_never_looks_reproduced():
    kinds = {word: verdict(word).kind for word in VERDICTS}
    assert len(set(kinds.values())) == len(kinds) and kinds["WITHIN NOISE"] == "noise"
    assert len({CSS["good"], CSS["noise"], CSS["bad"]}) == len({COLOURS[kind] for kind in kinds.values()}) - 2 == 3
    assert verdict("QUOTED").value == "QUOTED"


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
                if column.head in ("quoted", "printed") or column.group == "quoted scores":
                    assert cell.kind in ("quoted", "muted") or not cell.value
                    assert not cell.value or cell.value == "–" or cell.markdown() == f"_{cell.value}_"
                else:
                    assert cell.kind != "quoted"
    assert printed and CSS["quoted"] != CSS["measured"] and "italic" in CSS["quoted"]


def cell(part, row, asked, head, group=""):
    """The cell of a row under a column's group and head."""
    place = [(c.group, c.head) for c in part.columns].index((group, head))
    (found,) = [r for r in rows_of(part) if (r.cells[0].value, r.cells[1].value) == (row, asked)]
    return found.cells[place]


def test_part_b_measures_every_printed_row(view):
    part = view.parts[1]
    order = [r.cells[0].value for r in rows_of(part)]
    assert order == paper.table("table1")["method"].tolist()
    assert all(r.cells[-1].kind == "measured" and not r.cells[0].second for r in rows_of(part))
    assert cell(part, "VisionZip", "10%", "quoted", "average") == Text("53.5", "quoted")
    assert cell(part, "VisionZip", "10%", "measured", "average").kind == "measured"
    assert cell(part, "FastVID", "10%", "quoted", "average").value == "–"  # a score is missing in the paper


def test_a_row_without_measurement_stays_quoted_and_says_so(made):
    found = made("table1")
    kept = [i for i, c in enumerate(found.cells) if c.row != "DyCoke"]
    plan, records = [found.cells[i] for i in kept], [found.records[i] for i in kept]
    parts = render("table1", score_frame(plan, records, "tiny", samples=found.samples), "tiny").parts
    assert cell(parts[-1], "DyCoke", "25%", "status").value == "not measured yet"
    part = parts[1]
    assert cell(part, "DyCoke", "25%", "Method").second == "not measured yet"
    assert cell(part, "DyCoke", "25%", "measured", "average").value == "–"
    assert cell(part, "DyCoke", "25%", "quoted", "average").kind == "quoted"


def test_controls_have_a_part_of_their_own(view):
    part = view.parts[2]
    names = {r.cells[0].value for r in rows_of(part)}
    assert {"Random", "Uniform stride", "Average pooling", FEWER_FRAMES, "HoliTom, control saliency"} <= names
    assert not names & set(paper.table("table1")["method"])
    assert cell(view.parts[3], "Random", "10%", "status").value == "control of this kit"
    assert cell(view.parts[3], "PruneVid + selection", "10%", "status").value == "both stages"
    assert not [c for c in part.columns if c.head == "quoted"]
    order = [r.cells[1].value for r in rows_of(part)]
    assert order.index("12.5%") > order.index("10%")  # four of 32 frames stand with the 10 % rows


def test_a_caption_speaks_of_quoted_numbers_where_there_are_some(made):
    found = made("table2")
    views = [render("table2", score_frame(found.cells, found.records, "tiny", samples=found.samples), "tiny")]
    views += [render(name) for name in ("table1", "table2")]
    parts = [part for view in views for part in view.parts]
    assert {part.key for part in parts} >= {"table1_derived", "table2_measured", "table2_further"}
    for part in parts:
        shown = any(text.kind == "quoted" for row in rows_of(part) for text in row.cells)
        assert ("grey italics" in part.caption.lower()) == shown, part.key


def test_the_budget_is_asked_and_realised_in_every_way(made):
    found = made("table1")
    given = {"asked_share": 0.1, "asked_tokens": 51.2, "full_tokens": 512.0, "full_newlines": 1.0, "kept_tokens": 96.0}
    given |= {"kept_newlines": 1.0, "layer_tokens": 80.0, "layer_newlines": 1.0, "frames": 32, "farthest_off": 2.0}
    full = given | {"kept_tokens": 512.0, "off_per_frame": 0.0}
    records = []
    for c, r in zip(found.cells, found.records, strict=True):
        ten = c.row == "HoliTom" and c.reduction.budget == 0.10
        off = {"off_per_frame": 1.4 if ten else 0.0}
        records.append(replace(r, budget=full if c.row == "Vanilla" else given | off))
    part = render("table1", score_frame(found.cells, records, "tiny", samples=found.samples), "tiny").parts[-1]
    shares = [cell(part, "HoliTom", "10%", head, "tokens kept (%)").value for head in ("got", "+newl.", "layers")]
    assert shares == ["18.8", f"{100 * 97 / 513:.1f}", f"{100 * 80 / 512:.1f}"]
    frame = [cell(part, "HoliTom", "10%", head, "tokens per frame") for head in ("asked", "off", "farthest")]
    assert frame == [Text("1.60", "measured"), Text("+1.40", "bad"), Text("+2.00", "measured")]
    assert cell(part, "VisionZip", "10%", "off", "tokens per frame") == Text("0", "muted")
    assert part.key == "table1_budgets" and "red beyond 1" in part.caption
    scores = render("table1", score_frame(found.cells, records, "tiny", samples=found.samples), "tiny").parts[1]
    assert cell(scores, "HoliTom", "10%", "Method").second == "+1.4 per frame"
    assert cell(scores, "VisionZip", "10%", "Method").second == ""


def test_every_measured_row_has_its_budgets(view):
    scores, further, budgets = view.parts[1:]
    named = [(r.cells[0].value, r.cells[1].value) for part in (scores, further) for r in rows_of(part)]
    assert [(r.cells[0].value, r.cells[1].value) for r in rows_of(budgets)] == named
    heads = {column.head for part in (scores, further) for column in part.columns}
    assert not heads & {"+newl.", "layers", "off", "status"} and {"asked", "got", "FLOPs %"} <= heads


def test_a_measured_score_carries_interval_and_paired_difference(view):
    score = cell(view.parts[1], "HoliTom", "10%", "tiny_ego", "Ego")
    assert score.interval.startswith("[") and "±" not in score.value and "±" in score.second
    assert cell(view.parts[1], "Vanilla", "100%", "tiny_ego", "Ego").second == ""
    assert cell(view.parts[1], "Vanilla", "100%", "measured", "% of Vanilla").value == "100.0"


def test_scores_of_the_papers_own_benchmarks_stand_beside_the_printed_ones():
    heads = [(c.group, c.head) for c in columns("paper")]
    assert ("MVB · mvbench", "quoted") in heads and ("MVB · mvbench", "measured") in heads
    assert ("MVB", "tiny_actions") in [(c.group, c.head) for c in columns("tiny")]


def test_table2_quotes_the_block_that_the_tier_has_no_model_for(made):
    found = made("table2")
    parts = render("table2", score_frame(found.cells, found.records, "tiny", samples=found.samples), "tiny").parts
    part = parts[1]
    headings = [row.heading for row in part.rows if row.heading]
    assert "LLaVA-OneVision-72B" in headings[0] and "no model of this kind" in headings[0]
    assert all(row.cells[-1].value == "–" and not row.cells[0].second for row in rows_of(part)[:6])
    assert "LLaVA-Video-7B" in headings[1] and len(headings) == 2
    assert all(row.cells[-1].kind == "measured" for row in rows_of(part)[6:])
    assert not any("72B" in row.heading for row in parts[-1].rows)
    assert next(row.heading for row in parts[2].rows if row.heading).startswith("A model that the table does not have")


def test_every_number_is_written_with_its_source(view, tmp_path):
    saved = view.save(Stamp("tiny", commit="abc"), folder=tmp_path)
    numbers = pd.read_csv(tmp_path / "table1.csv")
    assert set(numbers["source"]) == {"quoted", "derived", "measured"}
    assert numbers.loc[numbers["source"] == "measured", ["low", "high", "n"]].notna().all(axis=None)
    text = (tmp_path / "table1.md").read_text()
    assert "trends only" in text and "| **HoliTom** | 10% |" in text
    assert [s.png.name for s in saved] == [f"table1{kind}.png" for kind in ("", "_measured", "_further", "_budgets")]


def test_markdown_fits_a_page_and_speaks_of_no_colour(view):
    for part in [*render("table2").parts, *view.parts]:
        text = part.markdown()
        lines = [line.split(" | ") for line in text.splitlines() if line.startswith("| ")]
        assert max(map(len, lines)) <= 11 and "rey italics" not in text
        heads = " ".join(" ".join(line) for line in lines if "Method" in line[0])
        assert all(column.head in heads for column in part.columns)
    tables = view.parts[0].markdown().split("\n\n")[1:3]
    assert [table.count("| **HoliTom** | 10% |") for table in tables] == [1, 1]
    assert "40.765" in tables[0] and "58.42" in tables[1] and "58.42" not in tables[0]


def test_html_has_caption_and_looks(view):
    html = view._repr_html_()
    assert "trends only" in html and "font-style: italic" in html and "✓ REPRODUCED" in html
    assert html == view._repr_html_()


def test_an_unknown_table_is_refused():
    with pytest.raises(BadUsage, match="table1, table2"):
        render("table9")


def test_nothing_is_drawn_beyond_the_edge_of_a_table(made):
    found = made("table2")
    for part in render("table2", score_frame(found.cells, found.records, "tiny", samples=found.samples), "tiny").parts:
        figure = draw(part)
        figure.draw_without_rendering()
        edge = sum(column.width for column in part.columns) + 2 * MARGIN
        axes = figure.axes[0]
        for text in axes.texts:
            assert axes.transData.inverted().transform(text.get_window_extent())[1, 0] <= edge, text.get_text()
