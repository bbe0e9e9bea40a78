"""HoliTom against plain loops (oracle.py): counts, budgets, precisions, odd input, its variants, the inner stage."""

from dataclasses import replace

import oracle
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from videos import BUDGETS, VIDEOS, check, equals, prompts, same, scenes, video_of

from holitom.methods.base import budget_tokens
from holitom.methods.holitom import HoliTom, HoliTomMerge
from holitom.methods.holitom_variants import (
    CutAtChanges,
    DynamicByClusters,
    EachTheOtherWay,
    FixedWindows,
    StaticBySaliency,
)
from holitom.ops import clusters
from holitom.types import VideoFeatures


def equals_the_loop(video, budget, tolerance=1e-5, **setting):
    kept, expected = HoliTom(**setting)(video, budget), oracle.outer(video.tokens, video.saliency, budget, **setting)
    if expected:
        equals(kept, expected, atol=tolerance, rtol=tolerance)
    else:  # the release may keep nothing of a tiny video; ours then keeps one token
        assert len(kept) == 1


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("budget", [0.1, 0.25, 0.6])
def test_equals_the_plain_loop(seed, budget, monkeypatch):
    """Groups of many sizes are padded to one; every other time each is a chunk of its own."""
    if seed % 2:
        monkeypatch.setattr(clusters, "workspace", lambda rows: 1)
    frames, height, width = torch.randint(1, 12, (3,), generator=torch.Generator().manual_seed(seed)).tolist()
    setting = {"tau": [0.65, 0.8][seed % 2], "beta": [0.6, 0.3, None][seed % 3], "k": [7, 3, 2, 1][seed % 4]}
    video = scenes(2 * frames, (height, width), 24, seed)
    equals_the_loop(video, budget, max_window=[1024, 1, 2, 5][seed % 4], **setting)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_equals_the_plain_loop(dtype):
    equals_the_loop(scenes(16, (6, 5), 32, 4, dtype), 0.2, 2 * torch.finfo(dtype).eps)


@settings(max_examples=50)
@given(
    VIDEOS, BUDGETS, st.sampled_from([FixedWindows, CutAtChanges, StaticBySaliency, DynamicByClusters, EachTheOtherWay])
)
def test_exact_counts_of_variants_are_exact(video, budget, method):
    kept = method(counts="exact")(video, budget)
    check(video, kept)
    assert len(kept) == budget_tokens(video, budget)


def test_an_exact_count_is_refilled_with_the_most_salient():
    """A still video of 4 frames and 6 cells: merging over time leaves 6 tokens; 9 are wanted."""
    video = video_of(4, (2, 3), 8, "still", torch.float32, 0)
    saliency = torch.arange(24.0).reshape(4, 6)
    kept = HoliTom(counts="exact")(replace(video, saliency=saliency), 9 / 24)
    assert (kept.frame * 6 + kept.cell).tolist() == [0, 1, 2, 3, 4, 5, 21, 22, 23]
    assert kept.size.tolist() == [4] * 6 + [1] * 3


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
    assert CutAtChanges(min_similar=0.8).segments(video).removed == 0
    assert FixedWindows(max_window=2).segments(video).pairs == [(0, 1), (2, 2)]
    share = DynamicByClusters(tau=1.0, cluster_share=0.5)(scenes(6, (4, 4), 16), 0.5)
    assert len(share) == 48 and (share.size > 1).any() and (share.size == 1).any()
    assert same(DynamicByClusters(cluster_share=0.0)(video, 0.4), HoliTom()(video, 0.4))


@given(prompts(), st.sampled_from([0.0, 0.1, 0.5, 0.8, 0.99]), st.sampled_from(["running", "mean"]))
def test_inner_equals_folding_one_token_after_the_other(prompt, ratio, average):
    hidden, score, visual, _, _ = prompt
    score = score[0, 0]
    keep, rows = HoliTomMerge(4, ratio, average)(hidden, score, visual, n0=len(visual))
    expected, expected_rows = oracle.fold(hidden, score, visual, ratio, average)
    assert keep.tolist() == expected
    tolerance = 1e-5 if hidden.dtype == torch.float32 else 2 * torch.finfo(hidden.dtype).eps
    torch.testing.assert_close(rows, expected_rows, atol=tolerance, rtol=tolerance)


def test_a_long_fold_underflows_quietly_and_a_prompt_may_be_text():
    rows = torch.ones(201, 2)
    keep, merged = HoliTomMerge(1, 0.995)(rows, torch.zeros(201), torch.arange(201), n0=201)
    assert keep.tolist() == [0]
    torch.testing.assert_close(merged, torch.ones(1, 2))
    assert torch.equal(HoliTomMerge(1, 0.5)(rows, torch.zeros(201), torch.arange(0), n0=0)[1], rows)
