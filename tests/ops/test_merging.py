import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from holitom.ops.merging import bag_means, fold_into, merge_members


@st.composite
def owned_rows(draw):
    """Rows, the ascending ids of the kept ones, and for each row the kept one that it belongs to."""
    n = draw(st.integers(1, 24))
    kept = sorted(draw(st.sets(st.integers(0, n - 1), min_size=1)))
    owner = [i if i in kept else draw(st.sampled_from(kept)) for i in range(n)]
    rows = torch.randn(n, 3, generator=torch.Generator().manual_seed(draw(st.integers(0, 999))))
    return rows, torch.tensor(owner), torch.tensor(kept)


@given(owned_rows())
def test_running_average_is_the_loop_in_closed_form(case):
    rows, owner, kept = case
    expected = {int(k): rows[k].clone() for k in kept}
    for i, target in enumerate(owner.tolist()):
        if i != target:
            expected[target] = (expected[target] + rows[i]) / 2
    torch.testing.assert_close(fold_into(rows, owner, kept, "running"), torch.stack([*expected.values()]))


@given(owned_rows())
def test_mean_keeps_the_weighted_sum(case):
    rows, owner, kept = case
    merged = fold_into(rows, owner, kept, "mean")
    size = torch.bincount(owner, minlength=len(rows))[kept]
    torch.testing.assert_close((merged * size[:, None]).sum(0), rows.sum(0))


@given(owned_rows(), st.sampled_from([None, 0.0, 0.6, 1.0]))
def test_cluster_merge(case, beta):
    rows, owner, centres = case
    merged, size = merge_members(rows, owner, centres, beta)
    for head, row, count in zip(centres.tolist(), merged, size.tolist(), strict=True):
        others = [i for i, target in enumerate(owner.tolist()) if target == head and i != head]
        assert count == 1 + len(others)
        if not others:
            assert torch.equal(row, rows[head])
        elif beta is None:
            torch.testing.assert_close(row, rows[[head, *others]].mean(0))
        else:
            torch.testing.assert_close(row, beta * rows[head] + (1 - beta) * rows[others].mean(0))


def test_a_long_fold_underflows_quietly():
    """Two hundred rows folded into one: the kept row's weight 2^-200 is zero in float32, the last row's is one half."""
    rows = torch.ones(201, 2)
    merged = fold_into(rows, torch.zeros(201, dtype=torch.long), torch.tensor([0]), "running")
    torch.testing.assert_close(merged, torch.ones(1, 2))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_bag_means_add_in_float32(dtype):
    """512 equal numbers: a sum kept in half precision would stall (bfloat16) or overflow (float16)."""
    rows = torch.full((513, 4), 200.0, dtype=dtype)
    means = bag_means(rows, torch.arange(513), torch.tensor([512, 1]))
    torch.testing.assert_close(means, torch.full((2, 4), 200.0), rtol=torch.finfo(dtype).eps, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_bag_means(dtype):
    rows = torch.randn(20, 6, generator=torch.Generator().manual_seed(0)).to(dtype)
    lengths = [1, 3, 5, 2]
    ids = torch.tensor([4, 0, 7, 9, 19, 18, 17, 16, 15, 4, 4])
    expected = torch.stack([rows[part].float().mean(0) for part in ids.split(lengths)])
    tolerance = 1e-6 if dtype == torch.float32 else torch.finfo(dtype).eps
    torch.testing.assert_close(bag_means(rows, ids, torch.tensor(lengths)), expected, rtol=tolerance, atol=tolerance)


def test_no_bag_and_empty_bags():
    rows = torch.randn(3, 2)
    none = torch.empty(0, dtype=torch.long)
    assert bag_means(rows, none, none).shape == (0, 2)
    for dtype in (torch.float32, torch.float16):
        means = bag_means(rows.to(dtype), torch.tensor([1]), torch.tensor([0, 1, 0]))
        assert torch.equal(means, torch.stack([torch.zeros(2), rows[1].to(dtype).float(), torch.zeros(2)]))
