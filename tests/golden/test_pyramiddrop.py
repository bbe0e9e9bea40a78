import pytest
import torch
from llama_layers import run_layers
from loader import Golden, cases

from holitom.methods.pyramiddrop import PyramidDrop


@pytest.mark.parametrize(("name", "run"), cases("pyramiddrop"))
def test_every_stage_in_a_llama_equals_the_release(name, run):
    golden = Golden(name)
    setting = golden.runs[run]
    stages = PyramidDrop(tuple(setting["layer_list"]), tuple(setting["ratios"])).stages()
    found, last = run_layers(golden, run, stages)
    assert len(found) == len(stages)
    for j, (kept, _, entering) in enumerate(found):
        assert torch.equal(kept - setting["image_start"], golden[run, f"stage{j}_kept"])
        torch.testing.assert_close(entering, golden[run, f"stage{j}_hidden"], atol=1e-4, rtol=0)
    torch.testing.assert_close(last, golden[run, "hidden_last"], atol=1e-4, rtol=0)
