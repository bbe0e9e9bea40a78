import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import oracle
from golden.loader import Golden, cases
from holitom.errors import BadUsage
from holitom.ops.segmentation import above, best_segments, cut, fixed_windows, run_lengths, segment_gains


@pytest.mark.parametrize(("name", "run"), cases("holitom_segments"))
def test_equals_the_release(name, run):
    golden = Golden(name)
    setting = golden.runs[run]
    found = best_segments(golden[run, "sim"], setting["tau"], setting["max_window"])
    assert found.pairs == [tuple(pair) for pair in golden[run, "segments"].tolist()]
    assert found.removed == int(golden[run, "total_reduced"])


def similar_cells(max_frames):
    return st.integers(1, max_frames).flatmap(
        lambda frames: st.integers(1, 6).flatmap(
            lambda cells: st.lists(
                st.lists(st.booleans(), min_size=cells, max_size=cells), min_size=frames - 1, max_size=frames - 1
            ).map(lambda rows: np.array(rows, dtype=bool).reshape(frames - 1, cells))
        )
    )


def every_cut(frames):
    """All partitions of the frames into consecutive segments."""
    for code in range(2 ** (frames - 1)):
        starts = [0] + [i for i in range(1, frames) if code >> (i - 1) & 1]
        yield list(zip(starts, [*[s - 1 for s in starts[1:]], frames - 1], strict=True))


def removed_by(similar, segments):
    return sum(int(similar[a:b].all(axis=0).sum()) * (b - a) for a, b in segments if b > a)


@given(similar_cells(8), st.integers(1, 9))
def test_no_cut_removes_more(similar, max_window):
    frames = similar.shape[0] + 1
    found = cut(similar, max_window)
    allowed = [s for s in every_cut(frames) if all(b - a < max_window for a, b in s)]
    assert found.removed == removed_by(similar, found.pairs) == max(removed_by(similar, s) for s in allowed)
    assert found.pairs in allowed


@given(similar_cells(24), st.integers(1, 30))
def test_ties_go_to_the_singleton_then_to_the_shortest_window(similar, max_window):
    frames, cells = similar.shape[0] + 1, similar.shape[1]
    assert (cut(similar, max_window).pairs, cut(similar, max_window).removed) == oracle.segment(
        similar.tolist(), frames, cells, max_window
    )


@given(similar_cells(12), st.integers(1, 13))
def test_gains_from_run_lengths_are_the_definition(similar, max_window):
    frames = similar.shape[0] + 1
    gains = segment_gains(torch.from_numpy(similar), max_window)
    for first in range(frames):
        for last in range(first + 1, min(frames, first + max_window)):
            expected = int(similar[first:last].all(axis=0).sum()) * (last - first)
            width = last - first
            assert (int(gains[first, width]) if width < gains.shape[1] else 0) == expected


@given(similar_cells(10))
def test_static_cells_are_similar_throughout(similar):
    found = cut(similar)
    for (first, last), static in zip(found.pairs, found.static, strict=True):
        expected = similar[first:last].all(axis=0) if last > first else np.zeros(similar.shape[1], dtype=bool)
        assert (static == expected).all()
    assert found.lengths.sum() == similar.shape[0] + 1


def test_run_lengths_by_hand():
    column = torch.tensor([1, 1, 0, 1, 1, 1], dtype=torch.bool)[:, None]
    assert run_lengths(column)[:, 0].tolist() == [2, 1, 0, 3, 2, 1]
    assert run_lengths(column[:0]).shape == (0, 1)


def test_a_similarity_equal_to_tau_is_not_static():
    tau = 0.8
    sim = torch.tensor([[tau], [np.nextafter(np.float32(tau), np.float32(1))]], dtype=torch.float32)
    assert above(sim, tau)[:, 0].tolist() == [False, True]


def test_one_frame_and_a_window_of_one():
    assert cut(np.zeros((0, 3), dtype=bool)).pairs == [(0, 0)]
    alone = cut(np.ones((4, 3), dtype=bool), max_window=1)
    assert alone.pairs == [(t, t) for t in range(5)]
    assert alone.removed == 0
    with pytest.raises(BadUsage, match="max_window 0"):
        cut(np.ones((4, 3), dtype=bool), max_window=0)


def test_fixed_windows_ignore_the_similarities():
    found = fixed_windows(np.ones((6, 2), dtype=bool), 3)
    assert found.pairs == [(0, 2), (3, 5), (6, 6)]
    assert found.removed == 2 * 2 * 2


def test_a_thousand_frames_with_long_runs():
    """Every cell static throughout: the widest gain table there is, and counts far above int16."""
    found = cut(np.ones((1023, 196), dtype=bool), max_window=1024)
    assert found.pairs == [(0, 1023)]
    assert found.removed == 1023 * 196
