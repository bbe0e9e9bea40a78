"""The shared operations against plain loops and against their definitions."""

import numpy as np
import oracle
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from holitom.ops import clusters, segments, tensors
from holitom.ops.segments import cut


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
    assert cut(similar, 1).removed == cut(similar, 0).removed == 0
    assert segments.fixed_windows(similar, 2).pairs == [(0, 1), (2, 3), (4, 4)]
    assert segments.cut_at_changes(similar, 0.5).pairs == [(0, 2), (3, 4)]
    assert cut(np.ones((1023, 196), dtype=bool)).removed == 1023 * 196


def test_a_similarity_equal_to_tau_is_not_above_it():
    tau = 0.8
    found = segments.above(torch.tensor([tau, np.nextafter(np.float32(tau), np.float32(1))]), tau)
    assert found.tolist() == [False, True]


def peaks(rows, count, k=7):
    return clusters.density_peaks(rows, np.array([len(rows)]), np.array([count]), k)


def test_ties_duplicates_offsets_and_half_precision_of_clusters():
    centre, owner = peaks(torch.full((6, 5), 0.3), 3)
    assert centre.tolist() == [True] * 3 + [False] * 3 and owner[3:].tolist() == [0] * 3
    centre, owner = peaks(torch.cat([torch.zeros(5, 3), torch.ones(5, 3)]), 2, 5)
    assert centre.nonzero().flatten().tolist() == [0, 5] and owner.tolist() == [0] * 5 + [5] * 5
    rows = (torch.randn(30, 16, generator=torch.Generator().manual_seed(3)) * 8).round() / 8
    for other in (rows + 4096, rows.half()):  # a large offset must not cancel
        assert all(map(torch.equal, peaks(rows, 6), peaks(other, 6)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
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
    assert tensors.spread(5, 4).tolist() == [1, 1, 1, 2]
