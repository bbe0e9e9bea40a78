import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from holitom.errors import BadUsage
from holitom.ops.other_segmentations import cut_at_changes, segments_from
from holitom.ops.segmentation import cut, fixed_windows

SIMILAR = st.tuples(st.integers(0, 12), st.integers(1, 6), st.integers(0, 999)).map(
    lambda shape: np.random.default_rng(shape[2]).random(shape[:2]) < 0.7
)


def test_by_hand():
    similar = np.array([[1, 1, 1, 0], [1, 1, 0, 0], [0, 1, 0, 0], [1, 1, 1, 1]], dtype=bool)
    found = cut_at_changes(similar, 0.5)
    assert found.pairs == [(0, 2), (3, 4)]
    assert found.static.tolist() == [[True, True, False, False], [True, True, True, True]]
    assert found.removed == 2 * 2 + 4 * 1


@pytest.mark.parametrize(("share", "segments"), [(0, 1), (0.51, 4), (1.01, 5)])
def test_a_higher_share_cuts_more(share, segments):
    similar = np.array([[1, 1, 1, 1], [1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 0, 0]], dtype=bool)
    assert len(cut_at_changes(similar, share)) == segments


@given(SIMILAR, st.sampled_from([0, 0.2, 0.4, 0.5, 1.0, 1.1]))
def test_cuts_where_it_says_and_never_removes_more_than_the_optimum(similar, share):
    found = cut_at_changes(similar, share)
    starts = set(found.first.tolist())
    for t, row in enumerate(similar):
        assert (t + 1 in starts) == (row.mean() < share)
    for (a, b), static in zip(found.pairs, found.static, strict=True):
        expected = similar[a:b].all(axis=0) if b > a else np.zeros(similar.shape[1], dtype=bool)
        assert (static == expected).all()
    assert found.removed <= cut(similar).removed


@given(SIMILAR, st.integers(1, 14))
def test_given_starts_equal_fixed_windows(similar, length):
    plain = fixed_windows(similar, length)
    found = segments_from(np.arange(0, similar.shape[0] + 1, length), similar)
    assert found.pairs == plain.pairs and found.removed == plain.removed
    assert (found.static == plain.static).all()


def test_a_negative_share_is_refused():
    with pytest.raises(BadUsage, match="negative"):
        cut_at_changes(np.ones((2, 2), dtype=bool), -0.1)
