"""EarlyTom's frame merging: segments, pairs and weights by hand, and what holds for any states."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from videos import DTYPES

from holitom.errors import BadUsage
from holitom.methods import EarlyTom
from holitom.methods.early_tom import similarities
from holitom.types import Tower


def table(frames, lags=5, **pairs):
    """Similarities of frames, 0.9 but for those given as f1_2=0.5."""
    near = np.full((lags, frames), 0.9)
    for pair, value in pairs.items():
        i, j = map(int, pair[1:].split("_"))
        near[j - i - 1, i] = value
    return near


def found(near, tau=0.0, longest=6):
    """Frames and merged pairs, in a word: 0 12 3."""
    groups = EarlyTom((0,), tau, longest).groups(near)
    words = [f"{i}" if i == j else f"{i}{j}" for i, j, _ in groups]
    return " ".join(words), [round(w, 4) for i, j, w in groups if i != j]


def test_pairs_and_weights_by_hand():
    # all alike: nothing stands out, nothing is merged
    assert found(table(6)) == ("0 1 2 3 4 5", [])
    # a local maximum above s(0, 5); the last pair needs no successor to be above
    assert found(table(6, f0_5=0.5)) == ("0 1 2 34 5", [0.5])
    assert found(table(6, f0_5=0.5, f1_2=0.96, f2_3=0.6)) == ("0 12 34 5", [0.6154, 0.5])
    assert found(table(6, f0_5=0.5, f2_3=0.99)) == ("0 1 23 4 5", [round(0.99 / 1.89, 4)])
    # above its successor, but not above first and last
    assert found(table(6, f0_5=0.97, f1_2=0.96, f2_3=0.6)) == ("0 1 2 3 4 5", [])
    # three frames have nothing between that could be merged; four have one pair
    assert found(table(3, f0_2=0.1)) == ("0 1 2", [])
    assert found(table(4, f0_3=0.1)) == ("0 12 3", [0.5])
    # a negative successor weighs nothing
    assert found(table(5, f0_4=-0.9, f2_3=-0.5), tau=-1.0) == ("0 12 3 4", [1.0])


def test_segments_by_hand():
    # full after six frames; what is left is a segment of its own
    assert found(table(10, f0_5=0.5, f6_9=0.5)) == ("0 1 2 34 5 6 78 9", [0.5, 0.5])
    assert found(table(8, f0_3=0.5, f4_7=0.5), longest=4) == ("0 12 3 4 56 7", [0.5, 0.5])
    # frame 4 is unlike frame 0, so a segment begins there, and its frames are compared with frame 4
    cut = table(8, f0_3=0.75, f0_4=0.5, f4_7=0.75)
    assert found(cut, tau=0.7) == ("0 12 3 4 56 7", [0.5, 0.5]) and found(cut, tau=0.5) != found(cut, tau=0.7)
    # the similarity before carries a frame over the threshold: 0.9 * 0.69 + 0.1 * (0.9 and more) is above 0.7
    assert found(table(5, f0_4=0.69), tau=0.7) == ("0 1 23 4", [0.5])
    assert found(table(5, f0_4=0.67), tau=0.7) == ("0 1 2 3 4", [])


@settings(max_examples=60)
@given(st.integers(1, 40), st.integers(1, 5), st.integers(1, 8), st.floats(-1, 1), DTYPES, st.integers(0, 99))
def test_any_states(frames, patches, longest, tau, dtype, seed):
    draw = torch.Generator().manual_seed(seed)
    hidden = torch.randn(frames, patches, 6, generator=draw).mul(0.5).cumsum(0).to(dtype)
    stage, before = EarlyTom((0,), tau, longest), hidden.clone()
    near = similarities(hidden, longest - 1)
    states, into = stage(hidden)
    assert isinstance(stage, Tower) and states.dtype == dtype and states.shape[1:] == hidden.shape[1:]
    assert sorted(into) == list(into) and set(into) == set(range(len(states))), "every frame is held by one"
    assert torch.equal(hidden, before) and all(map(torch.equal, stage(hidden)[:1], (states,)))
    assert len(states) == frames if stage.identity else len(states) > frames / 2
    for lag in range(1, min(longest, frames)):
        cosine = torch.cosine_similarity(hidden[:-lag].float(), hidden[lag:].float(), dim=-1).mean(1)
        np.testing.assert_allclose(near[lag - 1, :-lag], cosine, atol=1e-5)
    for t, (i, j, weight) in enumerate(stage.groups(near)):
        merged = (weight * hidden[i].double() + (1 - weight) * hidden[j].double()).to(dtype)
        torch.testing.assert_close(states[t], hidden[i] if i == j else merged)


def test_a_nan_is_refused():
    hidden = torch.randn(6, 3, 4)
    for value in (math.nan, math.inf):
        hidden[2, 1, 0] = value
        with pytest.raises(BadUsage, match="vision tower hold a NaN or an infinity"):
            EarlyTom()(hidden)
