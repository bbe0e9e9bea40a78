"""The speed plan on a pretended CUDA device: every branch that a GPU would take, from the model's construction to the
record. And the pretended device itself refuses what CUDA refuses."""

from dataclasses import replace

import pytest
import torch
from pretended_cuda import pretended_cuda

from holitom_repro.latency import shapes
from holitom_repro.latency.content import recorded_similarity
from holitom_repro.latency.inputs import make_inputs
from holitom_repro.latency.passes import prefilled
from holitom_repro.latency.plan import sizes
from holitom_repro.latency.records import read
from holitom_repro.latency.running import record_plan
from holitom_repro.latency.shapes import load
from holitom_repro.latency.static_decoding import StaticDecoder
from holitom_repro.latency.timeline import EventClock
from holitom.models import adapter_for
from holitom.moments import clock


@pytest.fixture
def small(monkeypatch):
    """The papers' shapes with few layers and narrow ones, and frames of 8 x 8 patches."""
    narrow = {"image_size": 112, "num_hidden_layers": 2, "hidden_size": 64, "intermediate_size": 64}
    monkeypatch.setattr(shapes, "SIGLIP", {**shapes.SIGLIP, **narrow, "num_attention_heads": 4})
    for name, shape in shapes.SHAPES.items():
        heads = {"num_heads": 4, "num_key_value_heads": 2, "hidden_size": 64, "intermediate_size": 64}
        monkeypatch.setitem(shapes.SHAPES, name, replace(shape, layers=4, **heads))


@pytest.mark.slow
def test_the_aims_are_recorded(small, tmp_path):
    path = tmp_path / "h200.jsonl"
    with pretended_cuda():
        outcome = record_plan("speed", path, device="cuda", parts=["aims"], limit=1)
    assert not outcome.left and len(read(path)) == len(sizes("speed", ["aims"])[0].settings()) == 3
    for record in read(path):
        assert record["outcome"] == "measured" and record["clock"] == "CUDA events"
        assert record["device"] == "a pretended device" and record["dtype"] == "bfloat16"
        assert {way: run["outcome"] for way, run in record["decoding"].items()} == dict.fromkeys(
            ("eager", "static", "graph"), "measured"
        )
        assert record["decoding"]["graph"]["same_tokens"] == record["decoding"]["static"]["same_tokens"]
        assert record["memory"]["how"].startswith("CUDA allocator")
        assert isinstance(record["saliency_tried"]["flash"], float)
    waits = {record["row"]: record["host_syncs"]["count"] for record in read(path)}
    assert waits["HoliTom (w/o M)"] == 1 and waits["HoliTom"] == 2  # the aim, and repeats at one line are counted
    assert {record["attention"] for record in read(path)} <= {"sdpa", "eager"}


def test_a_replay_says_what_the_loop_says():
    """A step that kept a host's value, or a tensor of the capture, would repeat its first token's work."""
    with pretended_cuda():
        loaded = load("tiny", dtype="float32", device="cuda")
        inputs = make_inputs(loaded, 6, 2, recorded_similarity())
        prompt, first = prefilled(loaded, None, inputs, EventClock())
        plain, graph = (StaticDecoder(loaded.model, adapter_for(loaded.model), prompt, first, 8) for _ in range(2))
        graph.capture()
        assert torch.equal(graph.steps(8).cpu(), plain.steps(8).cpu())
        held = [layer.keys.cpu() for layer in plain.cache.layers]
        assert all(torch.equal(layer.keys.cpu(), keys) for layer, keys in zip(graph.cache.layers, held, strict=True))
        assert len({tuple(keys[0, 0, -i].tolist()) for keys in held for i in range(9, 13)}) > 4  # steps differ


def captured(cuda, call):
    graph, side = torch.cuda.CUDAGraph(), torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.graph(graph, stream=side):
        call()
    return graph


@pytest.mark.parametrize(
    "call",
    [
        lambda x: x.sum().item(),
        lambda x: x.cpu(),
        lambda x: x[x > 0],
        lambda x: torch.arange(3).to("cuda"),
        lambda x: torch.cuda.synchronize(),
        lambda x: torch.tensor([1.0], device="cuda"),
        lambda x: x + torch.empty(3, pin_memory=True).to("cuda", non_blocking=True),
    ],
)
def test_a_capture_neither_waits_nor_copies(call):
    with pretended_cuda() as cuda:
        x = cuda.put(torch.ones(3))
        with pytest.raises(RuntimeError, match="capturing"):
            captured(cuda, lambda: call(x))
        assert x.cpu().tolist() == [1.0, 1.0, 1.0]


def test_a_capture_changes_nothing_and_a_replay_does():
    with pretended_cuda() as cuda:
        x = cuda.put(torch.ones(3))
        graph = captured(cuda, lambda: x.add_(1).mul_(2))
        assert x.cpu().tolist() == [1.0] * 3
        graph.replay()
        graph.replay()
        assert x.cpu().tolist() == [10.0] * 3


def test_events_are_compared_when_they_have_ended():
    with pretended_cuda():
        first, second = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        first.record()
        second.record()
        with pytest.raises(RuntimeError, match="not ready"):
            first.elapsed_time(second)
        second.synchronize()
        assert first.elapsed_time(second) > 0
        with pytest.raises(ValueError, match="enable_timing"):
            first.elapsed_time(torch.cuda.Event())
        begin = clock(torch.device("cuda", 0))
        assert float(clock(torch.device("cuda", 0)) - begin) > 0


def test_streams_wait_for_each_other():
    with pretended_cuda() as cuda:
        x, side = cuda.put(torch.ones(3)), torch.cuda.Stream()
        with torch.cuda.stream(side):
            y = x + 1
        with pytest.raises(RuntimeError, match="did not wait"):
            y.sum()
        torch.cuda.current_stream().wait_stream(side)
        assert y.sum().item() == 6


@pytest.mark.parametrize(
    ("call", "refused"),
    [
        (lambda x: x + torch.ones(3), True),
        (lambda x: torch.cat([x, torch.ones(3)]), True),
        (lambda x: x.index_select(0, torch.tensor([1])), True),
        (lambda x: torch.where(x > 0, torch.ones(3), x), True),
        (lambda x: torch.ones(3)[x.long()], True),
        (lambda x: torch.ones(3).add_(x.sum()), True),
        (lambda x: torch.mm(x[None], torch.ones(3, 1)), True),
        (lambda x: x + torch.tensor(2.0), False),
        (lambda x: torch.where(x > 0, torch.tensor(2.0), x), False),
        (lambda x: x[torch.tensor([0, 2])], False),
        (lambda x: x.copy_(torch.ones(3)), False),
    ],
)
def test_tensors_of_both_sides_meet_only_where_cuda_lets_them(call, refused):
    with pretended_cuda() as cuda:
        x = cuda.put(torch.ones(3))
        if refused:
            with pytest.raises(RuntimeError, match="two devices"):
                call(x)
        else:
            assert call(x).is_cuda
