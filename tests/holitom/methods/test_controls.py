from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from holitom.methods.controls import AveragePool, RandomDrop, SaliencyTopK, UniformStride
from holitom.types import VideoFeatures

GRIDS = st.tuples(st.integers(1, 14), st.integers(1, 14))
DTYPES = st.sampled_from([torch.float32, torch.bfloat16, torch.float16])
CONTROLS = [RandomDrop(), UniformStride(), SaliencyTopK(), SaliencyTopK(lowest=True), AveragePool()]


def video_of(frames, grid, dtype=torch.float32, seed=0):
    draw, shape = torch.Generator().manual_seed(seed), (frames, grid[0] * grid[1])
    return VideoFeatures(torch.randn(*shape, 6, generator=draw).to(dtype), grid, torch.rand(shape, generator=draw))


@pytest.mark.parametrize("control", CONTROLS, ids=str)
@given(st.integers(1, 20), GRIDS, st.one_of(st.floats(0.001, 1.0), st.just(1.0)), DTYPES)
def test_counts_are_exact_and_tokens_stand_in_raster_order(control, frames, grid, budget, dtype):
    video = video_of(frames, grid, dtype)
    kept = control(video, budget)
    assert len(kept) == max(1, round(budget * (frames * video.cells))) and kept.tokens.dtype == dtype
    assert ((kept.frame * video.cells + kept.cell).diff() > 0).all()
    if control != AveragePool() or budget == 1:
        assert torch.equal(kept.tokens, video.tokens[kept.frame, kept.cell])


@given(st.integers(1, 6), GRIDS, st.floats(0.01, 1.0))
def test_pooling_puts_every_cell_of_a_frame_into_one_bin(frames, grid, budget):
    video = video_of(frames, grid)
    kept = AveragePool()(video, budget)
    used = torch.bincount(kept.frame, minlength=frames) > 0
    assert kept.size.sum() == used.sum() * video.cells
    total = (kept.tokens * kept.size[:, None]).sum(0)
    torch.testing.assert_close(total, video.tokens[used].sum((0, 1)), atol=1e-3, rtol=0)


def test_pooling_by_hand():
    video = VideoFeatures(torch.arange(16.0).reshape(1, 16, 1), (4, 4))
    four, five = AveragePool()(video, 0.25), AveragePool()(video, 5 / 16)
    assert four.tokens.flatten().tolist() == [2.5, 4.5, 10.5, 12.5] and four.cell.tolist() == [0, 2, 8, 10]
    assert five.size.tolist() == [4, 4, 4, 2, 2] and five.tokens.flatten().tolist() == [2.5, 4.5, 10.5, 12, 13]


def test_a_random_subset_depends_on_its_seed_and_the_video_alone():
    video = video_of(9, (4, 4))
    first, state = RandomDrop(seed=3)(video, 0.3), torch.random.get_rng_state()
    for same in (video.tokens, 3 * video.tokens, video.tokens.half().float()):
        assert torch.equal(first.cell, RandomDrop(seed=3)(replace(video, tokens=same), 0.3).cell)
    assert torch.equal(state, torch.random.get_rng_state()), "the global generator was used"
    for other in (RandomDrop(seed=4)(video, 0.3), RandomDrop(seed=3)(video_of(9, (4, 4), seed=1), 0.3)):
        assert not torch.equal(first.cell, other.cell)


def test_stride_and_saliency_by_hand():
    video = VideoFeatures(torch.arange(8.0).reshape(2, 4, 1), (2, 2), torch.tensor([[1.0, 4, 3, 2], [5, 5, 5, 5]]))
    assert UniformStride()(video, 0.25).tokens.flatten().tolist() == [2, 6]
    assert SaliencyTopK()(video, 0.5).cell.tolist() == [1, 2, 0, 1]
    assert SaliencyTopK(lowest=True)(video, 0.5).cell.tolist() == [0, 3, 0, 1]
