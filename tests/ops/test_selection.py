import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from holitom.ops.selection import apportion, keep_count, mask_ids, spread, top_per_row, topk_ids


def test_counts():
    assert [keep_count(5, 0.5, mode) for mode in ("ceil", "floor", "round")] == [3, 2, 2]
    assert keep_count(7, 0.5, "round") == 4  # half to even, as Python and the release do
    assert keep_count(10, 1.0, "ceil") == 10
    assert keep_count(0, 0.3, "ceil") == 0


@given(st.lists(st.integers(0, 50), min_size=1, max_size=40), st.integers(0, 2500))
def test_apportioned_shares_are_exact_and_fit(sizes, total):
    share = apportion(sizes, total)
    assert share.sum() == min(total, sum(sizes))
    assert all(0 <= s <= n for s, n in zip(share, sizes, strict=True))
    if 0 < total < sum(sizes):
        assert all(abs(s - n * total / sum(sizes)) < 1 for s, n in zip(share, sizes, strict=True))


@given(st.integers(0, 500), st.integers(1, 60))
def test_spread_is_exact_and_even(total, parts):
    share = spread(total, parts)
    assert share.sum() == total
    assert share.max() - share.min() <= 1


scores = st.lists(st.integers(-2, 2), min_size=1, max_size=30).map(lambda x: torch.tensor(x, dtype=torch.float32))


@given(scores, st.integers(0, 40))
def test_topk_is_stable_and_ascending(score, k):
    expected = sorted(sorted(range(len(score)), key=lambda i: (-float(score[i]), i))[:k])
    assert topk_ids(score, k).tolist() == expected


@given(scores, st.integers(0, 30))
def test_top_per_row_agrees_with_topk(score, k):
    rows = torch.stack([score, score.flip(0), -score])
    counts = torch.tensor([min(k, len(score)), 0, min(1, len(score))])
    mask = top_per_row(rows, counts)
    for row, count, kept in zip(rows, counts, mask, strict=True):
        assert kept.nonzero().flatten().tolist() == topk_ids(row, int(count)).tolist()


@given(st.lists(st.booleans(), min_size=1, max_size=40))
def test_mask_ids_is_nonzero(mask):
    mask = torch.tensor(mask)
    assert mask_ids(mask, int(mask.sum())).tolist() == mask.nonzero().flatten().tolist()


@pytest.mark.parametrize("count", [-2, 0, 1, 5])
def test_ids_of_a_wrong_count_stay_inside_the_mask(count):
    ids = mask_ids(torch.tensor([True, False, True, True]), count)
    assert len(ids) == max(count, 0) and (ids < 4).all() and (ids >= 0).all()
