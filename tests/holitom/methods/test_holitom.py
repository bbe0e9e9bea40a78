"""HoliTom against plain loops (oracle.py): counts, budgets, precisions, odd input, its variants, the inner stage."""

from dataclasses import replace

import oracle
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from videos import BUDGETS, VIDEOS, check, same, scenes, video_of

from holitom.errors import BadUsage
from holitom.methods.holitom import HoliTom, HoliTomMerge
from holitom.methods.holitom_variants import (
    CutAtChanges,
    DynamicByClusters,
    EachTheOtherWay,
    FixedWindows,
    StaticBySaliency,
)
from holitom.types import VideoFeatures

VARIANTS = [FixedWindows, CutAtChanges, StaticBySaliency, DynamicByClusters, EachTheOtherWay]


def equals_the_loop(video, budget, tolerance=1e-5, **setting):
    kept, expected = HoliTom(**setting)(video, budget), oracle.outer(video.tokens, video.saliency, budget, **setting)
    if not expected["frame"]:  # the release may keep nothing of a tiny video; ours then keeps one token
        assert len(kept) == 1
        return
    for name in ("frame", "cell", "size"):
        assert getattr(kept, name).tolist() == expected[name]
    torch.testing.assert_close(kept.tokens.float(), expected["tokens"].float(), atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("budget", [0.1, 0.25, 0.6])
def test_equals_the_plain_loop(seed, budget):
    frames, height, width = torch.randint(1, 12, (3,), generator=torch.Generator().manual_seed(seed)).tolist()
    setting = {"tau": [0.65, 0.8][seed % 2], "beta": [0.6, 0.3, None][seed % 3], "k": [7, 3, 2, 1][seed % 4]}
    video = scenes(2 * frames, (height, width), 24, seed)
    equals_the_loop(video, budget, max_window=[1024, 1, 2, 5][seed % 4], **setting)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_equals_the_plain_loop(dtype):
    equals_the_loop(scenes(16, (6, 5), 32, 4, dtype), 0.2, 2 * torch.finfo(dtype).eps)


@settings(max_examples=80)
@given(VIDEOS, BUDGETS)
def test_any_video_any_budget(video, budget):
    before, kept = video.tokens.clone(), HoliTom()(video, budget)
    check(video, kept)
    assert same(kept, HoliTom()(video, budget)) and torch.equal(video.tokens, before)
    if budget == 1:
        assert torch.equal(kept.tokens, video.tokens.flatten(0, 1))
        return
    total, left = video.frames * video.cells, video.frames * video.cells - HoliTom().segments(video).removed
    # ceil per frame and round per segment: above the budget by less than one token per frame and half per segment.
    assert len(kept) <= max(1, min(budget * total + 1.5 * video.frames, left))


@settings(max_examples=60)
@given(VIDEOS, BUDGETS, st.sampled_from([HoliTom, *VARIANTS]))
def test_exact_counts_are_exact(video, budget, method):
    kept = method(counts="exact")(video, budget)
    check(video, kept)
    assert len(kept) == max(1, round(budget * (video.frames * video.cells)))


def test_an_exact_count_is_refilled_with_the_most_salient():
    """A still video of 4 frames and 6 cells: merging over time leaves 6 tokens; 9 are wanted."""
    video = video_of(4, (2, 3), 8, "still", torch.float32, 0)
    saliency = torch.arange(24.0).reshape(4, 6)
    kept = HoliTom(counts="exact")(replace(video, saliency=saliency), 9 / 24)
    assert (kept.frame * 6 + kept.cell).tolist() == [0, 1, 2, 3, 4, 5, 21, 22, 23]
    assert kept.size.tolist() == [4] * 6 + [1] * 3
    assert torch.equal(kept.tokens[6:], video.tokens[3, 3:])


def test_variants_by_hand():
    """Two cells stand still over three frames, one changes; saliency says which static cell survives."""
    still = torch.tensor([[1.0, 0, 0], [0, 1, 0]])
    moving = torch.tensor([[0, 0, 1.0], [0, 0, -1], [0, 0, 1]])
    tokens = torch.stack([torch.cat([still, moving[t : t + 1]]) for t in range(3)])
    video = VideoFeatures(tokens, (1, 3), torch.tensor([[0.1, 0.3, 0.2]] * 3))
    kept = StaticBySaliency(counts="exact")(video, 3 / 9)
    # 9 tokens, 4 removed by merging, 5 left; of 3 tokens, one goes to the two static cells and two to the frames.
    assert kept.cell.tolist() == [1, 2, 2] and kept.frame.tolist() == [0, 0, 1] and kept.size.tolist() == [3, 1, 1]
    assert HoliTom().segments(video).pairs == CutAtChanges().segments(video).pairs == [(0, 2)]
    assert (
        CutAtChanges(min_similar=0.8).segments(video).removed == FixedWindows(max_window=1).segments(video).removed == 0
    )
    assert FixedWindows(max_window=2).segments(video).pairs == [(0, 1), (2, 2)]
    share = DynamicByClusters(tau=1.0, cluster_share=0.5)(scenes(6, (4, 4), 16), 0.5)
    assert len(share) == 48 and (share.size > 1).any() and (share.size == 1).any()
    assert same(DynamicByClusters(cluster_share=0.0)(video, 0.4), HoliTom()(video, 0.4))


def test_sizes_add_up_where_nothing_is_dropped():
    video = video_of(10, (5, 5), 16, "still", torch.float32, 0)
    kept = HoliTom()(video, 0.05)
    assert kept.size.sum() == 10 * 25 and len(kept) == round(25 * 0.5)


def test_cells_may_be_numbered_in_any_order():
    video, order = scenes(12, (5, 6), 32, 8), torch.randperm(30, generator=torch.Generator().manual_seed(0))
    mixed = replace(video, tokens=video.tokens[:, order], saliency=video.saliency[:, order])
    plain, moved = HoliTom()(video, 0.2), HoliTom()(mixed, 0.2)
    places = {(int(f), int(c)): row for f, c, row in zip(plain.frame, plain.cell, plain.tokens, strict=True)}
    assert len(plain) == len(moved)
    for frame, cell, row in zip(moved.frame, order[moved.cell], moved.tokens, strict=True):
        torch.testing.assert_close(places[int(frame), int(cell)], row)


def test_strided_features():
    video = scenes(8, (4, 4), 32, 3)
    strided = replace(video, tokens=torch.stack([video.tokens] * 2, dim=-1)[..., 0])
    assert not strided.tokens.is_contiguous() and same(HoliTom()(video, 0.3), HoliTom()(strided, 0.3))


@pytest.mark.parametrize("wrong", [{"k": 0}, {"max_window": 0}, {"beta": 1.5}, {"counts": "some"}])
def test_wrong_parameters_are_refused(wrong):
    with pytest.raises(BadUsage, match=str(next(iter(wrong)))):
        HoliTom(**wrong)


def test_fidelity_names_what_equals_the_release():
    assert HoliTom(tau=0.65).fidelity == HoliTomMerge(3, 0.5, causal=False, include_newlines=True).fidelity == "golden"
    assert FixedWindows().fidelity == HoliTom(counts="exact").fidelity == "reconstruction"
    assert HoliTomMerge(3, 0.5).fidelity == "port"


@st.composite
def prompts(draw):
    """hidden [S, D], score [S], ascending visual ids: not always one block, as newlines leave gaps."""
    seq = draw(st.integers(1, 60))
    visual = sorted(draw(st.sets(st.integers(0, seq - 1))))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    dtype = draw(st.sampled_from([torch.float32, torch.bfloat16, torch.float16]))
    hidden = torch.randn(seq, 6, generator=generator).to(dtype)
    return hidden, torch.rand(seq, generator=generator), torch.tensor(visual, dtype=torch.long)


@given(prompts(), st.sampled_from([0.0, 0.1, 0.5, 0.8, 0.99]), st.sampled_from(["running", "mean"]))
def test_inner_equals_folding_one_token_after_the_other(case, ratio, average):
    hidden, score, visual = case
    before = hidden.clone()
    keep, rows = HoliTomMerge(4, ratio, average)(hidden, score, visual, n0=len(visual))
    assert torch.equal(hidden, before) and rows.dtype == hidden.dtype
    if not len(visual):
        assert torch.equal(rows, hidden)
        return
    expected, expected_rows = oracle.fold(hidden, score, visual, ratio, average)
    assert keep.tolist() == expected
    tolerance = 1e-5 if hidden.dtype == torch.float32 else 2 * torch.finfo(hidden.dtype).eps
    torch.testing.assert_close(rows, expected_rows, atol=tolerance, rtol=tolerance)


def test_a_long_fold_underflows_quietly_and_ties_keep_the_first():
    rows = torch.ones(201, 2)
    keep, merged = HoliTomMerge(1, 0.995)(rows, torch.zeros(201), torch.arange(201), n0=201)
    assert keep.tolist() == [0]
    torch.testing.assert_close(merged, torch.ones(1, 2))
    keep, _ = HoliTomMerge(1, 0.5)(torch.ones(10, 4), torch.zeros(10), torch.arange(2, 8), n0=6)
    assert keep.tolist() == [0, 1, 2, 3, 4, 8, 9]
    assert (
        HoliTomMerge(1, 0.5, "mean")(torch.zeros(10, 4), torch.zeros(10), torch.arange(10), n0=10)[1].isfinite().all()
    )
