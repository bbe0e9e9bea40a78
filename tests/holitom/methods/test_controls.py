from dataclasses import replace

import pytest
import torch
from videos import scenes

from holitom.methods.controls import AveragePool, RandomDrop, SaliencyTopK, UniformStride
from holitom.types import VideoFeatures


def test_pooling_by_hand():
    video = VideoFeatures(torch.arange(16.0).reshape(1, 16, 1), (4, 4))
    four, five = AveragePool()(video, 0.25), AveragePool()(video, 5 / 16)
    assert four.tokens.flatten().tolist() == [2.5, 4.5, 10.5, 12.5] and four.cell.tolist() == [0, 2, 8, 10]
    assert five.size.tolist() == [4, 4, 4, 2, 2] and five.tokens.flatten().tolist() == [2.5, 4.5, 10.5, 12, 13]
    for height, width, budget in ((3, 5, 0.5), (5, 3, 0.3), (1, 7, 0.4), (7, 2, 0.9)):
        rows = torch.arange(2.0 * height * width).reshape(2, -1, 1)
        kept = AveragePool()(VideoFeatures(rows, (height, width)), budget)
        assert kept.size.sum() == rows.numel(), "every cell goes into one bin"
        assert (kept.tokens[:, 0] * kept.size).sum() == pytest.approx(rows.sum().item())


def test_a_random_subset_depends_on_its_seed_and_the_video_alone():
    video = scenes(9, (4, 4), 6)
    first, state = RandomDrop(seed=3)(video, 0.3), torch.random.get_rng_state()
    assert ((first.frame * 16 + first.cell).diff() > 0).all()
    for same in (video.tokens, 3 * video.tokens, video.tokens.half().float()):
        assert torch.equal(first.cell, RandomDrop(seed=3)(replace(video, tokens=same), 0.3).cell)
    assert torch.equal(state, torch.random.get_rng_state()), "the global generator was used"
    for other in (RandomDrop(seed=4)(video, 0.3), RandomDrop(seed=3)(scenes(9, (4, 4), 6, seed=1), 0.3)):
        assert not torch.equal(first.cell, other.cell)


def test_stride_and_saliency_by_hand():
    video = VideoFeatures(torch.arange(8.0).reshape(2, 4, 1), (2, 2), torch.tensor([[1.0, 4, 3, 2], [5, 5, 5, 5]]))
    assert UniformStride()(video, 0.25).tokens.flatten().tolist() == [2, 6]
    assert SaliencyTopK()(video, 0.5).cell.tolist() == [1, 2, 0, 1]
    assert SaliencyTopK(lowest=True)(video, 0.5).cell.tolist() == [0, 3, 0, 1]
