"""Crossings between host and device: each kind is seen, with the line that caused it, and results are unchanged."""

import pytest
import torch

from holitom.latency.content import drawn_video, forced
from holitom.latency.passes import Inputs
from holitom.latency.settings import setting
from holitom.latency.subjects import count_crossings
from holitom.latency.syncs import SIZE, TO_DEVICE, TO_HOST, VALUE, Crossings, OnDevice, pretended_device, put
from holitom.types import Reduction


@pytest.mark.parametrize(
    ("call", "kind"),
    [
        (lambda x, dev: x.cpu(), TO_HOST),
        (lambda x, dev: x.tolist(), TO_HOST),
        (lambda x, dev: torch.empty(4).copy_(x), TO_HOST),
        (lambda x, dev: x.sum().item(), VALUE),
        (lambda x, dev: bool((x > 0).all()), VALUE),
        (lambda x, dev: x.nonzero(), SIZE),
        (lambda x, dev: x[x > 1], SIZE),
        (lambda x, dev: x.unique(), SIZE),
        (lambda x, dev: torch.arange(4).to(dev), TO_DEVICE),
        (lambda x, dev: torch.tensor([1, 2], device=dev), TO_DEVICE),
    ],
)
def test_each_kind_of_crossing_is_seen(call, kind):
    with pretended_device(torch.nn.Identity()) as seen:
        x = put(torch.arange(4.0), seen)
        call(x, x.device)
    assert dict(seen.kinds) == {kind: 1}


def test_work_on_the_device_and_waiting_for_nobody_is_not_counted():
    with pretended_device(torch.nn.Linear(4, 3)) as seen:
        x = put(torch.randn(5, 4), seen)
        y = (x @ x.mT).softmax(-1).topk(2).indices
        z = torch.zeros(3, device=x.device) + torch.arange(3, device=x.device)
        w = torch.arange(4).to(x.device, non_blocking=True)
        x[1:3] = 0
        assert all(isinstance(t, OnDevice) for t in (y, z, w, x[:2]))
    assert seen.total == 0


def test_results_and_weights_are_those_of_the_cpu():
    torch.manual_seed(0)
    layer = torch.nn.Linear(4, 3)
    x, weight = torch.randn(5, 4), layer.weight
    expected = layer(x).detach()
    with pretended_device(layer) as seen:
        got = layer(put(x, seen)).cpu()
    assert torch.equal(got, expected) and layer.weight is weight
    with pytest.raises(RuntimeError, match="broken"), pretended_device(layer):
        raise RuntimeError("broken")
    assert layer.weight is weight


def test_a_whole_prefill_is_counted_by_line(tiny, inputs):
    reduction = setting("HoliTom", 0.25, "ov-7b", tiny.layers)
    seen = count_crossings(tiny, reduction, inputs)
    assert isinstance(seen, Crossings) and 0 < seen.total < 60
    assert sum(seen.places.values()) == seen.total == sum(seen.kinds.values())
    assert not [place for place in seen.places if place.startswith("latency/")]
    assert any(place.startswith("methods/holitom.py, ") for place in seen.places)
    outer_only = count_crossings(tiny, Reduction("outer", reduction.outer, 0.25), inputs)
    assert outer_only.total < seen.total


def test_the_count_does_not_grow_with_frames(tiny):
    """A video of any length crosses as often: nothing loops over frames on the host's side."""
    reduction = setting("HoliTom", 0.25, "ov-7b", tiny.layers)

    def crossings(frames):
        video = drawn_video(forced(0.5), frames, (4, 4), 128, requires=("saliency",))
        ids = torch.tensor([[9, 10, tiny.config.video_token_id, 11, 12]])
        side = tiny.config.vision_config.image_size
        return count_crossings(tiny, reduction, Inputs(torch.randn(1, frames, 3, side, side), ids, (video,))).total

    assert crossings(6) == crossings(12)
