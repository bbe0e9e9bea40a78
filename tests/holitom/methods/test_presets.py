"""Every preset is the cell it names: parameters, counts behind the printed FLOPs, other depths, other budgets."""

import pytest
import torch

from holitom.errors import BadUsage
from holitom.flops import LLM_SHAPES
from holitom.methods import FastV, FastVID, HieraVid, HoliTom, HoliTomMerge, PruneVid, PruneVidSelect, VisionZip
from holitom.methods.presets import CELLS, preset, preset_names
from holitom.types import VideoFeatures

OUTER_ONLY = {0.25: 8.7, 0.20: 7.0, 0.15: 5.2, 0.10: 3.4}
PRINTED = {
    ("Vanilla", "ov-7b"): {1.0: 40.8},
    ("FastV", "ov-7b"): {1.0: 9.3},
    ("PDrop", "ov-7b"): {1.0: 10.5},
    ("VisionZip", "ov-7b"): OUTER_ONLY,
    ("HoliTom (w/o M)", "ov-7b"): OUTER_ONLY,
    ("HoliTom", "ov-7b"): {0.25: 7.1, 0.20: 5.8, 0.15: 4.3, 0.10: 2.8},
    ("Vanilla", "ov-72b"): {1.0: 429.3},
    ("FastV", "ov-72b"): {1.0: 86.4},
    ("HoliTom (w/o M)", "ov-72b"): {0.15: 59.0},
    ("HoliTom", "ov-72b"): {0.15: 51.6},
    ("Vanilla", "video-7b"): {1.0: 80.2},
    ("FastV", "video-7b"): {1.0: 17.1},
    ("PDrop", "video-7b"): {1.0: 19.5},
    ("HoliTom (w/o M)", "video-7b"): {0.15: 9.3},
    ("HoliTom", "video-7b"): {0.15: 7.6},
}
"""TFLOPs of HoliTom's Tables 1 and 2 by budget."""


@pytest.mark.parametrize(("row", "model", "budget"), [(*cell, budget) for cell in PRINTED for budget in PRINTED[cell]])
def test_what_the_stages_leave_costs_the_printed_flops(row, model, budget):
    """On a video without anything static, layer by layer."""
    made = preset("table1" if model == "ov-7b" else "table2", row, budget, model)
    reduction, draw = made.reduction, torch.Generator().manual_seed(0)
    frames, cells = made.frames, CELLS[model]
    tokens = torch.rand(frames, cells, 3, generator=draw) * (1 - 2 * (torch.arange(frames) % 2)[:, None, None])
    saliency, keys = torch.rand(frames, cells, generator=draw), torch.randn(frames, cells, 3, generator=draw)
    video = VideoFeatures(tokens, (1, cells), saliency, keys)
    left = frames * cells if reduction.outer is None else len(reduction.outer(video, reduction.budget))
    counts, n0 = [left] * made.layers, left
    for stage in reduction.inner:
        score = torch.rand(left, generator=draw)
        left = len(stage(torch.randn(left, 3, generator=draw), score, torch.arange(left), n0)[0])
        counts[stage.layer :] = [left] * (made.layers - stage.layer)
    assert round(LLM_SHAPES[model].paper(counts) / 1e12, 1) == PRINTED[row, model][budget]


def test_holitoms_rows_are_the_released_ones_and_the_texts_stands_beside_them():
    for budget in (0.25, 0.20, 0.15, 0.10):
        released, text, outer = (preset("table1", f"HoliTom{row}", budget) for row in ("", " (text)", " (w/o M)"))
        assert released.reduction.outer == HoliTom(tau=0.65 if budget == 0.10 else 0.80)
        assert released.reduction.inner == (HoliTomMerge(18, 0.5, causal=False, include_newlines=True),)
        assert text.reduction.inner == (HoliTomMerge(18, 0.5),) and outer.reduction.inner == ()
        assert {made.reduction.budget for made in (released, text, outer)} == {budget}
        assert released.printed and outer.printed and not text.printed
    for model, layer, frames, layers in (("ov-72b", 60, 32, 80), ("video-7b", 18, 64, 28)):
        made = preset("table2", "HoliTom", model=model)
        assert (made.reduction.outer, made.budget, made.frames, made.layers) == (HoliTom(), 0.15, frames, layers)
        assert made.reduction.inner == (HoliTomMerge(layer, 0.5, causal=False, include_newlines=True),)


def test_the_other_rows():
    rows = {"VisionZip": (VisionZip(), 40 / 196), "PruneVid": (PruneVid(), 40 / 196), "FastVID": (FastVID(), 0.20)}
    for row, (outer, share) in rows.items():
        made = preset("table1", row, 0.20).reduction
        assert (made.outer, made.budget, made.inner, made.decode) == (outer, share, (), None)
    assert preset("complete", "PruneVid + selection", 0.10).reduction.inner == (PruneVidSelect(11, 0.4),)
    late = preset("later", "FlashVID", 0.10)
    assert late.printed and late.reduction.budget == pytest.approx(0.125) and late.reduction.inner[0].layer == 20
    assert preset("later", "FlashVID", 0.02).reduction.budget == pytest.approx(0.025), "at any budget, as it counts"
    assert not preset("later", "UniComp", 0.05).printed and preset("later", "Unified pool", 0.05).printed
    thirty = preset("hieravid", "HieraVid", 0.30).reduction
    assert (thirty.outer, thirty.budget, len(thirty.inner)) == (HieraVid(), 0.5, 3)


def test_the_figures_have_every_printed_point_and_every_name_is_one_preset():
    assert len(preset_names("fig_inner")) == 18 and len(preset_names("fig-frames")) == 16
    assert preset("fig_inner", "FastV K=18 r=0.5").reduction.inner == (FastV(18, 0.5),)
    assert preset("fig_inner", "HoliTom K=18 r=0.5").reduction.inner == preset("table1", "HoliTom", 0.1).reduction.inner
    assert preset("fig-frames", "PruneVid, 128 frames").frames == 128
    cells = [preset(*names) for names in preset_names()]
    assert len({str(cell.reduction.describe()) + cell.table + cell.model for cell in cells}) == len(cells)


def test_a_row_at_a_budget_that_is_not_printed():
    for table in ("table1", "fig-tradeoff"):
        made = preset(table, "HoliTom", 0.05)
        assert (made.budget, made.reduction.budget, made.printed) == (0.05, 0.05, False)
        assert made.reduction.outer == HoliTom(tau=0.65)  # the lowest preset, taken further
        assert made.reduction.inner == preset(table, "HoliTom", 0.15).reduction.inner
    assert preset("table2", "HoliTom", 0.10, "ov-72b").reduction.outer == HoliTom(tau=0.8)
    assert preset("table1", "VisionZip", 0.05).reduction.budget == 10 / 196
    assert preset("table1", "VisionZip", 0.05).scaled(6).budget == 0.05


def test_scaled_to_another_depth():
    for arguments, layers, stages in (
        (("table1", "HoliTom", 0.10), 6, [4]),
        (("table1", "HoliTom", 0.10), 2, [1]),
        (("fig-inner", "HoliTom K=21 r=0.5"), 6, [5]),
        (("table1", "PDrop"), 6, [1, 2, 3]),
        (("table1", "PDrop"), 4, [1, 2, 3]),
        (("hieravid", "HieraVid", 0.30), 6, [2, 3, 5]),
    ):
        assert [stage.layer for stage in preset(*arguments).scaled(layers).inner] == stages
    assert preset("table1", "VisionZip", 0.20).scaled(6).budget == 0.20  # whole tokens are of the paper's grid only
    assert preset("hieravid", "HieraVid", 0.30).scaled(6).budget == 0.5  # what enters the model, not the mean
    assert preset("complete", "DyCoke + decode selection").scaled(6).decode.layer == 1
    with pytest.raises(BadUsage, match="3 stages inside the decoder, which has 3 layers"):
        preset("table1", "PDrop").scaled(3)


def test_unknown_cells_name_the_choices():
    for arguments, message in (
        (("table9", "HoliTom"), "Choose from table1"),
        (("table1", "Nonsense"), "Choose from Vanilla, FastV"),
        (("table1", "FastV", 0.3), r"no budget 0\.3 here\. Choose from 1\.0"),
        (("table1", "HoliTom", 1.5), r"\(0, 1\]"),
        (("table1", "HoliTom"), r"Say which of model=ov-7b budget=0\.25"),
        (("table2", "HoliTom", 0.15, "gpt"), "Choose from ov-72b, video-7b"),
    ):
        with pytest.raises(BadUsage, match=message):
            preset(*arguments)
