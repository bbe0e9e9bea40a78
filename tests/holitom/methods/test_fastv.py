import pytest
import torch

from holitom.errors import BadUsage
from holitom.methods.fastv import FastV


@pytest.mark.parametrize(("visual", "ratio", "left"), [(40, 0.5, 20), (40, 0.0, 40), (7, 0.5, 4), (6, 0.99, 1)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_highest_scores_stay_with_all_text_and_ties_go_to_the_lowest_index(visual, ratio, left, dtype):
    hidden, score = torch.randn(visual + 8, 4, dtype=dtype), torch.randint(0, 4, (visual + 8,)).to(dtype)
    ids = torch.arange(3, 3 + visual)
    kept, states = FastV(2, ratio)(hidden, score, ids, visual)
    best = sorted(ids.tolist(), key=lambda i: (-float(score[i]), i))[:left]
    assert kept.tolist() == sorted([0, 1, 2, *best, *range(3 + visual, visual + 8)])
    assert torch.equal(states, hidden[kept])


def test_settings_outside_their_range_are_refused():
    for wrong in ({"layer": 0}, {"layer": 2.0}, {"ratio": 1.0}, {"ratio": -0.1}):
        with pytest.raises(BadUsage, match="FastV"):
            FastV(**wrong)
    assert FastV(ratio=0).identity and not FastV().identity
