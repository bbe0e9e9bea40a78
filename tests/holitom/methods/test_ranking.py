"""FastV and PyramidDrop: the highest scores stay. (PyramidDrop's schedule: test_presets.py.)"""

import oracle
import pytest
import torch

from holitom.methods import FastV, PyramidDropStage


@pytest.mark.parametrize(
    ("stage", "alive", "n0", "left"),
    [
        (FastV(2, 0.5), 7, 7, 4),
        (FastV(2, 0.99), 6, 6, 1),
        (PyramidDropStage(2, 0.25), 40, 100, 25),  # a share of what prefill began with
        (PyramidDropStage(2, 0.5), 10, 40, 10),
        (PyramidDropStage(2, 0.001), 40, 40, 1),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_highest_scores_stay_with_all_text_and_ties_go_to_the_lowest_index(stage, alive, n0, left, dtype):
    hidden, score = torch.randn(alive + 8, 4, dtype=dtype), torch.randint(0, 4, (alive + 8,)).to(dtype)
    kept, states = stage(hidden, score, torch.arange(3, 3 + alive), n0)
    best = [3 + i for i in oracle.best(score[3 : 3 + alive], left)]
    assert kept.tolist() == [0, 1, 2, *best, *range(3 + alive, alive + 8)]
    assert torch.equal(states, hidden[kept])
