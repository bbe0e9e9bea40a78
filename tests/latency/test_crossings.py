"""Crossings between host and device: each kind is seen, with the line that caused it, and results are unchanged."""

import pytest
import torch

from holitom.attach import reduce_tokens
from holitom.errors import BadUsage
from holitom_repro.latency.content import drawn_video, forced
from holitom_repro.latency.crossings import SIZE, TO_DEVICE, TO_HOST, VALUE, Crossings
from holitom_repro.latency.inputs import make_inputs
from holitom_repro.latency.passes import Inputs
from holitom_repro.latency.pretending import OnDevice, pretended_device, put
from holitom_repro.latency.settings import setting
from holitom_repro.latency.subjects import count_crossings, pretending
from holitom.methods import FastV, HoliTom, HoliTomMerge
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


def crossings(loaded, reduction, inputs):
    """Crossings in the prefill, and in all with three further tokens and the end of the block; the logits."""
    with pretended_device(loaded.model) as seen:
        ids = put(inputs.ids, seen)
        with reduce_tokens(loaded.model, reduction=reduction) as run:
            run.provide([pretending(video, seen) for video in inputs.features])
            output = loaded.model(input_ids=ids, use_cache=True, logits_to_keep=1)
            prefill, logits = seen.total, output.logits.held
            for _ in range(3):
                token = output.logits[:, -1:].argmax(-1)
                output = loaded.model(input_ids=token, past_key_values=output.past_key_values, use_cache=True)
    return prefill, seen.total, logits


# (in prefill, in all): the outer stage's copy takes the prompt along; what stages inside the model have checked is
# read once, behind the first token. The one value more of FastVID is read by transformers, for a mask without padding.
COUNTED = {
    "HoliTom": (1, 2),
    "HoliTom (w/o M)": (1, 1),
    "VisionZip": (1, 1),
    "DyCoke": (1, 1),
    "FastVID": (2, 2),
    "FastV": (1, 2),
    "PDrop": (1, 2),
}


@pytest.mark.parametrize(("row", "expected"), COUNTED.items())
def test_at_most_two_crossings_a_video(tiny, inputs, row, expected):
    reduction = setting(row, 0.25, "ov-7b", tiny.layers)
    assert max(expected) <= 2 and crossings(tiny, reduction, inputs)[:2] == expected
    assert count_crossings(tiny, reduction, inputs).total == expected[1]


def test_no_method_makes_the_host_wait_more_than_it_was_seen_to(tiny, inputs):
    """PruneVid reads its clusters too; the limit keeps a copy per frame or per layer from coming back."""
    reduction = setting("PruneVid", 0.25, "ov-7b", tiny.layers)
    assert crossings(tiny, reduction, inputs)[1] <= 4


def test_a_batch_crosses_once_a_video_and_the_prompts_once(tiny):
    reduction = setting("HoliTom", 0.25, "ov-7b", tiny.layers)
    assert crossings(tiny, reduction, make_inputs(tiny, 6, 2, forced(0.5)))[:2] == (2, 3)


def test_newlines_in_every_row_cross_once_more(tiny, inputs, monkeypatch):
    """How many rows are left is known on the device only (LLaVA-Video)."""
    monkeypatch.setattr(tiny.config, "mm_newline_position", "grid", raising=False)
    reduction = setting("HoliTom", 0.25, "ov-7b", tiny.layers)
    assert crossings(tiny, reduction, inputs)[:2] == (2, 3)
    outer = Reduction("outer", reduction.outer, 0.25)
    assert crossings(tiny, outer, inputs)[:2] == (2, 2)


def test_a_crossing_more_is_seen_with_its_line(tiny, inputs):
    """The limit above can fail: a stage that looks at one value is one crossing more."""
    reduction = setting("HoliTom", 0.25, "ov-7b", tiny.layers)

    class Looking(HoliTom):
        def __call__(self, video, budget):
            float(video.tokens.sum())
            return super().__call__(video, budget)

    looking = Reduction("looking", Looking(), 0.25, reduction.inner)
    usual, more = count_crossings(tiny, reduction, inputs), count_crossings(tiny, looking, inputs)
    assert isinstance(more, Crossings) and more.total == usual.total + 1 == 3
    assert sum(more.places.values()) == more.total == sum(more.kinds.values())
    assert not [place for place in usual.places if place.startswith(("latency/", "ops/transfer"))]
    assert set(usual.places) == {
        "methods/inputs.py, refuse_non_finite: copy to the host",
        "attaching/session.py, settle: copy to the host",
    }


@pytest.mark.parametrize("row", ["HoliTom", "FastV", "PruneVid", "DyCoke"])
@pytest.mark.parametrize("newlines", ["one_token", "grid"])
def test_what_travels_packed_arrives_unchanged(tiny, inputs, monkeypatch, row, newlines):
    """On the stand-in, where everything is packed, the model says what it says on the CPU, where nothing is."""
    monkeypatch.setattr(tiny.config, "mm_newline_position", newlines, raising=False)
    reduction = setting(row, 0.25, "ov-7b", tiny.layers)
    with torch.no_grad(), reduce_tokens(tiny.model, reduction=reduction) as run:
        run.provide(inputs.features)
        expected = tiny.model(input_ids=inputs.ids, use_cache=True, logits_to_keep=1).logits
    torch.testing.assert_close(crossings(tiny, reduction, inputs)[2], expected, atol=2e-4, rtol=0)


class Broken:
    """An inner stage that keeps what it must not."""

    layer, score, query, positions = 2, "prev", "last", "original"
    prune_past, causal, include_newlines, fidelity = False, True, False, "control"

    def __init__(self, keep):
        self.keep = keep

    def __call__(self, hidden, score, visual, n0):
        if self.keep == "nan":
            return fastv(hidden, score * float("nan"), visual, n0)
        ids = torch.arange(len(hidden), device=hidden.device)
        ids = {"no text": ids[1:], "far": ids[1:] + 5, "mixed": ids.flip(0)}[self.keep]
        return ids, hidden[: len(ids)]


fastv = FastV(layer=2, ratio=0.5)


@pytest.mark.parametrize(
    ("keep", "told"),
    [
        ("no text", "dropped 1 tokens that are not visual"),
        ("far", "returned .* ids"),
        ("mixed", "returned .* ids"),
        ("nan", "hold a NaN"),
    ],
)
@pytest.mark.parametrize("when", ["at the end", "at the next call", "when the statistics are read"])
def test_what_a_stage_gets_wrong_on_a_device_is_told_later(tiny, inputs, keep, told, when):
    with pretended_device(tiny.model) as seen:
        ids = put(inputs.ids, seen)
        block = reduce_tokens(tiny.model, inner=Broken(keep))
        run = block.__enter__()
        run.provide([pretending(video, seen) for video in inputs.features])
        output = tiny.model(input_ids=ids, use_cache=True, logits_to_keep=1)
        with pytest.raises(BadUsage, match=told):
            if when == "at the end":
                block.__exit__(None, None, None)
            elif when == "at the next call":
                tiny.model(input_ids=ids[:, -1:], past_key_values=output.past_key_values, use_cache=True)
            else:
                run.stats.check_acted()
        block.__exit__(None, None, None) if when != "at the end" else None
    assert not vars(tiny.model).get("generate") and not tiny.model.model._forward_pre_hooks


def test_newlines_that_a_stage_may_drop_are_counted_when_somebody_asks(tiny, inputs, monkeypatch):
    monkeypatch.setattr(tiny.config, "mm_newline_position", "grid", raising=False)
    reduction = Reduction("newlines", inner=(HoliTomMerge(layer=2, ratio=0.5, include_newlines=True),))

    def told(run):
        return run.stats.last.per_layer, run.stats.last.newlines_per_layer

    with torch.no_grad(), reduce_tokens(tiny.model, reduction=reduction) as run:
        run.provide(inputs.features)
        tiny.model(input_ids=inputs.ids, use_cache=True, logits_to_keep=1)
        expected = told(run)
    assert 0 < expected[1][2] < expected[1][1]
    with pretended_device(tiny.model) as seen, reduce_tokens(tiny.model, reduction=reduction) as run:
        run.provide([pretending(video, seen) for video in inputs.features])
        tiny.model(input_ids=put(inputs.ids, seen), use_cache=True, logits_to_keep=1)
        before = seen.total
        assert told(run) == expected and seen.total == before + 1


def test_the_count_does_not_grow_with_frames(tiny):
    """A video of any length crosses as often: nothing loops over frames on the host's side."""
    reduction = setting("HoliTom", 0.25, "ov-7b", tiny.layers)

    def counted(frames):
        video = drawn_video(forced(0.5), frames, (4, 4), 128, requires=("saliency",))
        ids = torch.tensor([[9, 10, tiny.config.video_token_id, 11, 12]])
        side = tiny.config.vision_config.image_size
        return count_crossings(tiny, reduction, Inputs(torch.randn(1, frames, 3, side, side), ids, (video,))).total

    assert counted(6) == counted(12)
