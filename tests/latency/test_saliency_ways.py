"""The saliency without attention maps: equal to the library's, timed beside it, and never instead of it."""

from dataclasses import replace

import pytest
import torch
from pretended_cuda import pretended_cuda
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from holitom.errors import UnsupportedModel
from holitom_repro.latency.inputs import make_inputs
from holitom_repro.latency.measuring import measure
from holitom_repro.latency.plan import sizes
from holitom_repro.latency.saliency_ways import _log_sums, received_by_sums, try_ways
from holitom_repro.latency.shapes import load
from holitom_repro.latency.timeline import EventClock, HostClock
from holitom.models.encoding import received_attention
from holitom.types import Reduction


class Attention(nn.Module):
    def __init__(self, heads, width):
        super().__init__()
        self.q_proj, self.k_proj = (nn.Linear(heads * width, heads * width) for _ in range(2))
        self.num_heads, self.head_dim, self.scale = heads, width, width**-0.5


@pytest.mark.parametrize(
    ("dtype", "off"), [(torch.float32, 2e-6), (torch.bfloat16, 3e-4), (torch.float16, 3e-4)], ids=str
)
@pytest.mark.parametrize(("heads", "width", "patches"), [(4, 72, 81), (2, 16, 1), (3, 8, 130)])
@torch.no_grad()
def test_the_same_saliency(dtype, off, heads, width, patches):
    torch.manual_seed(0)
    attention = Attention(heads, width).to(dtype)
    hidden = (4 * torch.randn(3, patches, heads * width)).to(dtype)
    expected, found = received_attention(attention, hidden), received_by_sums(attention, hidden)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, atol=1e-6 / patches, rtol=off)
    torch.testing.assert_close(found.sum(1), torch.ones(3), atol=1e-3, rtol=0)


@torch.no_grad()
def test_peaked_attention_loses_nothing_in_half_precision():
    """Sums of many sizes: with x rounded to bfloat16 the result would be off by a part in a hundred."""
    torch.manual_seed(0)
    attention = Attention(2, 16).bfloat16()
    hidden = (12 * torch.randn(2, 64, 32)).bfloat16()
    expected, found = received_attention(attention, hidden), received_by_sums(attention, hidden)
    assert expected.max() > 6 / 64  # some patches receive many times the mean
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-3)


def test_types_without_a_kernel_are_refused():
    with pytest.raises(UnsupportedModel, match="float64"):
        received_by_sums(Attention(2, 8).double(), torch.randn(1, 4, 16).double())


def test_the_kernel_of_cuda_gives_sums_of_the_same_shape():
    """By torch's own description of it, which every build has."""
    with FakeTensorMode():
        q, k = (torch.randn(2, 3, 81, 80, dtype=torch.bfloat16, device="cuda") for _ in range(2))
        sums = _log_sums(q, k, 0.1)
        assert q.is_cuda and sums.shape == (2, 3, 81) and sums.dtype == torch.float32 and sums.is_cuda


def test_both_ways_are_timed(tiny, inputs):
    found = try_ways(tiny, inputs, HostClock(), repeats=3)
    assert found["maps"] > 0 and found["flash"] > 0 and found["frames"] == 6 and found["repeats"] == 3
    assert 0 <= found["largest_difference"] < 1e-5
    assert not tiny.model.model.vision_tower._forward_pre_hooks


def test_on_cuda_its_own_kernel_is_called():
    with pretended_cuda():
        loaded = load("tiny", dtype="bfloat16", device="cuda")
        found = try_ways(loaded, make_inputs(loaded, 4, 1, None), EventClock(), repeats=2)
        assert found["largest_difference"] < 1e-3 and found["flash"] > 0, found
        exact = load("tiny", dtype="float32", device="cuda")
        assert (
            "no flash attention for torch.float32"
            in try_ways(exact, make_inputs(exact, 4, 1, None), EventClock(), repeats=2)["flash"]
        )


def test_a_way_that_fails_is_told_and_costs_nothing_else(tiny, quick, monkeypatch):
    def broken(*_):
        raise RuntimeError("no kernel here\nand more")

    monkeypatch.setattr("holitom_repro.latency.saliency_ways.received_by_sums", broken)
    settings = [("all tokens", Reduction("Vanilla"))]
    asked = replace(quick, saliency_ways=True, new_tokens=0, decode_repeats=0)
    (record,) = measure(tiny, settings, frames=4, batch=1, similarity=None, protocol=asked)
    assert record["saliency_tried"]["flash"] == "RuntimeError: no kernel here" and record["outcome"] == "measured"
    assert record["saliency_tried"]["maps"] > 0 and "largest_difference" not in record["saliency_tried"]
    monkeypatch.setattr("holitom_repro.latency.saliency_ways.received_attention", broken)
    (record,) = measure(tiny, settings, frames=4, batch=1, similarity=None, protocol=asked)
    assert record["saliency_tried"] == {"maps": "RuntimeError: no kernel here"} and record["outcome"] == "measured"
    quiet = replace(asked, saliency_ways=False)
    assert measure(tiny, settings, frames=4, batch=1, similarity=None, protocol=quiet)[0]["saliency_tried"] == {}


def test_the_plan_asks_where_it_is_decided():
    assert [size.part for size in sizes("speed") if size.protocol.saliency_ways] == ["aims"]
