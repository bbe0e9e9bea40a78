"""The shared operations against plain loops and against their definitions."""

import numpy as np
import oracle
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from holitom.errors import BadUsage
from holitom.ops import clusters, segments, tensors
from holitom.ops.segments import cut

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def similar_cells(max_frames):
    return st.builds(
        lambda frames, cells, seed, share: np.random.default_rng(seed).random((frames - 1, cells)) < share,
        st.integers(1, max_frames),
        st.integers(1, 6),
        st.integers(0, 999),
        st.sampled_from([0.0, 0.3, 0.7, 0.95, 1.0]),
    )


def every_cut(frames):
    """All partitions of the frames into consecutive segments."""
    for code in range(2 ** (frames - 1)):
        starts = [0] + [i for i in range(1, frames) if code >> (i - 1) & 1]
        yield list(zip(starts, [*[s - 1 for s in starts[1:]], frames - 1], strict=True))


def removed_by(similar, pairs):
    return sum(int(similar[a:b].all(axis=0).sum()) * (b - a) for a, b in pairs if b > a)


@given(similar_cells(8), st.integers(1, 9))
def test_no_cut_removes_more(similar, max_window):
    found = cut(similar, max_window)
    allowed = [s for s in every_cut(len(similar) + 1) if all(b - a < max_window for a, b in s)]
    assert found.removed == removed_by(similar, found.pairs) == max(removed_by(similar, s) for s in allowed)
    assert found.pairs in allowed


@given(similar_cells(24), st.integers(1, 30))
def test_ties_go_to_the_singleton_then_to_the_shortest_window(similar, max_window):
    found = cut(similar, max_window)
    assert (found.pairs, found.removed) == oracle.segment(similar.tolist(), *np.add(similar.shape, (1, 0)), max_window)


@given(similar_cells(10), st.integers(1, 5))
def test_static_cells_are_similar_throughout(similar, length):
    for found in (cut(similar), segments.fixed_windows(similar, length), segments.cut_at_changes(similar, 0.5)):
        assert found.lengths.sum() == len(similar) + 1
        for (first, last), static in zip(found.pairs, found.static, strict=True):
            assert (static == (similar[first:last].all(axis=0) & (last > first))).all()


def test_segments_by_hand():
    similar = np.array([[1, 1], [1, 0], [0, 0], [1, 1]], dtype=bool)
    assert cut(similar).pairs == [(0, 1), (2, 2), (3, 4)]  # as good as one segment of three: the shorter is taken
    assert cut(similar, 1).removed == 0
    assert segments.fixed_windows(similar, 2).pairs == [(0, 1), (2, 3), (4, 4)]
    assert segments.cut_at_changes(similar, 0.5).pairs == [(0, 2), (3, 4)]
    assert cut(np.ones((1023, 196), dtype=bool)).removed == 1023 * 196
    with pytest.raises(BadUsage, match="max_window 0"):
        cut(similar, 0)


def test_a_similarity_equal_to_tau_is_not_above_it():
    tau = 0.8
    found = segments.above(torch.tensor([tau, np.nextafter(np.float32(tau), np.float32(1))]), tau)
    assert found.tolist() == [False, True]


@pytest.mark.parametrize("seed", range(8))
def test_padded_groups_equal_one_group_at_a_time(seed, monkeypatch):
    """Groups of 1 to 40 rows, in one chunk and one by one, against the plain loop."""
    draw = np.random.default_rng(seed)
    sizes = draw.integers(1, 40, size=7)
    counts = np.array([draw.integers(1, n + 1) for n in sizes])
    rows = torch.randn(sizes.sum(), 16, generator=torch.Generator().manual_seed(seed))
    centre, owner = clusters.density_peaks(rows, sizes, counts, 7)
    monkeypatch.setattr(clusters, "workspace", lambda rows: 1)
    assert all(
        torch.equal(a, b) for a, b in zip(clusters.density_peaks(rows, sizes, counts, 7), (centre, owner), strict=True)
    )
    start = 0
    for size, count in zip(sizes.tolist(), counts.tolist(), strict=True):
        centres, members = oracle.density_peaks(rows[start : start + size], count, 7)
        assert centre[start : start + size].nonzero().flatten().tolist() == centres
        for head, joined in members.items():
            assert (owner[start : start + size] == start + head).nonzero().flatten().tolist() == sorted([head, *joined])
        start += size


def peaks(rows, count, k=7):
    return clusters.density_peaks(rows, np.array([len(rows)]), np.array([count]), k)


def test_ties_duplicates_offsets_and_half_precision_of_clusters():
    centre, owner = peaks(torch.full((6, 5), 0.3), 3)
    assert centre.tolist() == [True] * 3 + [False] * 3 and owner[3:].tolist() == [0] * 3
    centre, owner = peaks(torch.cat([torch.zeros(5, 3), torch.ones(5, 3)]), 2, 5)
    assert centre.nonzero().flatten().tolist() == [0, 5] and owner.tolist() == [0] * 5 + [5] * 5
    rows = (torch.randn(30, 16, generator=torch.Generator().manual_seed(3)) * 8).round() / 8
    for other in (rows + 4096, rows.half()):  # a large offset must not cancel
        assert all(torch.equal(a, b) for a, b in zip(peaks(rows, 6), peaks(other, 6), strict=True))


@given(st.integers(2, 20), st.integers(1, 5), st.integers(0, 99))
def test_peak_scores_without_padding_equal_those_with(n, k, seed):
    draw = torch.Generator().manual_seed(seed)
    rows = torch.randn(3, n, 8, generator=draw)
    plain = clusters.peak_scores(clusters.squared_distances(rows), None, k)
    padded = torch.cat([rows, rows[:, :1].expand(-1, 4, -1)], dim=1)
    valid = torch.arange(n + 4).expand(3, -1) < n
    scores = clusters.peak_scores(clusters.squared_distances(padded), valid, k)
    torch.testing.assert_close(scores[:, :n], plain)
    assert (scores[:, n:] == -1).all()


@st.composite
def owned_rows(draw):
    """Rows, the ascending ids of the kept ones, and for each row the kept one that it belongs to."""
    n = draw(st.integers(1, 24))
    kept = sorted(draw(st.sets(st.integers(0, n - 1), min_size=1)))
    owner = [i if i in kept else draw(st.sampled_from(kept)) for i in range(n)]
    rows = torch.randn(n, 3, generator=torch.Generator().manual_seed(draw(st.integers(0, 999))))
    return rows, torch.tensor(owner), torch.tensor(kept)


@given(owned_rows(), st.sampled_from([None, 0.0, 0.6, 1.0]))
def test_cluster_merge(case, beta):
    rows, owner, centres = case
    merged, size = clusters.merge_members(rows, owner, centres, beta)
    for head, row, count in zip(centres.tolist(), merged, size.tolist(), strict=True):
        others = [i for i, target in enumerate(owner.tolist()) if target == head and i != head]
        assert count == 1 + len(others)
        mean = rows[[head, *others]].mean(0) if beta is None else beta * rows[head] + (1 - beta) * rows[others].mean(0)
        torch.testing.assert_close(row, mean if others else rows[head])


@pytest.mark.parametrize("dtype", DTYPES)
def test_group_means_are_rounded_once_and_do_not_overflow(dtype):
    rows = torch.rand(3000, 4, generator=torch.Generator().manual_seed(0)).to(dtype) + 100
    sizes = torch.tensor([3, 0, 1, 2996])
    found = tensors.group_mean(rows, torch.arange(3000), sizes)
    assert found.dtype == dtype and (found[1] == 0).all()
    for mean, part in zip(found[[0, 2, 3]], rows.split([3, 1, 2996]), strict=True):
        torch.testing.assert_close(mean.double(), part.double().mean(0), rtol=max(torch.finfo(dtype).eps, 1e-5), atol=0)


@given(st.lists(st.integers(0, 9), min_size=1, max_size=9), st.integers(0, 60))
def test_apportion_is_largest_remainder(sizes, total):
    share = tensors.apportion(sizes, total)
    assert share.sum() == min(total, sum(sizes)) and (share <= sizes).all()
    exact = np.array(sizes) * min(total, sum(sizes)) / max(sum(sizes), 1)
    assert (np.abs(share - exact) < 1).all()


def test_choices_by_hand():
    score = torch.tensor([1.0, 3, 3, 2, 3])
    assert tensors.top_ids(score, 2).tolist() == [1, 2]
    assert tensors.ranks(score).tolist() == [4, 0, 1, 3, 2]
    assert tensors.top_mask(score[None].expand(2, -1), torch.tensor([0, 4])).tolist() == [
        [False] * 5,
        [False] + [True] * 4,
    ]
    assert tensors.ids_of(torch.tensor([True, False, True]), 2).tolist() == [0, 2]
    assert tensors.spread(5, 4).tolist() == [1, 1, 1, 2]
    order, size = tensors.grouped(torch.tensor([2, 0, 2, 0, 2]), torch.tensor([0, 2]))
    assert order.tolist() == [1, 3, 0, 2, 4] and size.tolist() == [2, 3]


@pytest.mark.parametrize("dtype", DTYPES)
def test_cosines(dtype):
    tokens = torch.randn(5, 6, 32, generator=torch.Generator().manual_seed(0)).to(dtype)
    tokens[2, 3] = 0
    expected = torch.cosine_similarity(tokens[:-1].double(), tokens[1:].double(), dim=-1).float()
    torch.testing.assert_close(tensors.neighbour_cosine(tokens), expected, atol=1e-6, rtol=1e-6)
    assert tensors.neighbour_cosine(tokens[:1]).shape == (0, 6)
    rows, ids, heads = tokens.flatten(0, 1), torch.arange(20, 30), torch.tensor([1, 5, 7])
    cosine, nearest = tensors.nearest_row(rows, ids, heads)
    every = torch.cosine_similarity(rows[ids].double()[:, None], rows[heads].double(), dim=-1)
    torch.testing.assert_close(cosine, every.amax(1).float(), atol=1e-6, rtol=1e-6)
    assert torch.equal(nearest, every.argmax(1))
