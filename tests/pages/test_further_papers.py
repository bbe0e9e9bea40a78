"""The tables of MMG-Vid, HieraVid and the ablations, and the ablations' figure, from synthetic answers."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from holitom_repro import tables
from holitom_repro.ablations import DEFAULT, against_default, findings
from holitom_repro.comparing import compare
from holitom.errors import BadUsage
from holitom_repro.experiments.grids.ablations import FACTORS, VARIANTS, defaults
from holitom_repro.figures import Stamp, save
from holitom_repro.figures.ablations import ablation_figure
from holitom_repro.scores import score_frame
from holitom_repro.tables.ablations import ablation_table
from holitom_repro.tables.hieravid import hieravid_table, share_of
from holitom_repro.tables.mmg_vid import assumptions, mmg_vid_table

ORIGIN = Stamp("tiny", "n = 60", "a processor", "0123456")


def rows_of(part):
    return [row for row in part.rows if row.cells]


def scores(made, name):
    found = made(name)
    return score_frame(found.cells, found.records, "tiny", samples=found.samples)


@pytest.fixture(scope="module")
def compared(made):
    found = made("ablations")
    return against_default(found.cells, found.records, "tiny", samples=found.samples)


def test_one_factor_at_a_time(made):
    """Every variant differs from the default in the fields that it names and in nothing else."""
    by = {cell.row: cell.reduction.describe() for cell in made("ablations").cells}
    default = by.pop(DEFAULT)
    assert by.pop("Vanilla")["outer"] is None
    assert len(by) == sum(len(variants) for variants in VARIANTS.values()) <= 40
    assert {row.split(": ")[0] for row in by} == {factor.name for factor in FACTORS} == set(VARIANTS)
    for row, setting in by.items():
        change = VARIANTS[row.split(": ")[0]][row.split(": ", 1)[1]]
        expected = json.loads(json.dumps(default)) | {"name": setting["name"]}
        expected["outer"] |= change.outer
        if change.drop:
            expected["inner"] = [{"method": "FastV", "layer": 4, "ratio": 0.5}]
        expected["inner"] = [stage | change.inner for stage in expected["inner"]]
        expected |= {"outer": None, "budget": 1.0} if "outer" in change.whole else {}
        expected |= {"inner": []} if "inner" in change.whole else {}
        assert setting == expected, row


def test_rivals_are_variants_of_their_factor():
    for factor in FACTORS:
        assert set(factor.rivals) <= set(VARIANTS[factor.name]) and factor.why and factor.expected.endswith(".")


def test_differences_are_paired_and_corrected(compared):
    tested = compared[compared["factor"] != ""]
    assert len(tested) == 34 and tested["p_holm"].between(0, 1).all() and (tested["p_holm"] >= tested["p"]).all()
    assert compared[compared["factor"] == ""]["p_holm"].isna().all()
    assert set(compared["source"]) == {"measured"}
    same = tested[tested["factor"] == "beta"]
    assert (same["diff"] == 0).all() and (same["changed"] == 0).all()  # the synthetic answers see budgets only
    inner = tested[tested["variant"] == "inner only, R = 0.5"].iloc[0]
    assert inner["diff"] > 0 and inner["tokens"] > 400


def test_without_a_default_there_is_nothing_to_compare_with(made):
    found = made("ablations")
    kept = [(c, r) for c, r in zip(found.cells, found.records, strict=True) if c.row != DEFAULT]
    with pytest.raises(BadUsage, match="no default"):
        against_default([c for c, _ in kept], [r for _, r in kept], "tiny", samples=found.samples)


def test_the_ablation_table_and_its_verdicts(compared, tmp_path):
    found = findings(compared, FACTORS)
    view = ablation_table(compared, found, "tiny")
    labels = [row.cells[0].value for row in rows_of(view.parts[0])]
    assert labels[:2] == ["all tokens", "HoliTom as published"] and len(labels) == 36
    headings = [row.heading for row in view.parts[0].rows if row.heading]
    assert len(headings) == len(FACTORS) and all(f.verdict in h for f, h in zip(found, headings, strict=True))
    view.save(ORIGIN, folder=tmp_path)
    assert (tmp_path / "ablations_table.png").is_file() and (tmp_path / "ablations_table.csv").is_file()


def test_the_forest_draws_every_variant(compared, tmp_path):
    figure, data = ablation_figure(compared, findings(compared, FACTORS), defaults(), model="tiny")
    ax = figure.axes[0]
    assert len(data) == len(ax.get_yticklabels()) == len(ax.containers) == 34
    names = [label.get_text().split(" (")[0] for label in ax.get_yticklabels()]
    assert any("tokens)" in label.get_text() for label in ax.get_yticklabels())
    assert {"beta 0.3", "beta 1, centre alone", "4 frames"} <= set(names) and "0.3" not in names
    words = {text.get_text() for text in ax.texts}
    assert {" (default 7)", " (default 0.65)", " (default 0.6)", " (default 1024)", " (default 0)"} <= words
    low, high = ax.get_xlim()
    assert low <= data["diff_low"].min() and data["diff_high"].max() <= high
    assert high - low < 2.5 * max(data["diff_high"].max() - data["diff_low"].min(), 3)  # no empty half
    saved = save(figure, "ablations", ORIGIN, data, folder=tmp_path)
    assert saved.png.is_file() and saved.csv.read_text().startswith("factor,variant,")


def test_a_forest_of_nothing_is_refused(compared):
    with pytest.raises(BadUsage, match="no variant"):
        ablation_figure(compared[compared["factor"] == ""], [], {}, model="tiny")


def test_mmg_vid_keeps_quoted_and_measured_apart(made):
    view = mmg_vid_table(scores(made, "mmg_vid"), "tiny")
    derived, measured = view.parts
    words = [cell.value for row in rows_of(derived) for cell in row.cells]
    assert words.count("✗ NOT REPRODUCED") == 0 and words.count("QUOTED") == 1
    by = {(row.cells[0].value, row.cells[1].value, i): row for i, row in enumerate(rows_of(measured))}
    first = next(row for (name, share, _), row in by.items() if (name, share) == ("MMG-Vid", "25%"))
    assert first.cells[-2].value == "99.5" and first.cells[-2].kind == "quoted" and first.cells[-1].kind == "measured"
    opposite = [row for (name, _, _), row in by.items() if name == "MMG-Vid (opposite gain)"]
    assert len(opposite) == 5 and all(row.cells[-2].kind == "muted" for row in opposite)
    assert set(view.numbers["source"]) == {"quoted", "derived", "measured"}
    assert "reconstruction, never a reproduction" in measured.caption


def test_the_assumptions_come_from_the_method_itself():
    found = assumptions()
    assert list(dict.fromkeys(found["assumption"])) == [f"A{i}" for i in range(1, 10)]
    assert found.set_index("field").loc["gain", "default"] == "'coded'" and (found["says"].str.len() > 10).all()
    off = found.set_index("assumption")["default"].loc[["A8", "A9"]].tolist()
    assert off == ["False", "0.0"]  # which is what their sentences say


def test_hieravid_says_what_its_percentage_is(made):
    view = hieravid_table(scores(made, "hieravid"), "tiny", 6)
    derived, schedules, measured = view.parts
    assert "average over the layers" in derived.caption and "mean over 28 layers" in measured.caption
    row = next(row for row in rows_of(derived) if row.cells[0].value == "HieraVid")
    assert [cell.value for cell in row.cells[1:6]] == ["30%", "50.0", "30.0", "24.5", "24.46"]
    assert [row.cells[-2].value for row in rows_of(schedules)] == ["0, 2, 3, 5"] * 3
    rows = rows_of(measured)
    shares = {row.cells[0].value: (row.cells[1].value, row.cells[-2].value) for row in rows[:18]}
    assert shares["HieraVid 30 %"] == ("30%", "98.4") and shares["HieraVid 10 %"] == ("10%", "92.4")
    assert shares["HieraVid 20 %, most attended"] == ("20%", "–")


@pytest.mark.parametrize("name", ["mmg_vid", "hieravid"])
def test_every_part_is_saved(made, name, tmp_path):
    view = (mmg_vid_table if name == "mmg_vid" else hieravid_table)(scores(made, name), "tiny")
    saved = view.save(ORIGIN, folder=tmp_path)
    assert len({one.png.name for one in saved}) == len(view.parts)
    assert {one.png.name for one in saved} >= {f"{name}.png", f"{name}_measured.png"}


def stamps_of(view, folder, monkeypatch):
    """Name of a picture -> its tier's stamp and its footer."""
    stamps = {}

    def kept(fig, name, mark, data=None, *, folder):
        stamps[name] = mark.headline, mark.footer
        return save(fig, name, mark, data, folder=folder)

    monkeypatch.setattr(tables, "save", kept)
    view.save(ORIGIN, folder=folder)
    return stamps


@pytest.mark.parametrize("name", ["mmg_vid", "hieravid"])
def test_only_a_measured_part_is_stamped_with_questions_and_hardware(made, name, tmp_path, monkeypatch):
    view = (mmg_vid_table if name == "mmg_vid" else hieravid_table)(scores(made, name), "tiny")
    found = stamps_of(view, tmp_path, monkeypatch)
    assert found.pop(f"{name}_measured") == (ORIGIN.headline, ORIGIN.footer)
    assert set(found) == ({"mmg_vid"} if name == "mmg_vid" else {"hieravid", "hieravid_schedules"})
    for headline, footer in found.values():
        assert "derived, no model was run" in headline
        assert "n =" not in footer and ORIGIN.hardware not in footer


def test_a_budget_that_was_not_met_is_said_below_the_name(made):
    found = made("hieravid")
    records = [
        replace(r, budget=replace(r.budget, off_per_frame=-2.3)) if c.row == "HoliTom (w/o M)" else r
        for c, r in zip(found.cells, found.records, strict=True)
    ]
    part = hieravid_table(score_frame(found.cells, records, "tiny", samples=found.samples), "tiny").parts[2]
    said = {row.cells[0].second for row in rows_of(part) if row.cells[0].value == "HoliTom (w/o M)"}
    assert said == {f"2.3 tokens per frame under the asked {share} %" for share in (30, 20, 10)}
    assert {row.cells[0].second for row in rows_of(part) if row.cells[0].value != "HoliTom (w/o M)"} == {""}
    met = hieravid_table(scores(made, "hieravid"), "tiny").parts[2]
    assert "Below a name" in part.caption and "Below a name" not in met.caption
    bold = {row.cells[0].value for row in rows_of(part) if row.cells[0].bold}
    assert bold == {f"HieraVid {share} %" for share in (30, 20, 10)}


def test_pairs_are_compared_at_the_same_model_and_budget(made):
    found = made("mmg_vid")
    pairs = [("MMG-Vid", "MMG-Vid (opposite gain)"), ("MMG-Vid", "PruneVid"), ("MMG-Vid", "no such row")]
    table = compare(found.cells, "tiny", pairs, samples=found.samples)
    assert len(table[table["b"] == "MMG-Vid (opposite gain)"]) == 5 and "no such row" not in set(table["b"])
    assert (table["diff"] == 0).all() and (table["changed"] == 0).all() and (table["p_holm"] == 1).all()
    assert compare(found.cells, "tiny", [("a", "b")], samples=found.samples).empty


def test_hieravids_rows_are_compared_at_the_share_that_they_stand_for(made):
    """At the budget before the language model HieraVid's 30 %, which lets half in, would meet neither FastV nor random
    dropping."""
    found = made("hieravid")
    pairs = [("HieraVid 30 %", "FastV"), *((f"HieraVid {share} %", "Random") for share in (30, 10))]
    table = compare(found.cells, "tiny", pairs, samples=found.samples, at=share_of)
    assert list(zip(table["b"], table["model"], table["at"], strict=True)) == [
        *[("FastV", model, 0.3) for model in ("video", "onevision")],
        *[("Random", model, 0.3) for model in ("video", "onevision")],
        ("Random", "video", 0.1),
    ]
    assert compare(found.cells, "tiny", pairs, samples=found.samples).empty
