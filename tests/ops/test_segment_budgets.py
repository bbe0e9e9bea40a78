import numpy as np
import pytest
import torch

from holitom.ops.segment_budgets import frame_means, keep_ratios, marginal_gains, weighted_shares


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("frames", [1, 7, 20])
def test_frame_means(frames, dtype):
    tokens = torch.randn(frames, 5, 3).to(dtype)
    means = frame_means(tokens)
    assert means.dtype == torch.float32
    torch.testing.assert_close(means, tokens.float().mean(1))


@pytest.mark.parametrize("sign", ["coded", "opposite"])
def test_marginal_gains_equal_the_formula(sign):
    f = torch.randn(6, 8, generator=torch.Generator().manual_seed(0))
    k, raw = 0.3, []
    for g in range(6):
        before = float(torch.cosine_similarity(f[g], f[:g].mean(0), dim=0)) if g else 0.0
        after = float(torch.cosine_similarity(f[g], f[g + 1 :].mean(0), dim=0)) if g < 5 else 0.0
        raw.append(k * before + (1 - k) * (1 - after) if sign == "coded" else k * (1 - before) + (1 - k) * after)
    expected = (np.array(raw) - np.mean(raw)) / (np.std(raw) + 1e-8)
    np.testing.assert_allclose(marginal_gains(f, k, sign).numpy(), expected, atol=1e-5)


def test_the_signs_are_opposite_and_one_segment_gains_nothing():
    f = torch.randn(4, 8, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(marginal_gains(f, 0.5, "coded"), -marginal_gains(f, 0.5, "opposite"))
    assert marginal_gains(f[:1], 0.5).tolist() == [0.0]


def test_keep_ratios_are_clamped():
    assert keep_ratios(0.25, np.array([-9.0, 0.5, 9.0]), 0.1, (0.05, 0.95)).tolist() == pytest.approx([0.05, 0.3, 0.95])


@pytest.mark.parametrize("seed", range(30))
def test_weighted_shares_add_up_and_stay_within_capacity(seed):
    draw = np.random.default_rng(seed)
    capacity = draw.integers(0, 30, size=draw.integers(1, 9))
    weights = draw.uniform(0.05, 10, size=len(capacity))
    total = int(draw.integers(0, capacity.sum() + 5))
    share = weighted_shares(weights, capacity, total)
    assert share.sum() == min(total, capacity.sum())
    assert (share >= 0).all() and (share <= capacity).all()
    free = share < capacity
    if free.sum() > 1:  # among those with room, shares follow the weights within one token
        per_weight = share[free] / weights[free]
        assert (share[free] - weights[free] * per_weight.mean()).max() < 1 + weights[free].max() / weights[free].min()


def test_weighted_shares_by_largest_remainder():
    assert weighted_shares(np.array([1.0, 1.0, 1.0]), np.array([9, 9, 9]), 4).tolist() == [2, 1, 1]
    assert weighted_shares(np.array([5.0, 3.0, 2.0]), np.array([9, 9, 9]), 10).tolist() == [5, 3, 2]
    assert weighted_shares(np.array([9.0, 1.0, 1.0]), np.array([3, 9, 9]), 10).tolist() == [3, 4, 3]
