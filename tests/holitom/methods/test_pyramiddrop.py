import pytest
import torch

from holitom.errors import BadUsage
from holitom.methods.pyramiddrop import PyramidDrop, PyramidDropStage


@pytest.mark.parametrize(
    ("alive", "n0", "ratio", "left"), [(40, 40, 0.33, 13), (40, 100, 0.25, 25), (10, 40, 0.5, 10), (40, 40, 0.001, 1)]
)
def test_a_stage_leaves_a_share_of_what_prefill_began_with(alive, n0, ratio, left):
    hidden, score = torch.randn(alive + 5, 4), torch.randint(0, 6, (alive + 5,)).float()
    ids, states = PyramidDropStage(2, ratio)(hidden, score, torch.arange(2, 2 + alive), n0)
    best = sorted(range(2, 2 + alive), key=lambda i: (-float(score[i]), i))[:left]
    assert ids.tolist() == sorted([0, 1, *best, *range(alive + 2, alive + 5)])
    assert torch.equal(states, hidden[ids])


def test_the_schedule_is_one_stage_per_layer():
    assert [(stage.layer, stage.ratio) for stage in PyramidDrop().stages()] == [(2, 0.5), (7, 0.25), (14, 0.125)]
    assert PyramidDropStage(0, 1.0).identity and not PyramidDropStage(0, 0.9).identity
    for wrong in ({"layers": (2, 7)}, {"layers": (7, 2, 14)}, {"ratios": (0.1, 0.5, 0.6)}, {"ratios": (0.5, 0.2, 0)}):
        with pytest.raises(BadUsage):
            PyramidDrop(**wrong)
