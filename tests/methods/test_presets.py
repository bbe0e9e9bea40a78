import pytest
import torch

from holitom_repro import paper
from holitom.errors import BadUsage
from holitom.flops import LLMShape
from holitom.methods import (
    DyCoke,
    FastV,
    FastVID,
    HieraVid,
    HoliTom,
    HoliTomMerge,
    MMGVid,
    PruneVid,
    PruneVidSelect,
    PyramidDropStage,
    VisionZip,
)
from holitom.methods.presets import CELLS, preset, preset_names
from holitom.types import VideoFeatures

PRINTED = [
    (name, row.model, row.method, row.retained_pct)
    for name in ("table1", "table2")
    for row in paper.table(name).itertuples()
]
PDROP = tuple(PyramidDropStage(k, r) for k, r in ((2, 0.5), (7, 0.25), (14, 0.125)))


@pytest.mark.parametrize("budget", [0.25, 0.20, 0.15, 0.10])
def test_table1(budget):
    cell = preset("table1", "HoliTom", budget)
    tau = 0.65 if budget == 0.10 else 0.80
    assert cell.reduction.outer == HoliTom(tau=tau, beta=0.6, k=7, max_window=1024)
    assert cell.reduction.budget == budget
    assert cell.reduction.inner == (HoliTomMerge(layer=18, ratio=0.5),)
    assert (cell.model, cell.frames, cell.layers) == ("ov-7b", 32, 28)
    without = preset("table1", "HoliTom (w/o M)", budget)
    assert (without.reduction.outer, without.reduction.inner) == (cell.reduction.outer, ())
    for row, outer in (("VisionZip", VisionZip()), ("PruneVid", PruneVid()), ("FastVID", FastVID())):
        made = preset("table1", row, budget).reduction
        assert (made.outer, made.inner, made.decode) == (outer, (), None)


@pytest.mark.parametrize(("model", "layer", "frames", "layers"), [("ov-72b", 60, 32, 80), ("video-7b", 18, 64, 28)])
def test_table2(model, layer, frames, layers):
    cell = preset("table2", "HoliTom", model=model)
    assert cell.reduction.outer == HoliTom(tau=0.80)
    assert (cell.budget, cell.frames, cell.layers) == (0.15, frames, layers)
    assert cell.reduction.inner == (HoliTomMerge(layer=layer, ratio=0.5),)
    fastv = preset("table2", "FastV", model=model).reduction
    assert (fastv.outer, fastv.budget, fastv.inner) == (None, 1.0, (FastV(2, 0.8),))


def test_rows_with_one_budget_only():
    dycoke = preset("table1", "DyCoke").reduction
    assert (dycoke.outer, dycoke.budget, dycoke.inner) == (DyCoke(), 0.25, ())
    pdrop = preset("table1", "PDrop").reduction
    assert (pdrop.outer, pdrop.budget, pdrop.inner) == (None, 1.0, PDROP)


def visual_tokens(cell, dim=3):
    """What the preset's own stages leave of a video without anything static, layer by layer."""
    generator = torch.Generator().manual_seed(0)
    frames, cells = cell.frames, CELLS[cell.model]
    side = round(cells**0.5)
    made = cell.reduction
    if made.outer is None:
        left = frames * cells
    else:
        turn = 1 - 2 * (torch.arange(frames) % 2)[:, None, None]  # a frame is unlike its neighbours: nothing is static
        video = VideoFeatures(
            turn * torch.rand(frames, cells, dim, generator=generator),
            (side, side),
            saliency=torch.rand(frames, cells, generator=generator),
            keys=torch.randn(frames, cells, dim, generator=generator),
        )
        left = len(made.outer(video, made.budget))
    counts, n0 = [left] * cell.layers, left
    for stage in made.inner:
        hidden, score = torch.randn(left, dim, generator=generator), torch.rand(left, generator=generator)
        ids, _ = stage(hidden, score, torch.arange(left), n0)
        left = len(ids)
        counts[stage.layer :] = [left] * (cell.layers - stage.layer)
    return counts


@pytest.mark.parametrize(("table", "model", "method", "retained_pct"), PRINTED)
def test_every_printed_row_has_a_preset_with_the_printed_flops(table, model, method, retained_pct):
    cell = preset(table, method, retained_pct / 100, model)
    counts = visual_tokens(cell)
    expected = paper.layer_tokens(table, model, method, retained_pct)
    assert counts == expected
    rows = paper.table(table)
    printed = rows[(rows["model"] == model) & (rows["method"] == method) & (rows["retained_pct"] == retained_pct)]
    assert round(LLMShape.named(model).paper(counts) / 1e12, 1) == pytest.approx(printed["flops_t"].item())


def test_full_tokens_are_no_reduction():
    for table, model in (("table1", "ov-7b"), ("table2", "ov-72b"), ("table2", "video-7b")):
        full = preset(table, "Vanilla", model=model).reduction
        assert (full.outer, full.budget, full.inner) == (None, 1.0, ())


def test_inner_sweep():
    names = [row for _, row, _, _ in preset_names("fig-inner")]
    assert {row for row in names if "r=0.5" in row} == {
        f"{m} K={k} r=0.5" for m in ("FastV", "HoliTom") for k in (2, 7, 14, 18, 21)
    }
    assert {row for row in names if "K=14" in row} == {
        f"{m} K=14 r={r}" for m in ("FastV", "HoliTom") for r in (0.3, 0.4, 0.5, 0.6, 0.7)
    }
    assert len(names) == 18
    merging, dropping = (preset("fig_inner", f"{m} K=18 r=0.5").reduction for m in ("HoliTom", "FastV"))
    assert merging.outer == dropping.outer == preset("table1", "HoliTom", 0.10).reduction.outer
    assert merging.inner == (HoliTomMerge(18, 0.5),)
    assert dropping.inner == (FastV(18, 0.5),)


def test_frames_and_inference_have_every_printed_row():
    for row in paper.table("fig_frames").itertuples():
        assert preset("fig-frames", f"{row.method}, {row.frames} frames").frames == row.frames
    assert len(preset_names("fig-frames")) == len(paper.table("fig_frames"))
    assert {row for _, row, _, _ in preset_names("fig-inference")} == set(paper.table("fig_inference")["method"])


def test_every_name_is_a_preset_and_describes_itself():
    cells = [preset(*arguments) for arguments in preset_names()]
    assert len({(c.table, c.row, c.budget, c.model) for c in cells}) == len(cells)
    for cell in cells:
        asked = cell.reduction.describe()["budget"] * CELLS[cell.model]
        if cell.table != "hieravid":  # its printed share is a mean over the layers
            assert cell.budget * CELLS[cell.model] - 1e-9 <= asked < cell.budget * CELLS[cell.model] + 1
        assert cell.row.startswith(cell.reduction.name.split(",")[0])


def test_further_papers():
    assert preset("mmg-vid", "MMG-Vid", 0.25).reduction.outer == MMGVid()
    assert [(b, m) for _, row, b, m in preset_names("mmg-vid") if row == "MMG-Vid"] == [
        (0.25, "ov-7b"),
        (0.15, "ov-7b"),
        (0.15, "video-7b"),
        (0.10, "video-7b"),
    ]
    thirty = preset("hieravid", "HieraVid", 0.30).reduction
    assert (thirty.outer, thirty.budget, len(thirty.inner)) == (HieraVid(), 0.5, 3)
    both = preset("complete", "PruneVid + selection", 0.10).reduction
    assert (both.outer, both.inner) == (PruneVid(), (PruneVidSelect(11, 0.4),))
    assert preset("complete", "DyCoke + decode selection").reduction.decode.layer == 3


def test_the_released_variants():
    stage = preset("table1", "HoliTom", 0.15, released=True).reduction.inner[0]
    assert (stage.causal, stage.include_newlines, stage.average, stage.fidelity) == (False, True, "running", "golden")
    assert preset("table1", "HoliTom", 0.15).reduction.inner[0].causal
    for row in ("VisionZip", "PruneVid"):
        made = preset("table1", row, 0.20, released=True).reduction
        assert made.outer.released and made.outer.fidelity == "golden"
        assert made.budget == pytest.approx(40 / 196)
    assert preset("table1", "FastVID", 0.20, released=True).reduction.budget == 0.20
    assert all(stage.released for stage in preset("table1", "PDrop", released=True).reduction.inner)
    full = preset("table1", "Vanilla")
    assert preset("table1", "Vanilla", released=True).reduction.outer is full.reduction.outer


@pytest.mark.parametrize(("layers", "expected"), [(28, 18), (6, 4), (12, 8), (80, 51), (2, 1)])
def test_scaled_to_another_depth(layers, expected):
    assert preset("table1", "HoliTom", 0.10).scaled(layers).inner[0].layer == expected


def test_scaled_stays_inside_the_decoder():
    assert preset("table2", "FastV", model="ov-72b").scaled(6).inner[0].layer == 1
    assert preset("fig-inner", "HoliTom K=21 r=0.5").scaled(6).inner[0].layer == 5
    assert preset("fig-inner", "HoliTom K=21 r=0.5").scaled(2).inner[0].layer == 1
    assert preset("complete", "DyCoke + decode selection").scaled(6).decode.layer == 1


@pytest.mark.parametrize(("layers", "expected"), [(28, (2, 7, 14)), (6, (1, 2, 3)), (5, (1, 2, 3)), (4, (1, 2, 3))])
def test_scaled_stages_stay_apart(layers, expected):
    stages = preset("table1", "PDrop").scaled(layers).inner
    assert tuple(stage.layer for stage in stages) == expected
    assert tuple(stage.ratio for stage in stages) == (0.5, 0.25, 0.125)
    assert [s.layer for s in preset("hieravid", "HieraVid", 0.30).scaled(6).inner] == [2, 3, 5]


def test_too_few_layers_for_the_stages():
    with pytest.raises(BadUsage, match="3 stages inside the decoder, which has 3 layers"):
        preset("table1", "PDrop").scaled(3)


def test_a_budget_in_whole_tokens_is_of_the_papers_grid_only():
    cell = preset("table1", "VisionZip", 0.20)
    assert cell.reduction.budget == pytest.approx(40 / 196)
    assert cell.scaled(6).budget == 0.20
    assert preset("hieravid", "HieraVid", 0.30).scaled(6).budget == 0.5  # what enters the model, not the mean


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("table9", "HoliTom"), "no presets for 'table9'. Choose from table1"),
        (("table1", "Nonsense"), "no row 'Nonsense' here. Choose from Vanilla, FastV"),
        (("table1", "HoliTom", 0.3), "no budget 0.3 here. Choose from 0.25, 0.2, 0.15, 0.1"),
        (("table1", "HoliTom"), "several cells. Say which of model=ov-7b budget=0.25"),
        (("table2", "HoliTom", 0.15), "several cells. Say which of model=ov-72b"),
        (("table2", "HoliTom", 0.15, "gpt"), "no model 'gpt' here. Choose from ov-72b, video-7b"),
    ],
)
def test_unknown_cells_name_the_choices(arguments, message):
    with pytest.raises(BadUsage) as error:
        preset(*arguments)
    assert message in str(error.value)
