"""Decoding with static caches gives the tokens of eager decoding, whatever an inner stage left in each layer."""

import json
from dataclasses import replace

import pytest
import torch
from ticking import Ticking

from holitom.errors import BadUsage, CannotRun, UnsupportedModel
from holitom_repro.latency import measuring
from holitom_repro.latency.content import forced, recorded_similarity
from holitom_repro.latency.decoding import check_ways, fastest_attention
from holitom_repro.latency.inputs import make_inputs
from holitom_repro.latency.measuring import Protocol, measure
from holitom_repro.latency.passes import prefilled, run_pass
from holitom_repro.latency.pretending import pretended_device, put
from holitom_repro.latency.records import check
from holitom_repro.latency.settings import setting
from holitom_repro.latency.shapes import Loaded, Shape, build
from holitom_repro.latency.static_decoding import ATTENTIONS, Prompt, StaticDecoder
from holitom.methods import DyCoke, DyCokeDecode, FastV, HoliTom, HoliTomMerge
from holitom.models import adapter_for
from holitom.types import Reduction

SETTINGS = {
    "full": None,
    "HoliTom (w/o M)": Reduction("HoliTom (w/o M)", HoliTom(), 0.25),
    "HoliTom": Reduction("HoliTom", HoliTom(), 0.25, (HoliTomMerge(3, 0.5),)),
    "FastV": Reduction("FastV", inner=(FastV(1, 0.5),)),
}


@pytest.fixture(scope="module")
def random():
    """Four layers of a random Qwen2 with grouped heads, of which every answer is another."""
    config = Shape("small", "ov-7b", 4, 48, 96, 4, 6, 2, vocab_size=152000).config()
    config.vision_config.hidden_size, config.vision_config.intermediate_size = 32, 64
    config.vision_config.num_hidden_layers, config.vision_config.num_attention_heads = 2, 4
    config.vision_config.image_size = 112
    model = build(config, device=torch.device("cpu"), dtype=torch.float32)
    draw = torch.Generator().manual_seed(3)
    for name, weight in model.model.language_model.named_parameters():
        if weight.ndim > 1 and "embed" not in name:
            weight.normal_(0.0, 0.3, generator=draw)
    return Loaded(model, "small", "ov-7b", 4, 4, 4, "random", "speed", True)


def decoded(loaded, reduction, inputs, attention="sdpa", number=12):
    done = run_pass(
        loaded, reduction, inputs, Ticking(), new_tokens=number, ways=("eager", "static", "graph"), attention=attention
    )
    return done, {run.way: run for run in done.decoded}


@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("name", SETTINGS)
def test_the_tiny_model_says_the_same(name, attention, tiny, inputs):
    done, runs = decoded(tiny, SETTINGS[name], inputs, attention)
    assert runs["static"].outcome == "measured" and runs["static"].attention == attention
    assert torch.equal(runs["static"].tokens, runs["eager"].tokens)
    assert runs["eager"].tokens.shape == (1, 12) and runs["static"].seconds > 0 and runs["static"].setup > 0
    if name == "HoliTom":
        assert len(set(done.kv_bytes)) == 2  # its layers are unequally long


@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("name", SETTINGS)
def test_a_random_decoder_says_the_same(name, batch, attention, random):
    inputs = make_inputs(random, 6, batch, recorded_similarity())
    _, runs = decoded(random, SETTINGS[name], inputs, attention)
    assert torch.equal(runs["static"].tokens, runs["eager"].tokens)
    assert len(runs["eager"].tokens.unique()) > 6  # not one word over and over, which any mistake would repeat too
    if batch > 1:
        assert not torch.equal(runs["eager"].tokens[0], runs["eager"].tokens[1])


def test_unequal_prompts_are_padded(random):
    """Three videos that keep unequally many tokens: padding in every layer, which no token may read."""
    inputs = make_inputs(random, 6, 3, recorded_similarity())
    prompt, _ = prefilled(random, SETTINGS["HoliTom"], inputs, Ticking())
    assert any(prompt.pads[0]) and any(prompt.pads[-1])


def test_renumbered_layers_keep_their_positions(tiny, inputs):
    made = setting("PDrop", 0.4, "ov-7b", tiny.layers)
    reduction = replace(made, inner=tuple(replace(stage, released=True) for stage in made.inner))
    prompt, _ = prefilled(tiny, reduction, inputs, Ticking())
    assert prompt.shifts[0] is None and prompt.shifts[-1] is not None
    _, runs = decoded(tiny, reduction, inputs)
    assert torch.equal(runs["static"].tokens, runs["eager"].tokens)


def test_a_wrong_column_or_position_would_be_seen(random):
    """The comparison can fail: one layer's mask, or the position, moved by one changes the tokens."""
    inputs = make_inputs(random, 6, 1, recorded_similarity())
    prompt, first = prefilled(random, SETTINGS["HoliTom"], inputs, Ticking())
    adapter = adapter_for(random.model)

    def tokens(spoil):
        with torch.inference_mode():
            decoder = StaticDecoder(random.model, adapter, prompt, first, 12)
            spoil(decoder)
            return decoder.steps(12).clone()

    right = tokens(lambda d: None)
    assert not torch.equal(tokens(lambda d: d._position.add_(40)), right)
    assert not torch.equal(tokens(lambda d: d._groups[-1].mask[..., :20].fill_(-1e9)), right)


def test_restarting_repeats_and_the_model_is_untouched(random):
    inputs = make_inputs(random, 6, 1, recorded_similarity())
    prompt, first = prefilled(random, SETTINGS["HoliTom"], inputs, Ticking())
    before = random.model.config.text_config._attn_implementation
    with torch.inference_mode():
        decoder = StaticDecoder(random.model, adapter_for(random.model), prompt, first, 8, "grouped")
        once = decoder.steps(8).clone()
        decoder.restart()
        assert torch.equal(decoder.steps(8), once)
    assert random.model.config.text_config._attn_implementation == before
    assert not any(layer._forward_pre_hooks for layer in random.model.model.language_model.layers)


def test_what_cannot_be_decoded_so_is_an_outcome(tiny, inputs):
    _, runs = decoded(tiny, SETTINGS["full"], inputs)
    assert runs["graph"].outcome == "unsupported" and "CUDA graphs need a CUDA device" in runs["graph"].reason
    choosing = Reduction("DyCoke", DyCoke(), 0.5, decode=DyCokeDecode(layer=2))
    _, runs = decoded(tiny, choosing, inputs)
    assert runs["eager"].outcome == "measured"
    assert runs["static"].outcome == runs["graph"].outcome == "unsupported"
    assert "chosen anew at every step" in runs["static"].reason


def test_sliding_windows_are_refused(random):
    inputs = make_inputs(random, 4, 1, forced(0.5))
    prompt, first = prefilled(random, None, inputs, Ticking())
    config = random.model.config.text_config
    before = config.layer_types
    config.layer_types = ["sliding_attention", *before[1:]]
    try:
        with pytest.raises(UnsupportedModel, match="sliding_attention"):
            StaticDecoder(random.model, adapter_for(random.model), prompt, first, 4)
    finally:
        config.layer_types = before


def test_ways_and_attentions(tiny, inputs):
    assert check_ways(["graph"]) == ("eager", "graph") and check_ways([]) == ("eager",)
    with pytest.raises(BadUsage, match="--decode compiled"):
        check_ways(["compiled"])
    prompt, first = prefilled(tiny, None, inputs, Ticking())
    assert isinstance(prompt, Prompt)
    tried = fastest_attention(tiny, prompt, first, Ticking())
    assert tried["best"] in ATTENTIONS and all(tried[name] > 0 for name in ATTENTIONS)


def test_records_say_which_decoding_ran(tiny, monkeypatch):
    monkeypatch.setattr(measuring, "machine_state", lambda device: {"idle": None, "reason": "a test"})
    protocol = Protocol(repeats=2, warmup=1, new_tokens=4, decode_repeats=2, ways=("eager", "static", "graph"))
    settings = [("all tokens", Reduction("Vanilla")), ("25%", SETTINGS["HoliTom"])]
    made = measure(tiny, settings, frames=6, batch=2, similarity=forced(0.5), protocol=protocol, clock=Ticking())
    for record in made:
        ways = check(json.loads(json.dumps(record)))["decoding"]
        assert [ways[way]["outcome"] for way in ("eager", "static", "graph")] == ["measured", "measured", "unsupported"]
        assert ways["static"]["same_tokens"] == 1 and ways["static"]["tok_s"]["n"] == 2
        assert ways["eager"]["tok_s"]["median"] == record["summary"]["decode_tok_s"]["median"]
        assert record["decode_attention_tried"]["best"] in ATTENTIONS
    spoiled = json.loads(json.dumps(made[0]))
    spoiled["decoding"]["static"]["seconds"][0] *= 2
    spoiled["decoding"]["static"]["seconds"][1] *= 2
    with pytest.raises(BadUsage, match="does not follow from its samples"):
        check(spoiled)
    spoiled = json.loads(json.dumps(made[0]))
    spoiled["decoding"]["graph"]["reason"] = ""
    with pytest.raises(BadUsage, match="without a reason"):
        check(spoiled)


class _Idle(HoliTom):
    """Claims to reduce and keeps every token."""

    def __call__(self, video, budget):
        return super().__call__(video, 1.0)


@pytest.mark.parametrize("staged", [0, 1])
def test_a_method_that_did_not_act_is_an_error_and_no_record(staged, tiny, monkeypatch):
    monkeypatch.setattr(measuring, "machine_state", lambda device: {"idle": None, "reason": "a test"})
    protocol = Protocol(repeats=1, warmup=1, new_tokens=0, staged_repeats=staged)
    with pytest.raises(CannotRun, match=r"HoliTom \(w/o M\) at 25%: .*kept every token"):
        measure(
            tiny,
            [("25%", Reduction("HoliTom (w/o M)", _Idle(tau=1.0), 0.25))],
            frames=6,
            batch=1,
            similarity=forced(0.0),
            protocol=protocol,
            clock=Ticking(),
        )


def test_a_decode_stage_needs_tokens_to_act_on(tiny):
    choosing = Reduction("DyCoke", DyCoke(), 0.5, decode=DyCokeDecode(layer=2))
    with pytest.raises(BadUsage, match="acts while generating"):
        measure(tiny, [("50%", choosing)], frames=6, batch=1, similarity=None, protocol=Protocol(new_tokens=0))


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_a_step_asks_the_host_for_nothing(attention, tiny, inputs):
    """What can be captured: no crossing between host and device in any step, on the stand-in."""
    prompt, first = prefilled(tiny, SETTINGS["HoliTom"], inputs, Ticking())
    right = StaticDecoder(tiny.model, adapter_for(tiny.model), prompt, first, 6, attention).steps(6).tolist()
    with pretended_device(tiny.model) as seen:
        held = tuple((put(k, seen), put(v, seen)) for k, v in prompt.held)
        there = replace(prompt, held=held, next_position=put(prompt.next_position, seen))
        decoder = StaticDecoder(tiny.model, adapter_for(tiny.model), there, put(first, seen), 6, attention)
        decoder.restart()
        before = seen.total
        tokens = decoder.steps(6)
        assert seen.total == before
        assert tokens.tolist() == right
