"""What the start page shows: every notebook with a link and a cost, and every claim in a group with its verdict."""

import re
from dataclasses import replace

import pytest

from holitom_repro import paths
from holitom_repro.claims.judging import Judged, Verdict
from holitom.errors import BadUsage
from holitom_repro.figures import Stamp, save
from holitom_repro.figures.glance import GROUPS, LOOKS, counted, glance_figure, group_of
from holitom_repro.guide import guide
from holitom_repro.tables.verdicts import readable, verdicts_of


def claim(name, verdict="REPRODUCED", source="derived", unit="%", experiment="table1", **more):
    made = {"id": name, "statement": name, "place": "a place", "reason": "a reason", "source": source, "unit": unit}
    return Judged(**made, verdict=Verdict(verdict), experiment=experiment, **more)


CLAIMS = [
    claim("table1/a/flops_t"),
    claim("table1/a/avg"),
    claim("headline/x", experiment="headlines"),
    claim("trend-x", "NOT REPRODUCED", "measured", "points"),
    claim("trend-y", "WITHIN NOISE", "measured", "points"),
    claim("finding-x", source="measured"),
    claim("table1/a/mvbench", "QUOTED", "quoted", "points"),
    claim("fig_inference/a/ttft", "NOT RUN", "quoted", "ms", "fig_inference"),
]


def test_every_claim_has_a_group_and_every_verdict_a_look():
    assert [group_of(one) for one in CLAIMS[:4]] == list(GROUPS)[:4]
    assert {group_of(one) for one in CLAIMS} == set(GROUPS)
    assert set(LOOKS) == {str(verdict) for verdict in Verdict}


def test_the_glance_counts_all_and_says_each_number(tmp_path):
    figure, data = glance_figure(CLAIMS)
    assert data["n"].sum() == len(CLAIMS) and counted(CLAIMS).equals(data)
    said = [text.get_text() for text in figure.axes[0].texts]
    assert "✗ 1" in said and "≈ 1" in said and said.count("✓ 1") == 4
    for bars in [bar for bar in figure.axes[0].containers if len(bar)]:
        assert all(0 < part.get_width() <= 1 for part in bars)
    assert save(figure, "glance", Stamp("tiny", commit="abc"), data, folder=tmp_path).png.is_file()


def test_every_part_is_as_wide_as_its_share_however_small():
    many = [claim(f"headline/{i}", experiment="headlines") for i in range(50)]
    figure, _ = glance_figure([*many, claim("headline/last", "NOT RUN", experiment="headlines")])
    ax = figure.axes[0]
    assert [bar.get_width() for bars in ax.containers for bar in bars][:2] == pytest.approx([50 / 51, 1 / 51])
    number = next(text for text in ax.texts if text.get_text() == "– 1")
    assert number.get_position()[1] < 0 and number.get_va() == "bottom"  # above its bar, for the part is too narrow


def test_numbers_of_narrow_neighbours_do_not_overlap():
    few = [
        claim("headline/a", "NOT REPRODUCED", experiment="headlines"),
        claim("headline/b", "NOT RUN", experiment="headlines"),
    ]
    figure, _ = glance_figure([*(claim(f"headline/{i}", experiment="headlines") for i in range(50)), *few])
    said = [text.get_text() for text in figure.axes[0].texts]
    assert "✗ 1, – 1" in said and "✗ 1" not in said


def test_a_glance_at_nothing_is_refused():
    with pytest.raises(BadUsage, match="no claim"):
        glance_figure([])


@pytest.mark.parametrize("tier", ["tiny", "speed", "paper"])
def test_the_guide_links_every_notebook_but_its_own(tier):
    text = guide(tier)
    links = re.findall(r"\]\(([^)]+)\)", text)
    there = {path.name for path in (paths.root() / "notebooks").glob("*.ipynb")}
    assert set(links) == there - {"00_start_here.ipynb"} and len(links) == len(set(links))
    assert all(line.count("|") == 6 for line in text.splitlines())


def test_the_guide_tells_the_cost_of_its_tier():
    assert "not in the speed tier" in guide("speed") and "1 GPU of 80 GB" in guide("paper")
    with pytest.raises(BadUsage, match="no tier"):
        guide("huge")


def test_verdicts_of_one_place_stand_below_it_and_others_name_theirs():
    far = replace(claim("far", "NOT RUN", "quoted", printed=2.5), place="elsewhere")
    rows = verdicts_of([*CLAIMS[:2], far]).part.rows
    assert [row.heading for row in rows] == ["", "a place", "", ""]
    assert [row.cells[1].value for row in rows if row.cells] == ["far (elsewhere)", "table1/a/flops_t", "table1/a/avg"]


def test_what_matters_stands_first():
    rows = verdicts_of(CLAIMS).part.rows
    words = [row.cells[0].value.split(" ", 1)[-1] for row in rows if row.cells]
    assert words == ["NOT REPRODUCED", "NOT RUN", "WITHIN NOISE", *["REPRODUCED"] * 4, "QUOTED"]


def test_numbers_carry_their_unit_and_counts_have_no_decimals():
    ones = [claim("a", unit="cells", computed=36), claim("b", unit="x", computed=2.395), claim("c", computed=-0.001)]
    ones += [claim("d", unit="points", computed=-3.0, printed=-2.5), claim("e", unit="% of the score", computed=84.75)]
    cells = [row.cells for row in verdicts_of(ones).part.rows if row.cells]
    assert [line[3].value for line in cells] == ["36 cells", "2.40 x", "0.00 %", "−3.00 points", "84.75 %"]
    assert cells[3][2].value == "−2.5"


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ("0.7 points [-0.0, 1.4]", "0.7 points [0.0, 1.4]"),
        ("-0.2 [-0.8, +0.3]; −1.0 (-14.0)", "−0.2 [−0.8, +0.3]; −1.0 (−14.0)"),
        ("-0.04 and +0.0, 10-0", "−0.04 and 0.0, 10-0"),
        ("as fig_inference/ov-7b/HoliTom (w/o M)/ttft_speedup/measured: no record", "no record"),
        ("Paper, TTFT and decode figure (draw_inference)", "Paper, TTFT and decode figure"),
        ("layer K - 1 on OneVision-7B, 2026-11-21; ./reproduce.sh x --tier speed", None),
    ],
)
def test_readers_see_no_internal_names_and_one_minus_sign(said, shown):
    assert readable(said) == (shown or said)


def test_verdicts_are_chosen_by_source_or_by_word_and_a_failure_always_shows():
    shown = verdicts_of(CLAIMS, only=("NOT RUN",))
    words = [row.cells[0].value for row in shown.part.rows if row.cells]
    assert words == ["✗ NOT REPRODUCED", "– NOT RUN"]
    assert repr(shown) == shown.markdown() and repr(shown.part) == shown.part.markdown()
    assert sum(shown.counts.values()) == len(CLAIMS) and "printed" not in [c.head for c in shown.part.columns]
    assert "printed" in [c.head for c in verdicts_of([claim("x", printed=1.0)]).part.columns]
