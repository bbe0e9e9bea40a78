import pytest
import torch
from llama_layers import run_layers
from loader import Golden, cases

from holitom.methods.fastv import FastV


@pytest.mark.parametrize(("name", "run"), cases("fastv"))
def test_fastv_in_a_llama_equals_the_release(name, run):
    golden = Golden(name)
    [(_, kept, entering)], last = run_layers(golden, run, [FastV(golden.runs[run]["k"], golden.runs[run]["r"])])
    assert torch.equal(kept, golden[run, "keep_index"])
    torch.testing.assert_close(entering, golden[run, "hidden_into_layer_k"], atol=1e-4, rtol=0)
    torch.testing.assert_close(last, golden[run, "hidden_last"], atol=1e-4, rtol=0)
