"""MMG-Vid's segments, shares and guided density peaks against plain loops."""

import numpy as np
import oracle
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from videos import BUDGETS, VIDEOS, places, scenes

from holitom.methods.base import budget_tokens
from holitom.methods.mmg_vid import MMGVid, keep_ratios, marginal_gains, share_out
from holitom.types import VideoFeatures


def guided_peaks(x, lengths, counts):
    """Frame after frame, all pairs, straight from the description -> kept (frame, cell) pairs."""
    cells, found, start = x.shape[1], [], 0
    for length, m in zip(lengths, counts, strict=True):
        guide = []
        for t in range(start, start + length if m else start):
            square = oracle.squared_distances(x[t])
            if t == start:
                order = -oracle.spacings(square, max(1, min(7, m, cells - 1)))
                density = order.exp()
            else:
                order = (x[t, :, None] - torch.stack(guide)).square().sum(-1).mean(1) / x.shape[2]
                density = 1 - (-order).exp()
            kept = oracle.best(oracle.peak_scores(square.tolist(), order.tolist(), density.tolist()), m)
            guide += [x[t, n] for n in kept]
            found += [(t, n) for n in kept]
        start += length
    return found


@pytest.mark.parametrize("seed", range(16))
@pytest.mark.parametrize("budget", [0.2, 0.6])
def test_it_is_what_plain_loops_give(seed, budget):
    video = scenes(1 + seed, (1 + seed % 5, 4), [16, 32, 5][seed % 3], seed)
    method = MMGVid(tau=[0.8, -1.0, 0.95][seed % 3])
    kept, lengths = method(video, budget), method.segments(video).tolist()
    counts = [int((kept.group == g).sum()) // length for g, length in enumerate(lengths)]
    assert places(kept) == guided_peaks(video.tokens.double(), lengths, counts)


@settings(max_examples=60)
@given(VIDEOS, BUDGETS, st.sampled_from(["coded", "opposite"]))
def test_the_frames_of_a_segment_keep_equal_numbers(video, budget, gain):
    method = MMGVid(gain=gain, tau=0.8)
    kept, lengths = method(video, budget), method.segments(video)
    per_frame = torch.bincount(kept.frame, minlength=video.frames).split(lengths.tolist())
    assert all(len(counts.unique()) == 1 for counts in per_frame)
    wanted = budget_tokens(video, budget)
    assert len(kept) > wanted - video.frames  # rounded down by less than one in a frame
    assert len(kept) <= wanted or len(kept) == lengths[int(kept.group[0])]  # one per frame of one segment at least
    assert torch.equal(kept.group, torch.from_numpy(np.repeat(range(len(lengths)), lengths))[kept.frame])


def test_gains_equal_the_formula():
    f, raw = torch.randn(6, 8, generator=torch.Generator().manual_seed(0)), []
    for g in range(6):
        before = float(torch.cosine_similarity(f[g], f[:g].mean(0), dim=0)) if g else 0.0
        after = float(torch.cosine_similarity(f[g], f[g + 1 :].mean(0), dim=0)) if g < 5 else 0.0
        raw.append(0.5 * before + 0.5 * (1 - after))
    np.testing.assert_allclose(marginal_gains(f), (raw - np.mean(raw)) / np.std(raw), atol=1e-5)
    assert marginal_gains(f[:1]).tolist() == [0.0]
    torch.testing.assert_close(marginal_gains(f, "opposite"), -marginal_gains(f))
    assert keep_ratios(0.25, np.array([-9.0, 0.5, 9.0])).tolist() == pytest.approx([0.05, 0.3, 0.95])


@given(st.lists(st.tuples(st.integers(1, 30), st.floats(0.05, 0.95)), min_size=1, max_size=9), st.floats(0, 1))
def test_shares_add_up_and_stay_within_sizes(segments, budget):
    sizes, ratios = (np.array(part) for part in zip(*segments, strict=True))
    total = round(budget * int(sizes.sum()))
    share = share_out(sizes, ratios, total)
    assert share.sum() == total and (share >= 0).all() and (share <= sizes).all()
    assert share_out(np.array([9, 9, 9]), np.array([1, 1, 1]), 4).tolist() == [2, 1, 1]
    assert share_out(np.array([3, 9, 9]), np.array([3, 1 / 9, 1 / 9]), 10).tolist() == [3, 4, 3]


def test_single_frames_join_the_more_similar_neighbour():
    def lengths(*degrees):
        """Frames on a circle; frames less than 30 degrees apart belong together."""
        angle = torch.tensor(degrees, dtype=torch.float32).deg2rad()[:, None]
        return MMGVid(tau=0.866).segments(VideoFeatures(torch.stack([angle.cos(), angle.sin()], -1), (1, 1)))

    assert lengths(0, 1, 60, 100, 101).tolist() == [2, 3]  # frame 2 is nearer to the right
    assert lengths(0, 1, 40, 100, 101).tolist() == [3, 2]
    assert lengths(0, 60, 61).tolist() == lengths(60, 61, 0).tolist() == [3]  # the ends have one neighbour
    assert lengths(0, 85, 165, 237).tolist() == [2, 2]
    assert lengths(7).tolist() == [1]
