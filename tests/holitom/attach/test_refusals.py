"""Uses of the block that would give wrong numbers without a word: each is refused by name and leaves nothing behind."""

import copy

import pytest
import torch
from hosts import PAD, onevision
from seam import ALL, GREEDY, Drop, Host, KeepEvery, Nearest, batch, marks, words
from transformers import DynamicCache, MistralConfig, Qwen2Config, StaticCache

from holitom.attach import reduce_tokens
from holitom.errors import BadUsage, UnsupportedModel
from holitom.methods import DyCokeDecode, HoliTom
from holitom.types import Reduction, VideoFeatures

SETTINGS = {
    "budget 0": {"outer": ALL, "budget": 0.0},
    "without an outer stage": {"budget": 0.5},
    "HoliTom.* is no Outer stage": {"outer": HoliTom, "budget": 0.5},
    "DyCokeDecode.* is no Inner stage, without score": {"inner": [DyCokeDecode(2, 0.5)]},
    "has score 'prv'": {"inner": [Drop(2, score="prv")]},
    "has layer 2.5": {"inner": Drop(2.5)},
    r"layers \[5\].*\[1, 4\]": {"inner": [Drop(5)]},
    r"layers \[0\].*\[1, 4\]": {"inner": [Drop(0)]},
    r"layers \[2, 2\]": {"inner": [Drop(2), Drop(2, score="this")]},
    r"layers \[3, 2\].*ascending": {"inner": [Drop(3), Drop(2)]},
    r"decode stage at layers \[9\]": {"decode": Nearest(9)},
    "stages beside it": {"reduction": Reduction("x"), "outer": ALL},
    "reduction is a KeepEvery": {"reduction": ALL},
}


@pytest.mark.parametrize("match", SETTINGS)
def test_settings(plain, match):
    before = marks(plain.model)
    with pytest.raises(BadUsage, match=match), reduce_tokens(plain.model, **SETTINGS[match]):
        pass
    assert marks(plain.model) == before


def test_ways_to_generate(plain):
    """By an argument, and by a generation config."""
    config = copy.deepcopy(plain.model.generation_config)
    config.update(prompt_lookup_num_tokens=2)
    with reduce_tokens(plain.model, KeepEvery(), 0.3):
        for given in ({"assistant_model": plain.model}, {"prefill_chunk_size": 16}, {"generation_config": config}):
            with pytest.raises(UnsupportedModel, match="does not work with reduced prompts"):
                plain.model.generate(**plain.inputs(0), **given)


@pytest.mark.parametrize("inner", [(), Drop(2)])
def test_caches(plain, inner):
    offloaded = DynamicCache()
    offloaded.offloading = True
    static = StaticCache(config=plain.model.config.text_config, max_cache_len=128)
    with reduce_tokens(plain.model, KeepEvery(), 0.3, inner):
        for call in (plain.model, plain.model.generate):
            for name, cache in {"StaticCache": static, "offloaded": offloaded}.items():
                with pytest.raises(UnsupportedModel, match=name):
                    call(**plain.inputs(0), past_key_values=cache)
        with pytest.raises(UnsupportedModel, match="StaticCache"):
            plain.model.generate(**plain.inputs(0), cache_implementation="static")
        kept = plain.model.generate(**plain.inputs(0), past_key_values=DynamicCache(), **GREEDY)
    assert kept.past_key_values.get_seq_length() > 0


def test_models():
    flexible = onevision()
    flexible.model.language_model.config._attn_implementation = "flex_attention"
    for match, model in {
        r"a Linear .*LlavaOnevision.*adapter": torch.nn.Linear(1, 1).eval(),
        "mm_newline_position": onevision(mm_newline_position="frame"),
        "flex_attention": flexible,
    }.items():
        with pytest.raises(UnsupportedModel, match=match), reduce_tokens(model, inner=Drop(2)):
            pass


SMALL = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 300, "sliding_window": 16, "pad_token_id": PAD,
}  # fmt: skip


@pytest.mark.parametrize(
    "text", [Qwen2Config(**SMALL, use_sliding_window=True, max_window_layers=2), MistralConfig(**SMALL)]
)
def test_sliding_windows_are_for_outer_stages_only(plain, text):
    """In some layers or in all."""
    model = onevision(text=text)
    for stages in ({"inner": Drop(1)}, {"decode": DyCokeDecode(1, 0.5)}):
        with pytest.raises(UnsupportedModel, match="sliding"), reduce_tokens(model, **stages):
            pass
    stock = model.generate(**plain.inputs(0, 1), **GREEDY)
    with reduce_tokens(model, ALL):
        assert torch.equal(model.generate(**plain.inputs(0, 1), **GREEDY).sequences, stock.sequences)


@torch.no_grad()
def test_inputs(plain):
    """As generation and as plain forward."""
    good = plain.inputs(0)
    ids, clips = good["input_ids"], good["pixel_values_videos"]
    right, hole = (good["attention_mask"].clone() for _ in range(2))
    right[0, -1], hole[0, 3] = 0, 0
    refused = {
        "padded on the right": {**good, "attention_mask": right},
        "in the middle": {**good, "attention_mask": hole},
        "position_ids are given": {**good, "position_ids": torch.arange(ids.shape[1])[None]},
        "none came with it": batch(plain.prompt(0)),
        "no prompt has a place": {**batch(words(12)), "pixel_values_videos": clips},
        "1 videos, but 2 runs": {**batch(plain.prompt(0), plain.prompt(1)), "pixel_values_videos": clips},
        "vision_feature_layer is given": {**good, "vision_feature_layer": -2},
        "pixel_values_videos of shapes": {**good, "pixel_values_videos": torch.zeros(4, 3, 112, 112)},
    }
    with reduce_tokens(plain.model, KeepEvery(), 0.3) as run:
        for match, given in refused.items():
            for call in (plain.model, plain.model.generate):
                with pytest.raises(BadUsage, match=match):
                    call(**given)
        run.provide(run.encode(clips))
        with pytest.raises(BadUsage, match="more than one came with it"):
            plain.model.generate(**good)
        assert not run.stats.samples
    with reduce_tokens(plain.model, HoliTom(), 0.3) as run:
        run.provide([VideoFeatures(torch.zeros(4, 16, 32), (4, 4))])
        with pytest.raises(BadUsage, match=r"reads VideoFeatures\.saliency"):
            plain.model.generate(**batch(plain.prompt(0)))


@torch.no_grad()
def test_on_a_cache(plain):
    model, good, token = plain.model, plain.inputs(0), torch.tensor([[7]])
    with reduce_tokens(model, KeepEvery(), 0.3, Drop(2)):
        cache = model(**good, use_cache=True).past_key_values
        with pytest.raises(BadUsage, match="no prompt has a place for it"):
            model(input_ids=token, pixel_values_videos=plain.clips[:1], past_key_values=cache)
        with pytest.raises(BadUsage, match="padding among tokens"):
            model(input_ids=token.expand(1, 2), attention_mask=torch.tensor([[1, 0]]), past_key_values=cache)
        for place in ({"labels": good["input_ids"]}, {"logits_to_keep": torch.tensor([70])}):
            with pytest.raises(BadUsage, match="count the places of the full prompt"):
                model(**good, **place)
        with pytest.raises(BadUsage, match="generate cannot go on"):
            model.generate(token, past_key_values=cache, **GREEDY)
    conversation = model(**batch(words(9)), use_cache=True).past_key_values
    with reduce_tokens(model, KeepEvery(), 0.3):
        for call in (model, model.generate):
            with pytest.raises(BadUsage, match="on top of a cache"):
                call(**good, past_key_values=conversation)


def test_placeholders_of_places_on_a_grid():
    """Positions of Qwen2.5-VL come from the prompt: a placeholder for every token, and all that its processor makes."""
    host = Host("qwen2_5_vl")
    model, given = host.model, host.inputs(0)
    del given["mm_token_type_ids"]
    with reduce_tokens(model, KeepEvery(), 0.3):
        with pytest.raises(BadUsage, match="mm_token_type_ids"):
            model.generate(**given, **GREEDY)
        with pytest.raises(BadUsage, match=r"\[10\] placeholders for videos of \[72\] tokens"):
            positions = torch.arange(22).expand(3, 1, -1)
            model(**batch(host.prompt(0, 10)), **host.pixels(0), position_ids=positions)
