"""Tables as HTML: what a screen reader and a narrow window need, and nothing that a value could break."""

from html.parser import HTMLParser

import pytest

from holitom_repro.tables import render
from holitom_repro.tables.html import table_html
from holitom_repro.tables.parts import Column, Row, Text
from holitom_repro.tables.verdicts import verdicts_of

LEFT = {"style": "text-align: left"}
COLUMNS = (Column("", "Method", 1.3, "left"), Column("tokens", "asked"), Column("tokens", "got"))
VOID = {"br", "col"}


class Cells(HTMLParser):
    """The cells of each table row: (tag, attributes, words)."""

    def __init__(self, html):
        super().__init__()
        self.rows, self.open = [], []
        self.feed(html)
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag, attrs):
        if tag not in VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append([tag, dict(attrs), ""])

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.rows and {"td", "th"} & set(self.open):
            self.rows[-1][-1][2] += data


def spans(row):
    return sum(int(attributes.get("colspan", 1)) for _, attributes, _ in row)


@pytest.mark.parametrize("name", ["table1", "table2"])
def test_every_row_is_as_wide_as_the_table(name):
    part = render(name).parts[0]
    rows = Cells(part.html()).rows
    assert {spans(row) for row in rows} == {len(part.columns)}
    assert len(rows) == 2 + len(part.rows)


def test_a_heading_spans_all_columns_and_cannot_widen_one():
    rows = (
        Row(heading="A heading far longer than a column", rule=True),
        Row((Text("x"), Text("1"), Text("2"))),
    )
    html = table_html("key", COLUMNS, rows)
    (heading,) = Cells(html).rows[2]
    assert heading[:2] == ["th", {"class": "across", **LEFT, "scope": "rowgroup", "colspan": "3"}]
    assert ".across div { width: 0; min-width: 100% }" in html


def test_heads_and_first_cells_name_what_they_head():
    over, heads, row = Cells(table_html("key", COLUMNS, [Row((Text("x", bold=True), Text("1"), Text("2")))])).rows
    assert [cell[2] for cell in over] == ["", "tokens"] and over[1][1]["scope"] == "colgroup"
    assert [cell[1]["scope"] for cell in heads] == ["col"] * 3
    assert row[0][:2] == ["th", {"class": "left plain short bold", **LEFT, "scope": "row"}] and row[1][0] == "td"


def test_what_stands_below_a_short_name_may_wrap():
    cells = (Text("a name", second="a remark that is much longer than the name"), Text("1"), Text("2"))
    *_, row = Cells(table_html("key", COLUMNS, [Row(cells)])).rows
    assert row[0][1]["class"] == "left plain"


def test_values_are_words_and_never_markup():
    text = Text("<0.001", second="a & b")
    html = table_html("key", COLUMNS, [Row((text, Text(), Text()))], caption="<b>bold</b>")
    assert "&lt;0.001<br><small>a &amp; b</small>" in html and "<caption><b>bold</b></caption>" in html
    assert Cells(html).rows[2][0][2] == "<0.001a & b"


def test_an_interval_stands_beside_its_value_in_smaller_type():
    cells = (Text("a"), Text("99.0", "measured", second="−0.4", interval="[95.8, 99.8]"), Text())
    html = table_html("key", COLUMNS, [Row(cells)])
    assert "<b>99.0</b> <small>[95.8, 99.8]</small><br><small>−0.4</small>" in html


def test_quoted_and_measured_differ_without_a_style_sheet():
    cells = (Text("a"), Text("58.4", "quoted"), Text("97.2", "measured", second="−0.4"))
    html = table_html("key", COLUMNS, [Row(cells)])
    assert "<em>58.4</em>" in html and "<b>97.2</b><br><small>−0.4</small>" in html and ">a<" in html


def test_a_section_for_each_heading():
    rows = [Row(heading="a"), Row((Text("x"), Text(), Text())), Row(heading="b"), Row((Text("y"), Text(), Text()))]
    assert table_html("key", COLUMNS, rows).count("<tbody>") == 2


def test_verdicts_without_lines_are_a_sentence():
    assert verdicts_of([])._repr_html_() == "<p><b>no claim is judged here</b></p>"
