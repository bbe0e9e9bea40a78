from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from holitom_repro.bench import synthetic_video
from holitom.errors import BadUsage
from holitom.methods import AveragePool, RandomDrop, SaliencyTopK, UniformStride
from holitom.types import Outer, VideoFeatures

CONTROLS = [RandomDrop(), UniformStride(), SaliencyTopK(), SaliencyTopK(lowest=True), AveragePool()]
SELECTING = CONTROLS[:4]
shapes = st.tuples(st.integers(1, 20), st.integers(1, 14), st.integers(1, 14))
budgets = st.sampled_from([0.001, 0.05, 0.1, 0.15, 0.25, 0.5, 0.9, 1.0])


def video_of(shape, dtype=torch.float32):
    frames, height, width = shape
    return synthetic_video(frames, (height, width), 6, seed=sum(shape), dtype=dtype)


@pytest.mark.parametrize("control", SELECTING, ids=str)
@settings(max_examples=25)
@given(shape=shapes, budget=budgets)
def test_selections_are_exact_and_in_raster_order(control, shape, budget):
    video = video_of(shape)
    kept = control(video, budget)
    assert isinstance(control, Outer)
    assert len(kept) == max(1, round(budget * (video.frames * video.cells)))
    places = kept.frame * video.cells + kept.cell
    assert (places.diff() > 0).all()
    assert torch.equal(kept.tokens, video.tokens.flatten(0, 1)[places])


@settings(max_examples=60)
@given(shapes, budgets)
def test_average_pooling_comes_near_the_budget(shape, budget):
    video = video_of(shape)
    kept = AveragePool()(video, budget)
    places = kept.frame * video.cells + kept.cell
    assert (places.diff() > 0).all()
    assert kept.tokens.shape == (len(places), 6)
    wanted = max(1, round(budget * (video.frames * video.cells)))
    assert 1 <= len(kept) <= video.frames * video.cells
    assert abs(len(kept) - wanted) <= video.cells / 2


@pytest.mark.parametrize(
    ("grid", "budget", "count"), [((14, 14), 0.10, 627), ((4, 4), 0.10, 51), ((13, 13), 0.15, 811)]
)
def test_average_pooling_at_the_papers_budgets(grid, budget, count):
    kept = AveragePool()(video_of((32, *grid)), budget)
    assert abs(len(kept) - count) <= 4


def test_average_pooling_by_hand():
    tokens = torch.arange(16.0).reshape(1, 16, 1)
    kept = AveragePool()(VideoFeatures(tokens, (4, 4)), 0.25)
    assert kept.tokens.flatten().tolist() == [2.5, 4.5, 10.5, 12.5]
    assert kept.cell.tolist() == [0, 2, 8, 10]
    assert kept.size.tolist() == [4, 4, 4, 4]


@pytest.mark.parametrize("control", CONTROLS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_budget_one_is_the_identity_and_precision_is_kept(control, dtype):
    video = video_of((5, 3, 4), dtype)
    assert torch.equal(control(video, 1.0).tokens, video.tokens.flatten(0, 1))
    assert control(video, 0.4).tokens.dtype == dtype


def test_random_drop_depends_on_its_seed_and_the_video_alone():
    video = video_of((9, 4, 4))
    torch.manual_seed(1)
    first, state = RandomDrop(seed=3)(video, 0.3), torch.random.get_rng_state()
    torch.manual_seed(1)
    assert torch.equal(state, torch.random.get_rng_state()), "the global generator was used"
    torch.manual_seed(2)
    for same in (video.tokens, 3 * video.tokens, video.tokens + 1e-4 * torch.randn(video.tokens.shape)):
        assert torch.equal(first.cell, RandomDrop(seed=3)(replace(video, tokens=same), 0.3).cell)
    assert not torch.equal(first.cell, RandomDrop(seed=4)(video, 0.3).cell)
    assert not torch.equal(first.cell, RandomDrop(seed=3)(replace(video, tokens=video.tokens.flip(0)), 0.3).cell)


def test_random_drop_draws_every_place_equally_often():
    draw, counts = torch.Generator().manual_seed(0), torch.zeros(16)
    for _ in range(600):
        kept = RandomDrop()(VideoFeatures(torch.randn(4, 4, 6, generator=draw), (2, 2)), 0.25)
        counts[kept.frame * 4 + kept.cell] += 1
    assert (counts - 150).abs().max() < 5 * (600 * 0.25 * 0.75) ** 0.5


def test_saliency_top_and_bottom():
    video = VideoFeatures(torch.arange(8.0).reshape(2, 4, 1), (2, 2), torch.tensor([[1.0, 4, 3, 2], [5, 5, 5, 5]]))
    top, bottom = SaliencyTopK()(video, 0.5), SaliencyTopK(lowest=True)(video, 0.5)
    assert top.cell.tolist() == [1, 2, 0, 1]
    assert bottom.cell.tolist() == [0, 3, 0, 1]
    with pytest.raises(BadUsage, match=r"SaliencyTopK reads VideoFeatures\.saliency"):
        SaliencyTopK()(replace(video, saliency=None), 0.5)


def test_uniform_stride_by_hand():
    video = VideoFeatures(torch.arange(12.0).reshape(2, 6, 1), (2, 3))
    assert UniformStride()(video, 0.25).tokens.flatten().tolist() == [2, 6, 10]


@pytest.mark.parametrize("control", CONTROLS, ids=str)
def test_budgets_outside_the_range_are_refused(control):
    with pytest.raises(BadUsage, match="outside"):
        control(video_of((2, 2, 2)), 0.0)
