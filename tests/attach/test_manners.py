"""What reduce_tokens leaves behind (nothing) and what it refuses (by name, with a fix)."""

import copy
import functools
import gc
import weakref

import jaxtyping
import pytest
import torch
from seam import All, Drop, KeepEvery, batch, pixels, prompt, tiny_model
from transformers import DynamicCache, Qwen2Config, StaticCache

from holitom.attach import reduce_tokens
from holitom.errors import BadUsage, CannotRun, UnsupportedModel
from holitom.methods import DyCokeDecode, FastV, HoliTom, HoliTomMerge
from holitom.types import Reduction, VideoFeatures

GENERATE = {"max_new_tokens": 3, "do_sample": False}


def inputs():
    return {**batch(prompt(5, 7)), "pixel_values_videos": pixels()}


def marks(model):
    """Every hook and every instance attribute of every module."""
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_forward_hooks_with_kwargs", "_forward_pre_hooks_with_kwargs",
             "_forward_hooks_always_called")  # fmt: skip
    found = {}
    for name, module in model.named_modules():
        found[name] = sorted(vars(module)), [len(getattr(module, hook)) for hook in hooks]
    return found


class Broken(KeepEvery):
    def __call__(self, video, budget):
        raise RuntimeError("the method failed")


class BrokenInside(Drop):
    def __call__(self, hidden, score, visual, n0):
        raise RuntimeError("the stage failed")


def test_nothing_is_left_behind():
    model = tiny_model()
    expected = model(**inputs()).logits
    before = marks(model)
    with reduce_tokens(model, HoliTom(), 0.3, Drop(2)):
        assert marks(model) != before
        model.generate(**inputs(), **GENERATE)
    assert marks(model) == before
    assert torch.equal(model(**inputs()).logits, expected)
    for broken in (Reduction("a", Broken(), 0.3), Reduction("b", KeepEvery(), 0.3, (BrokenInside(2),))):
        with pytest.raises(RuntimeError, match="failed"), reduce_tokens(model, reduction=broken):
            model.generate(**inputs(), **GENERATE)
        assert marks(model) == before
        assert torch.equal(model(**inputs()).logits, expected)


def test_the_block_goes_on_after_an_exception(sdpa):
    """A failed call must not colour the next one."""
    text = batch(prompt(5, 7, 0))
    expected = sdpa(**text).logits
    with reduce_tokens(sdpa, inner=BrokenInside(2)):
        with pytest.raises(RuntimeError, match="the stage failed"):
            sdpa.generate(**inputs(), **GENERATE)
        assert torch.equal(sdpa(**text).logits, expected)
        assert torch.equal(sdpa.model.language_model(input_ids=text["input_ids"]).last_hidden_state,
                           sdpa.model(**text).last_hidden_state)  # fmt: skip


def test_another_instance_is_untouched(sdpa):
    other = copy.deepcopy(sdpa)
    expected = other.generate(**inputs(), **GENERATE)
    with reduce_tokens(sdpa, KeepEvery(), 0.3):
        assert torch.equal(other.generate(**inputs(), **GENERATE), expected)


def test_no_reference_keeps_the_model_alive():
    model = tiny_model()
    with reduce_tokens(model, KeepEvery(), 0.3):
        model.generate(**inputs(), **GENERATE)
    alive = weakref.ref(model)
    del model
    gc.collect()
    assert alive() is None


def test_stats_and_acted(sdpa):
    with reduce_tokens(sdpa, HoliTom(), 0.25, [Drop(2), Drop(4)]) as run:
        with pytest.raises(CannotRun, match="no video"):
            run.stats.check_acted()
        with pytest.raises(CannotRun, match="no video"):
            _ = run.stats.last
        sdpa.generate(**inputs(), **GENERATE)
        run.stats.check_acted()
    last = run.stats.last
    assert (last.frames, last.cells, last.requested) == (4, 16, 16)
    assert set(last.seconds) == {"vision", "saliency", "outer", "prefill"} and min(last.seconds.values()) > 0
    assert last.flops_paper < last.flops_exact
    assert last.as_dict()["realised"] == last.kept / 64
    assert last.as_dict()["off_per_frame"] == (last.kept - 16) / 4
    assert (last.budget, last.full_newlines, last.newlines_per_layer) == (0.25, 1, (1,) * 5)
    assert run.stats.calls == {"outer": 1, "inner@2": 1, "inner@4": 1}
    with reduce_tokens(sdpa, decode=DyCokeDecode(2, 0.5)) as run:
        sdpa.generate(**inputs(), max_new_tokens=1, do_sample=False)
        with pytest.raises(CannotRun, match="decode@2 never ran"):
            run.stats.check_acted()


class KeepsAll:
    """Stages of every kind that run and do nothing."""

    class Outside(All):
        pass

    class Inside(Drop):
        def __call__(self, hidden, score, visual, n0):
            return torch.arange(len(hidden)), hidden

    class Reading:
        layer, fidelity = 2, "control"

        def __call__(self, row, visual):
            return visual


@pytest.mark.parametrize(
    ("setting", "name"),
    [
        (Reduction("outer", KeepsAll.Outside(), 0.5), "outer"),
        (Reduction("inner", inner=(KeepsAll.Inside(2),)), "inner@2"),
        (Reduction("one of two", KeepEvery(), 0.3, (Drop(1), KeepsAll.Inside(3))), "inner@3"),
        (Reduction("decode", decode=KeepsAll.Reading()), "decode@2"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_stage_that_keeps_everything_has_not_acted(sdpa, setting, name):
    with reduce_tokens(sdpa, reduction=setting) as run:
        sdpa.generate(**inputs(), **GENERATE)
    assert run.stats.idle == (name,) and not run.stats.missing and not run.stats.acted
    with pytest.raises(CannotRun, match=f"{name} kept every token of all 1 prompts"):
        run.stats.check_acted()


@pytest.mark.parametrize(
    "setting",
    [
        Reduction("budget 1", All(), 1.0),
        Reduction("ratio 0", inner=(HoliTomMerge(2, 0.0), FastV(3, 0.0)), decode=DyCokeDecode(4, 0.0)),
        Reduction("nothing at all"),
    ],
    ids=lambda setting: setting.name,
)
def test_who_asks_for_nothing_may_keep_everything(sdpa, setting):
    with reduce_tokens(sdpa, reduction=setting) as run:
        sdpa.generate(**inputs(), **GENERATE)
    assert run.stats.acted
    run.stats.check_acted()
    assert (run.stats.budget.share, run.stats.budget.layer_share_with_newlines) == (1.0, 1.0)


def test_a_whole_conversation_needs_all_placeholders(sdpa):
    """With fewer, generate cuts the wrong part off; the new turn alone works."""
    start, features = batch(prompt(5, 70, 1)), None
    with reduce_tokens(sdpa) as run:
        features = run.encode(pixels())
        run.provide(features)
        first = sdpa.generate(**start, **GENERATE, return_dict_in_generate=True)
        ids = torch.cat([first.sequences, prompt(80, 0, 0)[None]], dim=1)
        assert first.past_key_values.get_seq_length() > len(start["input_ids"][0])
        cache = copy.deepcopy(first.past_key_values)
        with pytest.raises(BadUsage, match="a placeholder for every token"):
            sdpa.generate(ids, past_key_values=cache, attention_mask=torch.ones_like(ids), **GENERATE)
        cache = copy.deepcopy(first.past_key_values)
        mask = torch.ones_like(ids)
        assert sdpa.generate(ids[:, -81:], past_key_values=cache, attention_mask=mask, **GENERATE).shape == (1, 84)


@torch.no_grad()
def test_an_emptied_cache_forgets_its_prompt(sdpa):
    text, token = batch(prompt(5, 7, 0)), torch.tensor([[7]])
    fresh = sdpa(**text, use_cache=True).past_key_values
    with reduce_tokens(sdpa, KeepEvery(), 0.3, Drop(2)):
        cache = sdpa(**inputs(), use_cache=True).past_key_values
        cache.reset()
        sdpa(**text, past_key_values=cache)
        logits = sdpa(input_ids=token, past_key_values=cache).logits
    assert torch.equal(logits, sdpa(input_ids=token, past_key_values=fresh).logits)


def refused(error, match, **settings):
    return pytest.param(settings, error, match, id=match)


@pytest.mark.parametrize(
    ("settings", "error", "match"),
    [
        refused(BadUsage, "budget 0", outer=All(), budget=0.0),
        refused(BadUsage, "budget 1.5", outer=All(), budget=1.5),
        refused(BadUsage, "without an outer stage", budget=0.5),
        refused(BadUsage, r"layer 5.*\[1, 4\]", inner=[Drop(5)]),
        refused(BadUsage, r"layer 0.*\[1, 4\]", inner=[Drop(0)]),
        refused(BadUsage, r"layer -1.*\[0, 4\]", inner=[Drop(-1, score="this")]),
        refused(BadUsage, "two inner stages at one layer", inner=[Drop(2), Drop(2, score="this")]),
        refused(BadUsage, "not in ascending order", inner=[Drop(3), Drop(2)]),
        refused(BadUsage, "layer 9", decode=Drop(9)),
        refused(BadUsage, "stages beside it", reduction=Reduction("x"), outer=All()),
    ],
)
def test_refused_stages(sdpa, settings, error, match):
    with pytest.raises(error, match=match), reduce_tokens(sdpa, **settings):
        pass
    assert "generate" not in vars(sdpa)


@pytest.mark.parametrize(
    ("settings", "match"),
    [({"outer": HoliTom, "budget": 0.5}, "not an outer stage"), ({"inner": [All()]}, "not a stage with a layer")],
)
def test_refused_types(sdpa, settings, match, monkeypatch):
    """Without the type checks of the test run, as users run it."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(BadUsage, match=match), reduce_tokens(sdpa, **settings):
        pass


@pytest.mark.parametrize(
    ("kwargs", "match"),
    [
        ({"prefill_chunk_size": 16}, "prefill_chunk_size"),
        ({"cache_implementation": "static"}, "cache_implementation='static'"),
        ({"cache_implementation": "offloaded"}, "cache_implementation='offloaded'"),
        ({"prompt_lookup_num_tokens": 2}, "assisted decoding"),
        ({"assistant_model": object()}, "assisted decoding"),
        ({"custom_generate": "someone/code"}, "custom_generate"),
    ],
)
def test_refused_ways_to_generate(sdpa, kwargs, match):
    with reduce_tokens(sdpa, KeepEvery(), 0.3):
        with pytest.raises(UnsupportedModel, match=match):
            sdpa.generate(**inputs(), **GENERATE, **kwargs)
        config = copy.deepcopy(sdpa.generation_config)
        if hasattr(config, next(iter(kwargs))):
            config.update(**kwargs)
            given = inputs()
            with pytest.raises(UnsupportedModel, match=match):
                sdpa.generate(given.pop("input_ids"), config, **given)


def test_refused_caches(sdpa):
    static = StaticCache(config=sdpa.config.text_config, max_cache_len=128)
    with reduce_tokens(sdpa, KeepEvery(), 0.3), pytest.raises(UnsupportedModel, match="StaticCache has a fixed size"):
        sdpa(**inputs(), past_key_values=static)
    offloaded = DynamicCache()
    offloaded.offloading = True
    with reduce_tokens(sdpa, inner=Drop(2)), pytest.raises(UnsupportedModel, match="plain cache layers"):
        sdpa(**inputs(), past_key_values=offloaded)


def test_refused_models(sdpa):
    with (
        pytest.raises(UnsupportedModel, match=r"a Linear cannot.*LlavaOnevision.*adapter"),
        reduce_tokens(torch.nn.Linear(1, 1).eval()),
    ):
        pass
    sdpa.train()
    try:
        with pytest.raises(UnsupportedModel, match=r"training mode.*eval"), reduce_tokens(sdpa):
            pass
    finally:
        sdpa.eval()
    with reduce_tokens(sdpa):
        sdpa.train()
        try:
            with pytest.raises(UnsupportedModel, match="training mode"):
                sdpa(**inputs())
        finally:
            sdpa.eval()
        with pytest.raises(BadUsage, match="already inside"), reduce_tokens(sdpa):
            pass
    compiled = tiny_model()
    compiled.model.language_model._compiled_call_impl = compiled.model.language_model._call_impl  # as compile() does
    with pytest.raises(UnsupportedModel, match="compiled"), reduce_tokens(compiled):
        pass
    for setting in ({"mm_spatial_pool_mode": "max"}, {"mm_newline_position": "frame"}):
        with pytest.raises(UnsupportedModel, match=next(iter(setting))), reduce_tokens(tiny_model(**setting)):
            pass


def test_sliding_windows_only_for_outer_stages():
    text = Qwen2Config(
        hidden_size=32, intermediate_size=64, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=300, use_sliding_window=True, sliding_window=16, max_window_layers=2,
    )  # fmt: skip
    model = tiny_model(text=text)
    with pytest.raises(UnsupportedModel, match="sliding_attention"), reduce_tokens(model, inner=Drop(1)):
        pass
    stock = model.generate(**inputs(), **GENERATE)
    with reduce_tokens(model, All()):
        assert torch.equal(model.generate(**inputs(), **GENERATE), stock)


def test_refused_inputs(sdpa):
    good = inputs()
    with reduce_tokens(sdpa, KeepEvery(), 0.3) as run:
        with pytest.raises(BadUsage, match="labels"):
            sdpa(**good, labels=good["input_ids"])
        with pytest.raises(BadUsage, match="logits_to_keep"):
            sdpa(**good, logits_to_keep=torch.tensor([3]))
        with pytest.raises(BadUsage, match="padded on the right"):
            mask = good["attention_mask"].clone()
            mask[0, -1] = 0
            sdpa(**{**good, "attention_mask": mask})
        with pytest.raises(BadUsage, match="4 dimensions"):
            sdpa(**{**good, "attention_mask": torch.ones(1, 1, 77, 77)})
        with pytest.raises(BadUsage, match="vision_feature_layer"):
            sdpa(**good, vision_feature_layer=-3)
        with pytest.raises(BadUsage, match="no video came with it"):
            sdpa(**batch(prompt(5, 7)))
        with pytest.raises(BadUsage, match="1 videos, but 2 runs"):
            sdpa(**batch(prompt(5, 7), prompt(4, 8)), pixel_values_videos=pixels())
        with pytest.raises(BadUsage, match="needs a list of VideoFeatures"):
            run.provide([])
        with pytest.raises(BadUsage, match="pixel_values_videos of shapes"):
            run.encode(torch.zeros(4, 3, 112, 112))
    with torch.no_grad():
        stock = sdpa.model.get_video_features(good["pixel_values_videos"])
        features = [VideoFeatures(torch.zeros(4, 16, 32), (4, 4))]
        with reduce_tokens(sdpa, HoliTom(), 0.3) as run:
            with pytest.raises(BadUsage, match="no video came with it"):
                sdpa(**batch(prompt(5, 7)), mm_encoder_outputs={"video": stock})
            run.provide(features)
            with pytest.raises(BadUsage, match="needs saliency"):
                sdpa(**batch(prompt(5, 7)))


@torch.no_grad()
def test_refused_continuations(sdpa):
    good, token = inputs(), torch.tensor([[7]])
    with reduce_tokens(sdpa, KeepEvery(), 0.3):
        cache = sdpa(**good, use_cache=True).past_key_values
        for bad, match in [
            ({"input_ids": token, "attention_mask": torch.ones(1, 31)}, "31 columns do not fit"),
            ({"input_ids": token, "attention_mask": torch.ones(1, 80)}, "80 columns do not fit"),
            ({"input_ids": token.expand(2, 1)}, "a batch of 2"),
            ({"input_ids": prompt(1, 1, 5)[None]}, "on top of a cache"),
            ({"input_ids": token, "pixel_values_videos": pixels()}, "on top of a cache"),
        ]:
            with pytest.raises(BadUsage, match=match):
                sdpa(**bad, past_key_values=copy.deepcopy(cache))
        with pytest.raises(BadUsage, match="cropped into the reduced prompt"):
            cache.crop(-1)
            sdpa(input_ids=token, past_key_values=cache)
    text = sdpa(**batch(prompt(3, 3, 0)), use_cache=True).past_key_values
    with reduce_tokens(sdpa, KeepEvery(), 0.3):
        expected = sdpa(input_ids=token, past_key_values=copy.deepcopy(text)).logits
        assert expected.shape == (1, 1, 300)
        with pytest.raises(BadUsage, match="on top of a cache"):
            sdpa(**good, past_key_values=text)


@pytest.mark.parametrize(
    ("returned", "match"),
    [
        (lambda ids, hidden: (ids.flip(0), hidden), "strictly ascending"),
        (lambda ids, hidden: (ids, hidden[1:]), "77 ids and 76 states"),
        (lambda ids, hidden: (ids[1:], hidden[1:]), "dropped 1 tokens that are not visual"),
        (lambda ids, hidden: (ids + 1, hidden), "strictly ascending"),
    ],
)
def test_a_stage_that_breaks_its_promise(sdpa, returned, match):
    class Careless(Drop):
        def __call__(self, hidden, score, visual, n0):
            return returned(torch.arange(len(hidden)), hidden)

    with reduce_tokens(sdpa, inner=Careless(2)), pytest.raises(BadUsage, match=match):
        sdpa(**inputs())


def test_a_prompt_without_a_video_leaves_provided_features_for_the_next(sdpa):
    text = batch(prompt(5, 7, 0))
    expected = sdpa(**text).logits
    with reduce_tokens(sdpa, KeepEvery(), 0.3) as run:
        reduced = sdpa(**inputs()).logits
        run.provide(run.encode(pixels()))
        assert torch.equal(sdpa(**text).logits, expected)
        assert torch.equal(sdpa(**batch(prompt(5, 7))).logits, reduced)
        assert len(run.stats.samples) == 2


def test_a_video_without_a_place_in_the_prompt_is_refused(sdpa):
    with reduce_tokens(sdpa, KeepEvery(), 0.3) as run:
        for call in (sdpa, functools.partial(sdpa.generate, **GENERATE)):
            with pytest.raises(BadUsage, match="no prompt has a place for it"):
                call(**batch(prompt(5, 7, 0)), pixel_values_videos=pixels())
        assert not run.stats.samples and not run.stats.calls
