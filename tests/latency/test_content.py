"""Drawn videos follow the similarities that they are given, and settings reach the budget that they name."""

from dataclasses import replace

import pytest
import torch

from holitom.errors import BadUsage
from holitom_repro.latency.content import (
    QUANTILES,
    Similarity,
    drawn_video,
    forced,
    measure_similarity,
    recorded_similarity,
    similarity_of,
)
from holitom_repro.latency.settings import INSIDE, PRINTED, at_mean, printed_setting, row_of, setting
from holitom.methods import HoliTom
from holitom.ops.similarity import neighbour_cosine


def test_a_drawn_video_has_the_measured_similarities():
    wanted = similarity_of("clip")
    video = drawn_video(wanted, 64, (14, 14), 1024, seed=3, requires=("saliency", "keys"))
    found = measure_similarity(neighbour_cosine(video.tokens), "again")
    off = [abs(a - b) for a, b in zip(found.quantiles[1:-1], wanted.quantiles[1:-1], strict=True)]
    assert max(off) < 0.05
    assert found.cell_share == pytest.approx(wanted.cell_share, abs=0.12)
    assert found.frame_share == pytest.approx(wanted.frame_share, abs=0.15)
    assert video.saliency.sum(1).allclose(torch.ones(64)) and video.keys.shape == (64, 196, 72)


def test_a_forced_share_is_reached():
    video = drawn_video(forced(0.6), 12, (10, 10), 2048)
    share = (neighbour_cosine(video.tokens) > 0.8).float().mean()
    assert float(share) == pytest.approx(0.6, abs=0.04)
    still = HoliTom(tau=0.8)(drawn_video(forced(1.0), 12, (10, 10), 2048, requires=("saliency",)), 0.5)
    assert len(still) <= 100  # everything merges over time: one frame is left


def test_the_same_seed_gives_the_same_video():
    a, b, c = (drawn_video(forced(0.5), 4, (3, 3), 16, seed=seed).tokens for seed in (1, 1, 2))
    assert torch.equal(a, b) and not torch.equal(a, c)
    assert drawn_video(forced(0.5), 1, (3, 3), 16, dtype=torch.bfloat16).tokens.dtype == torch.bfloat16


def test_variance_of_cells_and_moments_is_found():
    draw = torch.Generator().manual_seed(0)
    cells = torch.randn(1, 80, generator=draw).expand(60, -1)
    found = measure_similarity(torch.tanh(cells), "cells")
    assert found.cell_share > 0.9 and found.frame_share < 0.05
    noise = measure_similarity(torch.rand(60, 80, generator=draw), "noise")
    assert noise.cell_share < 0.05 and noise.frame_share < 0.05
    assert noise.quantiles[10] == pytest.approx(0.5, abs=0.03) and len(noise.quantiles) == len(QUANTILES)


@pytest.mark.parametrize("text", ["clips", "static", "static:2", "static:x", "own:1"])
def test_unknown_contents_are_refused(text):
    with pytest.raises(BadUsage):
        similarity_of(text)


def test_known_contents():
    assert similarity_of("own") is None
    assert isinstance(similarity_of("clip-tower"), Similarity) and similarity_of("static:0.3").how.startswith("forced")


def test_the_printed_rows_keep_their_budgets():
    for row, budget in PRINTED:
        made = printed_setting(row, 28)
        assert made.budget == pytest.approx(budget, abs=0.005) and made.name == row
    assert printed_setting("HoliTom", 28).inner[0].layer == 18


@pytest.mark.parametrize("row", INSIDE)
def test_methods_inside_reach_the_mean_over_layers(row):
    made = setting(row, 0.10, "ov-7b", 28)
    kept = [1.0] * 28
    for stage in made.inner:
        kept[stage.layer :] = [1 - stage.ratio if row == "FastV" else stage.ratio] * (28 - stage.layer)
    assert sum(kept) / 28 == pytest.approx(0.10)
    with pytest.raises(BadUsage, match=r"above 7\.1%"):
        setting(row, 0.05, "ov-7b", 28)


def test_names_and_budgets_that_no_table_has():
    assert row_of("holitom-outer") == row_of("HoliTom (w/o M)") == "HoliTom (w/o M)"
    with pytest.raises(BadUsage, match="nearest: holitom"):
        row_of("holitim")
    assert setting("HoliTom", 0.03, "ov-7b", 28).budget == 0.03
    assert setting("HoliTom", 0.15, "video-7b", 28).outer.tau == 0.8
    assert setting("HoliTom", 0.10, "ov-7b", 28).outer.tau == 0.65
    assert setting("HoliTom", 0.15, "ov-72b", 20).inner[0].layer == 15
    with pytest.raises(BadUsage, match="no preset"):
        setting("Nothing", 0.1, "ov-7b", 28)
    assert at_mean(setting("FastV", 0.5, "ov-7b", 6).inner, 0.5, 6)[0].layer == 1


@pytest.mark.parametrize("similarity", [recorded_similarity(), recorded_similarity("tower"), forced(0.3)])
@pytest.mark.parametrize("budget", [0.10, 0.25])
def test_the_realised_budget_is_the_one_asked_for(budget, similarity):
    """By construction: a drawn video leaves what was asked, as features of a random tower, all alike, would not."""
    video = drawn_video(similarity, 32, (14, 14), 64, requires=("saliency",))
    kept = len(setting("HoliTom (w/o M)", budget, "ov-7b", 28).outer(video, budget).tokens)
    wanted = round(budget * 32 * 196)
    alike = torch.ones_like(video.tokens) + 1e-4 * video.tokens
    merged = len(setting("HoliTom (w/o M)", budget, "ov-7b", 28).outer(replace(video, tokens=alike), budget).tokens)
    assert abs(kept / wanted - 1) < 0.06
    assert merged < 0.7 * wanted
