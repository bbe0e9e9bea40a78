"""Every printed cell is there with its source, and every cell that can be re-derived comes out to the printed digit."""

from __future__ import annotations

import pandas as pd
import pytest

from holitom_repro import paper, paths
from holitom.errors import BadUsage
from holitom.flops import LLM_SHAPES, outer_tokens

TABLES = [(name, row) for name in ("table1", "table2") for row in paper.flops_columns(name).itertuples()]
LABELS = [f"{name}-{row.model}-{row.method}-{row.retained_pct}" for name, row in TABLES]


@pytest.mark.parametrize(("name", "row"), TABLES, ids=LABELS)
def test_flops_cells_to_the_printed_digit(name: str, row: tuple) -> None:
    assert f"{row.flops_t_derived:.1f}" == f"{row.flops_t:.1f}"
    assert f"{row.flops_pct_rounded:.1f}" == f"{row.flops_pct:.1f}"


def test_the_exact_ratio_is_not_the_printed_one() -> None:
    """Both conventions: printed shares are ratios of rounded numbers; unrounded ones differ in the last digit."""
    cells = paper.flops_columns("table1")
    cell = cells[(cells["method"] == "VisionZip") & (cells["retained_pct"] == 25)].iloc[0]
    assert f"{cell.flops_pct:.1f}" == "21.3" == f"{100 * 8.7 / 40.8:.1f}"
    assert f"{cell.flops_pct_exact:.1f}" == "21.4"
    differ = (cells["flops_pct_exact"].round(1) - cells["flops_pct"]).abs() > 0.05
    assert 5 < differ.sum() < len(cells)


@pytest.mark.parametrize(("n", "printed"), [(6273, "429.3"), (6272, "429.3")])
def test_the_newline_token_is_not_counted(n: int, printed: str) -> None:
    tera = LLM_SHAPES["ov-72b"].paper([n] * 80) / 1e12
    assert (f"{tera:.1f}" == printed) == (n == 6272)


@pytest.mark.parametrize("layer", [59, 61])
def test_neighbouring_layers_do_not_give_the_72b_cell(layer: int) -> None:
    counts = [960] * layer + [480] * (80 - layer)
    assert f"{LLM_SHAPES['ov-72b'].paper(counts) / 1e12:.1f}" != "51.6"


@pytest.mark.parametrize("name", ["table1", "table2"])
def test_averages_and_their_shares(name: str) -> None:
    rows = paper.table(name).dropna(subset="avg")
    base = rows[rows["method"] == "Vanilla"].set_index("model")["avg"]
    mean = rows[list(paper.BENCHMARKS)].mean(axis=1)
    share = 100 * rows["avg"] / rows["model"].map(base)
    assert ((mean - rows["avg"]).abs() <= 0.05 + 1e-9).all()
    assert ((share - rows["avg_pct"]).abs() <= 0.05 + 1e-9).all()


@pytest.mark.parametrize(
    ("method", "retained", "printed"), [("HieraVid", 30, "24.5"), ("FrameFusion", 30, "23.8"), ("HieraVid", 20, "17.2")]
)
def test_hieravid_percentages(method: str, retained: int, printed: str) -> None:
    shape = LLM_SHAPES["video-7b"]
    counts = paper.layer_tokens("hieravid", "video-7b", method, retained)
    assert f"{100 * shape.paper(counts) / shape.paper([10816] * 28):.1f}" == printed


def test_an_unknown_setting_is_refused_with_its_reason() -> None:
    with pytest.raises(BadUsage, match=r"not known .*39\.3"):
        paper.layer_tokens("hieravid", "video-7b", "FastV", 30)
    with pytest.raises(BadUsage, match="no setting is recorded"):
        paper.layer_tokens("table1", "ov-7b", "HoliTom", 12)


@pytest.mark.parametrize("name", paper.names())
def test_every_row_says_where_it_stands_and_how_it_was_read(name: str) -> None:
    rows = paper.table(name)
    assert len(rows) and rows["reading"].isin(paper.READINGS).all()
    assert (rows["paper"] != "").all() and (rows["place"] != "").all()
    assert not rows.duplicated().any()


def test_row_counts_and_open_cells() -> None:
    table = paper.table("table1")
    assert len(table) == 24 and len(paper.table("table2")) == 12
    assert set(table[table["avg"].isna()]["method"]) == {"FastVID"}
    assert len(paper.scores("table1")) == 24 * 4 - 4
    assert len(paper.tradeoff()) == 20


def test_every_flops_row_has_its_setting() -> None:
    known = paper.settings()
    assert known["stages_how"].isin(["", "fit", "script+fit", "code", "unknown"]).all()
    for name in ("table1", "table2"):
        assert len(known[known["table"] == name]) == len(paper.table(name))
        rows = known[known["table"] == name]
        fitted = [outer_tokens(row.frames, row.cells, float(row.retained_pct) / 100) for row in rows.itertuples()]
        assert fitted == rows["n"].tolist()


def test_curves_read_off_an_axis_carry_their_error() -> None:
    frames = paper.table("fig_frames")
    assert ((frames["uncertainty"] > 0) == (frames["reading"] == "axis")).all()


def test_the_inner_ablation_meets_table_1() -> None:
    inner = paper.table("fig_inner")
    point = inner[(inner["method"] == "HoliTom") & (inner["sweep"] == "K") & (inner["layer"] == 18)]["avg"].item()
    table = paper.table("table1")
    assert point == table[(table["method"] == "HoliTom") & (table["retained_pct"] == 10)]["avg"].item()
    both = inner[(inner["layer"] == 14) & (inner["ratio"] == 0.5)].groupby("method")["avg"]
    assert (both.nunique() == 1).all()  # the K sweep and the R sweep cross at one point


def test_reading_a_table_does_not_let_callers_change_it() -> None:
    mine = paper.table("table1")
    mine.loc[0, "avg"] = 0.0
    assert paper.table("table1").loc[0, "avg"] == 58.4


def test_unknown_names_are_refused() -> None:
    with pytest.raises(BadUsage, match="table1"):
        paper.table("table9")
    with pytest.raises(BadUsage):
        paper.scores("fig_inner")
    assert isinstance(paper.table("fig-inner"), pd.DataFrame)


def test_paths_are_inside_the_checkout() -> None:
    assert (paths.root() / "pyproject.toml").is_file()
    assert paths.data("papers", "table1.csv").is_file()
    assert {paths.runs().parent, paths.figures().parent} == {paths.root()}
