"""What tables and figures show: printed numbers beside measured ones, joined by key, and nothing left out."""

import matplotlib
import pandas as pd
import pytest
import seaborn as sns
from matplotlib.figure import Figure
from PIL import Image

from holitom_repro import claims, papers, scores, style, tables

matplotlib.use("Agg")
PRINTED = papers.printed("table1")


def frame(rows, model="onevision", **more):
    """rows: key -> average score; FLOPs in % are three quarters of the budget."""
    made = []
    for key, accuracy in rows.items():
        method, _, budget = key.rpartition("@") if "@" in key else (key, "", "1")
        for benchmark, plus in (("tiny_long", 1.0), ("average", 0.0)):
            row = {"key": key, "method": method, "budget": float(budget), "model": model, "benchmark": benchmark}
            row |= {"accuracy": accuracy + plus, "low": accuracy - 1, "high": accuracy + 1.5, "limit": None}
            row |= {"diff": accuracy - 95 or float("nan"), "diff_low": accuracy - 96, "diff_high": accuracy - 94}
            row |= {"kept_pct": 100 * float(budget), "flops_pct": 75 * float(budget), "tier": "tiny", "n": 1200}
            row |= {"answers": '{"A": 0.93, "B": 0.07}' if method == "PruneVid" else '{"A": 0.5, "B": 0.5}'}
            made.append(row | {"cell": "" if benchmark == "average" else "0" * 16} | more)
    return pd.DataFrame(made)


MEASURED = {"all tokens": 95.0, "HoliTom@0.10": 92.0, "VisionZip@0.10": 92.0, "PruneVid@0.10": 90.0, "Mine@0.10": 93.5}


def test_printed_rows_come_in_their_order_and_measured_ones_behind_them():
    table = tables.beside_printed(frame(MEASURED), PRINTED)
    assert list(table.index.get_level_values("method")) == [*PRINTED["method"].replace("Vanilla", "all tokens"), "Mine"]
    row = table.loc[(10.0, "HoliTom")]
    assert row["average", "printed"] == 57.9 and row["FLOPs (%)", "printed"] == 6.9
    assert row["average", "measured"] == "92.0 [91.0, 93.5] −3.0*"
    assert row["% of all tokens", "printed"] == 99.1
    assert row["% of all tokens", "measured"] == pytest.approx(100 * 92 / 95)
    mine, absent = table.loc[(10.0, "Mine")], table.loc[(25.0, "DyCoke")]
    assert pd.isna(mine["average", "printed"]) and mine["average", "measured"].startswith("93.5")
    assert absent["average", "printed"] == 54.1 and pd.isna(absent["average", "measured"])


def test_each_model_stands_beside_the_one_whose_presets_it_takes():
    both = pd.concat([frame(MEASURED, "video"), frame({"all tokens": 90.0}, "data/my-own")])
    table = tables.beside_printed(both, papers.printed("table2"))
    blocks = list(dict.fromkeys(table.index.get_level_values("model")))
    assert blocks == ["video for video-7b", "data/my-own for ov-72b"]
    assert table.loc[("video for video-7b", 15.0, "HoliTom"), ("average", "printed")] == 57.7
    only = tables.beside_printed(frame(MEASURED, "video"), papers.printed("table2"))
    assert only.loc[("ov-72b", 15.0, "HoliTom"), ("average", "printed")] == 60.1


def test_scores_of_other_benchmarks_say_which():
    table = tables.beside_printed(frame(MEASURED), PRINTED, {"longvideobench": "tiny_long", "avg": "average"})
    assert table.loc[(10.0, "HoliTom"), ("LongVideoBench / tiny_long", "measured")].startswith("93.0 [")
    assert table.loc[(10.0, "HoliTom"), ("LongVideoBench / tiny_long", "printed")] == 56.3


def test_printed_is_grey_and_italic_and_only_the_best_is_bold():
    table = tables.beside_printed(frame(MEASURED), PRINTED)
    css = style_of(tables.styled(table), table)
    assert "a caption" in tables.styled(table, "a caption").to_html()
    assert "font-style:italic" in css[(10.0, "HoliTom"), ("average", "printed")]
    assert "italic" not in css[(10.0, "HoliTom"), ("average", "measured")]
    bold = {(row, column) for (row, column), text in css.items() if "700" in text}
    assert bold == {((10.0, "Mine"), ("average", "measured")), ((10.0, "PruneVid"), tables.USUAL)}
    shared = tables.beside_printed(frame(MEASURED | {"Mine@0.10": 91.0}), PRINTED)
    css = style_of(tables.styled(shared), shared)
    bold = {row for (row, column), text in css.items() if "700" in text and column != tables.USUAL}
    assert bold == {(10.0, "HoliTom"), (10.0, "VisionZip")}


def style_of(styler, table):
    """(row, column) -> css of a Styler."""
    styler._compute()
    return {
        (table.index[i], table.columns[j]): ";".join(f"{name}:{value}" for name, value in css)
        for (i, j), css in styler.ctx.items()
    }


def test_what_is_derived_does_not_look_printed():
    table = pd.DataFrame({("FLOPs (%)", "printed"): [6.9], ("FLOPs (%)", "derived"): [6.86]})
    css = style_of(tables.styled(table), table)
    assert "italic" in css[0, ("FLOPs (%)", "printed")] and (0, ("FLOPs (%)", "derived")) not in css


def test_controls_stand_beside_every_row_of_their_budget(monkeypatch):
    asked = []

    def compare(scores, pairs):
        asked.extend(pairs)
        row = {"value": 2.0, "low": -0.5, "high": 4.5, "p_holm": 0.2, "mcnemar_p": 0.0612}
        return pd.DataFrame([{"a": a, "b": b, **row} for a, b in pairs])

    monkeypatch.setattr(scores, "compare", compare)
    rows = MEASURED | {"Random@0.10": 80.0, "HoliTom@0.25": 94.0, "Uniform stride@0.25": 90.0}
    table = tables.beside_controls(frame(rows, layer_pct=9.0))
    assert ("HoliTom@0.25", "Uniform stride@0.25") in asked and ("Mine@0.10", "Random@0.10") in asked
    assert all(a.rpartition("@")[2] == b.rpartition("@")[2] for a, b in asked) and len(asked) == 5
    assert table.loc[(10.0, "HoliTom"), ("over Random", "points")] == "+2.0 [-0.5, +4.5]"
    assert table.loc[(10.0, "HoliTom"), ("over Uniform stride", "points")] == "", "not measured at this budget"
    assert "0.061" in tables.styled(table).to_html() and table.loc[(10.0, "PruneVid"), tables.USUAL] == 93


def test_verdicts_have_a_glyph_and_unexpected_ones_say_so():
    rows = [{"id": "x", "claim": "c", "printed": "1", "ours": 1.0, "interval": "", "verdict": "OPEN", "why": "w"}]
    rows += [rows[0] | {"id": "y", "verdict": "FAILS", "ours": None}]
    html = tables.verdict_table(pd.DataFrame(rows).assign(expected="OPEN")).to_html()
    assert "? OPEN" in html and "✗ FAILS" in html and html.count(">OPEN<") == 1
    assert set(style.VERDICTS) == {word for words in claims.WORDS.values() for word in words}


def test_an_ablation_says_what_is_left_after_correction(monkeypatch):
    p = {"a@0.10": 0.01, "b@0.10": 0.04, "same@0.10": 1.0}

    def compare(frame, pairs, benchmark):
        rows = [{"a": a, "b": b, "value": -2.0, "low": -3.0, "high": -1.0, "p": p[a], "changed": 9} for a, b in pairs]
        rows[-1] |= {"value": 0.0, "changed": 0}
        return pd.DataFrame(rows).assign(p_holm=[0.03, 0.08, 1.0])

    monkeypatch.setattr(scores, "compare", compare)
    table = tables.ablation_table(
        frame({"all tokens": 95.0, "default@0.10": 92.0, **dict.fromkeys(p, 90.0)}), "default@0.10"
    )
    said = ["", "", "▼ below", "not told apart", "no answer changes"]
    assert list(table["beside the default"]) == said and table.loc["a@0.10", "p (Holm)"] == 0.03


def test_saved_tables_keep_every_row(runs):
    table = tables.beside_printed(frame(MEASURED), PRINTED)
    path = tables.save(table, "table1")
    assert path == runs / "figures" / "tiny" / "table1.md"
    text, csv = path.read_text(encoding="utf-8"), pd.read_csv(path.with_suffix(".csv"))
    assert len(csv) == len(table) == len(text.splitlines()) - 2
    assert {"method", "average printed", "average measured"} <= set(csv.columns) and "−3.0*" in text
    small = pd.DataFrame({"budget": [0.02], "p (Holm)": [0.004], "points": pd.Series([49.58], dtype=object)})
    assert "| 0.02     | 0.004      | 49.6 " in tables.save(small, "small").read_text(encoding="utf-8")


def test_a_trial_and_a_folder_of_ones_own_leave_the_figures_alone(runs):
    trial = tables.beside_printed(frame(MEASURED, limit=5), PRINTED)
    assert tables.save(trial, "table1") == runs / "tiny" / "trial" / "table1.md"
    assert tables.save(trial, "table1", out=runs / "mine") == runs / "mine" / "table1.md"
    assert style.folder(frame(MEASURED), "paper") == runs / "figures" / "paper"


def test_every_method_is_drawn_also_one_that_nobody_knows():
    points = frame({**MEASURED, "Another one@0.10": 91.0})
    looks = style.looks(points["method"])
    assert set(looks["palette"]) == set(looks["hue_order"]) == set(points["method"])
    assert style.look("Mine") == style.look("Mine") != style.look("Another one")
    del looks["dashes"]  # of lines
    ax = sns.scatterplot(points, x="flops_pct", y="accuracy", hue="method", style="method", ax=axes(), **looks)
    assert {text.get_text() for text in ax.get_legend().get_texts()} == set(points["method"])
    assert len(ax.collections[0].get_offsets()) == len(points)


def axes():
    return Figure(figsize=(5, 3)).subplots()


def test_no_two_known_methods_look_alike():
    assert len(set(style.LOOKS.values())) == len(style.LOOKS)


def test_a_figure_says_where_it_comes_from_and_is_the_same_twice(runs):
    points = frame(MEASURED, device="cpu", code="0123456789abcdef", created="2026-11-30T10:00:00")
    saved = []
    for name in ("one", "two"):
        palette = style.looks(points["method"])["palette"]
        ax = sns.lineplot(points, x="flops_pct", y="accuracy", hue="method", palette=palette, ax=axes())
        style.stamp(ax.figure, points)
        saved.append(style.save_figure(ax.figure, name, points))
    said = "tiny tier: trends only, not the paper's model · n = 1200 questions · cpu · code 01234567 · 2026-11-30"
    assert style.origin(points) == said
    assert saved[0].read_bytes() == saved[1].read_bytes() and saved[0].stat().st_size < 120_000
    with Image.open(saved[0]) as picture:
        assert "Software" not in picture.info and picture.width > 700
    assert len(pd.read_csv(saved[0].with_suffix(".csv"))) == len(points)
    assert style.origin(points.assign(limit=5)).startswith("TRIAL")
