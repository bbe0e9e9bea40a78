"""Uses of the block that would give wrong numbers without a word: each is refused by name and leaves nothing behind."""

import copy

import pytest
import torch
from hosts import PAD, onevision
from seam import ALL, GREEDY, Drop, Host, KeepEvery, Nearest, batch, marks, words
from transformers import DynamicCache, MistralConfig, Qwen2Config, StaticCache

from holitom.attach import reduce_tokens
from holitom.errors import BadUsage, UnsupportedModel
from holitom.methods.dycoke import DyCokeDecode
from holitom.methods.fastv import FastV
from holitom.methods.holitom import HoliTom
from holitom.types import Reduction, VideoFeatures


class Bare:
    layer = 2

    def __call__(self, hidden, score, visual, n0):
        raise AssertionError


SETTINGS = {
    "budget 0": {"outer": ALL, "budget": 0.0},
    "budget 1.5": {"outer": ALL, "budget": 1.5},
    "without an outer stage": {"budget": 0.5},
    "not an outer stage": {"outer": HoliTom, "budget": 0.5},
    "has positions 'orignal'": {"outer": KeepEvery(positions="orignal"), "budget": 0.3},
    r"requires \['salience'\]": {"outer": KeepEvery(requires=frozenset({"salience"})), "budget": 0.3},
    "not a stage with a layer": {"inner": [ALL]},
    r"layer 5.*\[1, 4\]": {"inner": [Drop(5)]},
    r"layer 0.*\[1, 4\]": {"inner": [Drop(0)]},
    r"layer -1.*\[0, 4\]": {"inner": [Drop(-1, score="this")]},
    r"layer 2\.5.*an int": {"inner": Drop(2.5)},
    r"layers \[2, 2\]": {"inner": [Drop(2), Drop(2, score="this")]},
    "in ascending order": {"inner": [Drop(3), Drop(2)]},
    "has positions 'org'": {"inner": [Drop(2, positions="org")]},
    "has query 'txt'": {"inner": [Drop(2, query="txt")]},
    "has score 'prv'": {"inner": [Drop(2, score="prv")]},
    "Bare has no attribute 'positions'": {"inner": [Bare()]},
    "DyCokeDecode has no attribute 'positions'": {"inner": [DyCokeDecode(2, 0.5)]},
    "layer 9": {"decode": Nearest(9)},
    "FastV is no decode stage": {"decode": FastV(2, 0.5)},
    "stages beside it": {"reduction": Reduction("x"), "outer": ALL},
    "reduction is a KeepEvery": {"reduction": ALL},
}


@pytest.mark.parametrize("match", SETTINGS)
def test_settings(plain, match):
    before = marks(plain.model)
    with pytest.raises(BadUsage, match=match), reduce_tokens(plain.model, **SETTINGS[match]):
        pass
    assert marks(plain.model) == before


GENERATION = {
    "prefill_chunk_size": 16,
    "prompt_lookup_num_tokens": 2,
    "assistant_model": torch.nn.Linear(1, 1),
    "assistant_early_exit": 2,
    "custom_generate": "someone/code",
    "token_healing": True,
    "cache_implementation": "static",
}


@pytest.mark.parametrize("name", GENERATION)
def test_ways_to_generate(plain, name):
    """As an argument, and in a generation config."""
    given, config = {name: GENERATION[name]}, copy.deepcopy(plain.model.generation_config)
    ways = [given]
    if hasattr(config, name):
        config.update(**given)
        ways.append({"generation_config": config})
    with reduce_tokens(plain.model, KeepEvery(), 0.3):
        for way in ways:
            with pytest.raises(UnsupportedModel, match=name):
                plain.model.generate(**plain.inputs(0), **way)


@pytest.mark.parametrize("inner", [(), Drop(2)])
def test_caches(plain, inner):
    static = StaticCache(config=plain.model.config.text_config, max_cache_len=128)
    offloaded = DynamicCache()
    offloaded.offloading = True
    quantised = type("QuantizedCache", (DynamicCache,), {})()  # the real one needs a backend of its own
    with reduce_tokens(plain.model, KeepEvery(), 0.3, inner):
        for call in (plain.model, plain.model.generate):
            for name, cache in {"StaticCache": static, "offloaded": offloaded, "Quantized": quantised}.items():
                with pytest.raises(UnsupportedModel, match=name):
                    call(**plain.inputs(0), past_key_values=cache)
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
        with pytest.raises(UnsupportedModel, match="sliding_attention"), reduce_tokens(model, **stages):
            pass
    stock = model.generate(**plain.inputs(0, 1), **GREEDY)
    with reduce_tokens(model, ALL):
        assert torch.equal(model.generate(**plain.inputs(0, 1), **GREEDY).sequences, stock.sequences)


def calls(plain):
    """By what is said: the arguments of a call that is refused, as generation and as plain forward."""
    good = plain.inputs(0)
    right, hole, empty = (good["attention_mask"].clone() for _ in range(3))
    right[0, -1], hole[0, 3], empty[:] = 0, 0, 0
    ids, clips = good["input_ids"], good["pixel_values_videos"]
    embeds = plain.model.get_input_embeddings()(ids)
    encoded = {"video": plain.model.model.get_video_features(clips)}
    video = torch.full((1, 1), 299)
    return {
        "padded on the right": {**good, "attention_mask": right},
        "in the middle": {**good, "attention_mask": hole},
        "all padding": {**good, "attention_mask": empty},
        "a mask of shape": {**good, "attention_mask": torch.ones(1, 1, 77, 77)},
        "vision_feature_layer is given": {**good, "vision_feature_layer": -3},
        "position_ids are given": {**good, "position_ids": torch.arange(ids.shape[1])[None]},
        "no video came with it": batch(plain.prompt(0)),
        "encoded outside of the block": {**batch(plain.prompt(0)), "mm_encoder_outputs": encoded},
        "no prompt has a place": {**batch(words(12)), "pixel_values_videos": clips},
        "Put video placeholders into input_ids": {"inputs_embeds": embeds, "pixel_values_videos": clips},
        "a video is given, and": {"input_ids": video, "pixel_values_videos": clips},
        "1 videos, but 2 runs": {**batch(plain.prompt(0), plain.prompt(1)), "pixel_values_videos": clips},
        "2 videos, but 4 runs": {**batch(*[plain.prompt(0)] * 4), "pixel_values_videos": plain.clips},
        "2 videos, but 1 runs": {**batch(plain.prompt(0)), "pixel_values_videos": plain.clips},
        "image placeholders|placeholders for images": {**good, "pixel_values": torch.zeros(1, 2, 3, 112, 112),
                                                       "image_sizes": torch.tensor([[112, 112]])},
    }  # fmt: skip


@torch.no_grad()
def test_inputs(plain):
    refused = calls(plain)
    with reduce_tokens(plain.model, KeepEvery(), 0.3) as run:
        for match, given in refused.items():
            for call in (plain.model, plain.model.generate):
                with pytest.raises(BadUsage, match=match):
                    call(**given)
        good = plain.inputs(0)
        for name, value in (("labels", good["input_ids"]), ("logits_to_keep", torch.tensor([3]))):
            with pytest.raises(BadUsage, match=name):
                plain.model(**good, **{name: value})
        with pytest.raises(BadUsage, match="needs a list of VideoFeatures"):
            run.provide([])
        with pytest.raises(BadUsage, match="pixel_values_videos of shapes"):
            run.encode(torch.zeros(4, 3, 112, 112))
        run.provide(run.encode(good["pixel_values_videos"]))
        with pytest.raises(BadUsage, match="Give one of the two"):
            plain.model.generate(**good)
        assert not run.stats.samples
    with reduce_tokens(plain.model, HoliTom(), 0.3) as run:
        run.provide([VideoFeatures(torch.zeros(4, 16, 32), (4, 4))])
        with pytest.raises(BadUsage, match="needs saliency"):
            plain.model.generate(**batch(plain.prompt(0)))


@torch.no_grad()
def test_on_a_cache(plain):
    model, good, token = plain.model, plain.inputs(0), torch.tensor([[7]])
    with reduce_tokens(model, KeepEvery(), 0.3, Drop(2)):
        cache = model(**good, use_cache=True).past_key_values
        for match, given in {
            "2 rows on a cache of 1 prompts": {"input_ids": token.expand(2, 1)},
            "no prompt has a place for it": {"input_ids": token, "pixel_values_videos": plain.clips[:1]},
            "padding among tokens": {"input_ids": token.expand(1, 3), "attention_mask": torch.tensor([[0, 1, 1]])},
        }.items():
            with pytest.raises(BadUsage, match=match):
                model(**given, past_key_values=copy.deepcopy(cache))
        with pytest.raises(BadUsage, match="generate cannot go on"):
            model.generate(token, past_key_values=cache, **GREEDY)
        cropped = copy.deepcopy(cache)
        cropped.crop(-1)
        with pytest.raises(BadUsage, match="crop only what follows"):
            model(input_ids=token, past_key_values=cropped)
        cache = DynamicCache()
        model(**good, past_key_values=cache)
        for layer in cache.layers:  # emptied, it holds no prompt any more
            layer.keys, layer.values = layer.keys[:, :, :0], layer.values[:, :, :0]
        text = batch(words(9))
        model(**text, past_key_values=cache)
        ours = model(input_ids=token, past_key_values=cache).logits
    conversation = model(**text, use_cache=True).past_key_values
    assert torch.equal(ours, model(input_ids=token, past_key_values=copy.deepcopy(conversation)).logits)
    with reduce_tokens(model, KeepEvery(), 0.3), pytest.raises(BadUsage, match="on top of a cache"):
        model(**good, past_key_values=conversation)


def test_placeholders_of_places_on_a_grid():
    """Positions of Qwen2.5-VL come from the prompt: a placeholder for every token, and all that its processor makes."""
    host = Host("qwen2_5_vl")
    model, given = host.model, host.inputs(0)
    del given["mm_token_type_ids"]
    with reduce_tokens(model, KeepEvery(), 0.3):
        with pytest.raises(BadUsage, match="mm_token_type_ids"):
            model.generate(**given, **GREEDY)
        with pytest.raises(BadUsage, match="10 placeholders for a video of 72 tokens"):
            positions = torch.arange(22).expand(3, 1, -1)
            model(**batch(host.prompt(0, 10)), **host.pixels(0), position_ids=positions)
