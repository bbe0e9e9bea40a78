import dataclasses

import numpy as np
import pytest
import shapes
import torch
from jaxtyping import TypeCheckError

from golden.loader import Golden
from holitom.errors import BadUsage
from holitom.methods.inputs import budget_tokens
from holitom.methods.mmg_vid import MMGVid
from holitom.ops.density import peak_scores, squared_distances
from holitom.types import Outer, VideoFeatures

torch.set_num_threads(1)


def plain(video, counts, lengths, neighbours=7):
    """Frame after frame, straight from the description. -> kept (frame, cell) pairs."""
    unit = torch.nn.functional.normalize(video.tokens.float(), dim=-1)
    every = torch.ones(1, video.cells, dtype=torch.bool)
    kept, start = [], 0
    for length in lengths:
        before = []
        for t in range(start, start + length):
            score = peak_scores(squared_distances(video.tokens[t : t + 1]), every, neighbours)[0]
            if t > start and before:
                score = score * (1 - (unit[t] @ unit[t - 1, before].T).amax(1)).clamp_min(0)
            before = sorted(sorted(range(video.cells), key=lambda n: (-float(score[n]), n))[: counts[t]])
            kept += [(t, n) for n in before]
        start += length
    return kept


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("budget", [0.1, 0.25, 0.6])
def test_equals_the_plain_loop(seed, budget):
    video = shapes.scenes(14, (3, 4), 16, seed=seed)
    method = MMGVid(tau=0.8)
    kept = method(video, budget)
    counts = torch.bincount(kept.frame, minlength=14).tolist()
    lengths = method.segments(video).tolist()
    assert len(lengths) > 1 and max(lengths) > 2
    pairs = list(zip(kept.frame.tolist(), kept.cell.tolist(), strict=True))
    assert pairs == plain(video, counts, lengths)


@pytest.mark.parametrize("shape", shapes.SHAPES, ids=str)
@pytest.mark.parametrize("gain", ["coded", "opposite"])
def test_counts_and_shapes(shape, gain):
    video = shapes.scenes(*shape)
    method = MMGVid(gain=gain)
    for budget in shapes.BUDGETS:
        kept = method(video, budget)
        shapes.check(kept, video)
        assert shapes.same(kept, method(video, budget))
        assert len(kept) == budget_tokens(video, budget)
        places = kept.frame * video.cells + kept.cell
        assert (places.diff() > 0).all()
        assert torch.equal(kept.tokens, video.tokens.flatten(0, 1)[places])  # selected, never merged
        assert len(kept.group) == len(kept.gain) == len(kept)


@pytest.mark.parametrize(
    "changed",
    [
        {"frame_vector": "unit"},
        {"tau": -1.0},
        {"absorb_single": False},
        {"segment_vector": "middle"},
        {"gain": "opposite"},
        {"k": 0.9},
        {"extra": 0.4},
        {"clamp": (0.2, 0.22)},
        {"exact": False},
        {"frame_share": "novelty"},
        {"neighbours": 2},
        {"uniqueness": "frame"},
        {"uniqueness": "none"},
        {"saliency": True},
        {"noise": 0.5},
    ],
    ids=str,
)
def test_every_assumption_is_a_setting_that_acts(changed):
    video = shapes.scenes(24, (3, 4), 16, seed=2)
    kept, other = MMGVid()(video, 0.25), MMGVid(**changed)(video, 0.25)
    shapes.check(other, video)
    assert not shapes.same(kept, other)
    assert shapes.same(other, MMGVid(**changed)(video, 0.25))


def test_every_field_is_explained():
    for field in dataclasses.fields(MMGVid):
        assert field.name in MMGVid.__doc__
    assert all(f"A{i}" in MMGVid.__doc__ for i in range(1, 10))
    assert MMGVid().fidelity == "reconstruction" and isinstance(MMGVid(), Outer)


def test_single_frames_join_the_more_similar_neighbour():
    cut = MMGVid(tau=0.5)._cut
    assert cut(np.array([0.9, 0.1, 0.2, 0.9])).tolist() == [2, 3]  # frame 2 joins the right
    assert cut(np.array([0.9, 0.2, 0.1, 0.9])).tolist() == [3, 2]  # the left
    assert cut(np.array([0.9, 0.1, 0.1, 0.9])).tolist() == [3, 2]  # a tie: the left
    assert cut(np.array([0.1, 0.9])).tolist() == [3]  # the first has one neighbour
    assert cut(np.array([0.1, 0.2, 0.3])).tolist() == [2, 2]
    assert cut(np.array([])).tolist() == [1]
    assert MMGVid(tau=0.5, absorb_single=False)._cut(np.array([0.9, 0.1, 0.2, 0.9])).tolist() == [2, 1, 2]


def test_a_segment_with_the_larger_gain_keeps_the_larger_share():
    video = shapes.scenes(30, (4, 4), 16, seed=4)
    for sign in ("coded", "opposite"):
        kept = MMGVid(gain=sign, tau=0.8)(video, 0.3)
        lengths = MMGVid(tau=0.8).segments(video)
        share = torch.bincount(kept.group, minlength=len(lengths)) / torch.from_numpy(lengths)
        gain = torch.stack([kept.gain[kept.group == g][0] for g in range(len(lengths))])
        assert len(lengths) > 2
        assert share[gain.argmax()] > share[gain.argmin()]


def test_a_static_video_does_not_choose_the_same_cells_twice():
    frame = torch.randn(1, 16, 8, generator=torch.Generator().manual_seed(0))
    kept = MMGVid()(VideoFeatures(frame.expand(2, -1, -1).contiguous(), (4, 4)), 0.5)
    assert sorted(kept.cell.tolist()) == list(range(16))


@pytest.mark.parametrize("value", [0.0, 3.0])
def test_equal_tokens(value):
    video = shapes.equal(8, (4, 4), 8, value)
    kept = MMGVid()(video, 0.25)
    assert len(kept) == 32 and kept.cell.tolist() == [0, 1, 2, 3] * 8


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype):
    kept = MMGVid()(shapes.scenes(9, (4, 4), 16, dtype=dtype), 0.3)
    assert kept.tokens.dtype == dtype and len(kept) == 43


def test_golden_features_of_another_method_are_handled():
    features = Golden("prunevid_merge")[2, "features"]
    assert len(MMGVid()(VideoFeatures(features, (5, 5)), 0.15)) == 120


def test_bad_input_is_refused_by_name():
    video = shapes.scenes(6, (3, 3), 8)
    with pytest.raises(BadUsage, match="saliency"):
        MMGVid(saliency=True)(VideoFeatures(video.tokens, (3, 3)), 0.5)
    video.tokens[4, 2, 1] = float("nan")
    with pytest.raises(BadUsage, match="tokens hold a NaN or an infinity, first in frame 4"):
        MMGVid()(video, 0.5)
    for bad in ({"gain": "both"}, {"uniqueness": "all"}, {"clamp": (0.0, 0.5)}, {"neighbours": 0}):
        with pytest.raises((BadUsage, TypeCheckError)):  # the type checker of the tests may come first
            MMGVid(**bad)
