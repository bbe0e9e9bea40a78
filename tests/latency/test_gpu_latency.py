"""On a CUDA device: events add up, statistics make nobody wait, and records are whole."""

import pytest
import torch

from holitom_repro.latency.content import forced, recorded_similarity
from holitom_repro.latency.crossings import cuda_waits
from holitom_repro.latency.inputs import make_inputs
from holitom_repro.latency.measuring import Protocol, measure
from holitom_repro.latency.passes import run_pass
from holitom_repro.latency.records import check
from holitom_repro.latency.saliency_ways import try_ways
from holitom_repro.latency.settings import setting
from holitom_repro.latency.shapes import SHAPES, Loaded, build
from holitom_repro.latency.static_decoding import ATTENTIONS
from holitom_repro.latency.timeline import EventClock
from holitom.types import Reduction

pytestmark = pytest.mark.gpu


def shallow(dtype):
    """The 0.5B shape with four decoder layers."""
    shape = SHAPES["ov-0.5b"].cut(4)
    model = build(shape.config(), device=torch.device("cuda"), dtype=dtype)
    return Loaded(model, shape.name, shape.preset, shape.frames, 4, 24, "random", "speed", True)


@pytest.fixture(scope="module")
def half():
    return shallow(torch.bfloat16)


def test_events_add_up(half):
    inputs = make_inputs(half, 8, 1, forced(0.5))
    for reduction in (None, setting("HoliTom", 0.1, "ov-7b", 4)):
        run_pass(half, reduction, inputs, EventClock())
        done = run_pass(half, reduction, inputs, EventClock(), staged=True, new_tokens=3)
        assert sum(done.stages.values()) == pytest.approx(done.ttft, rel=1e-3)
        assert done.decode > 0


def test_the_full_model_through_the_kit_waits_for_no_statistics(half):
    inputs = make_inputs(half, 8, 1, None)
    run_pass(half, Reduction("Vanilla"), inputs, EventClock())
    with cuda_waits() as seen:
        run_pass(half, Reduction("Vanilla"), inputs, EventClock())
    assert not [place for place in seen.places if place.startswith("moments.py")]


@pytest.mark.parametrize(("row", "most"), [("HoliTom", 2), ("HoliTom (w/o M)", 1)])
def test_a_video_makes_the_host_wait_as_often_as_the_stand_in_says(half, row, most):
    inputs = make_inputs(half, 8, 1, forced(0.5))
    run_pass(half, setting(row, 0.1, "ov-7b", 4), inputs, EventClock())
    with cuda_waits() as seen:
        run_pass(half, setting(row, 0.1, "ov-7b", 4), inputs, EventClock())
    assert seen.total <= most, dict(seen.places)


@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("row", ["Vanilla", "HoliTom (w/o M)", "HoliTom"])
def test_a_replayed_graph_says_what_the_static_cache_says(half, row, attention):
    """Bit for bit: it is the same step. Eager decoding rounds otherwise, and in half precision the largest logits of a
    random model are often equal."""
    inputs = make_inputs(half, 8, 2, recorded_similarity())
    reduction = None if row == "Vanilla" else setting(row, 0.25, "ov-7b", 4)
    ways = ("eager", "static", "graph")
    done = run_pass(half, reduction, inputs, EventClock(), new_tokens=16, ways=ways, attention=attention)
    runs = {run.way: run for run in done.decoded}
    assert runs["graph"].outcome == "measured", runs["graph"].reason
    assert torch.equal(runs["graph"].tokens, runs["static"].tokens)
    assert 0 < runs["graph"].seconds < runs["graph"].setup + runs["static"].seconds


@pytest.mark.parametrize("row", ["Vanilla", "HoliTom"])
def test_a_replayed_graph_says_what_eager_decoding_says(row):
    """In float32, where rounding does not decide between tokens."""
    whole = shallow(torch.float32)
    reduction = None if row == "Vanilla" else setting(row, 0.25, "ov-7b", 4)
    inputs = make_inputs(whole, 8, 2, recorded_similarity())
    done = run_pass(whole, reduction, inputs, EventClock(), new_tokens=4, ways=("eager", "graph"))
    eager, graph = done.decoded
    assert graph.outcome == "measured", graph.reason
    assert torch.equal(graph.tokens, eager.tokens)


def test_both_ways_to_the_saliency_agree(half):
    """In the kernels that a GPU runs; which one is faster is for the record to say."""
    found = try_ways(half, make_inputs(half, 8, 1, None), EventClock(), repeats=3)
    assert isinstance(found["flash"], float), found["flash"]
    assert found["largest_difference"] < 1e-3


def test_a_record_of_a_gpu_is_whole(half):
    made = measure(
        half,
        [("all tokens", Reduction("Vanilla")), ("10%", setting("HoliTom", 0.1, "ov-7b", 4))],
        frames=8,
        batch=2,
        similarity=forced(0.5),
        protocol=Protocol(repeats=3, warmup=1, new_tokens=4, decode_repeats=1, ways=("eager", "static", "graph")),
    )
    for record in made:
        assert (
            check(record)["outcome"] == "measured" and record["memory"]["peak_bytes"] > record["memory"]["weight_bytes"]
        )
        assert record["summary"]["extrapolated"]["how"].startswith("extrapolated from 4 of 24")
        assert record["clock"] == "CUDA events" and set(record["state"]) >= {"idle", "reason", "gpu", "gpu_after"}
        assert record["decoding"]["graph"]["outcome"] == "measured", record["decoding"]["graph"]["reason"]
    assert made[1]["host_syncs"]["count"] > 0
