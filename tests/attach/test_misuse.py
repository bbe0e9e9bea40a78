"""Uses of the block that would give wrong numbers without a word: each is refused by name, or right."""

import copy
import pickle
import threading
from dataclasses import dataclass, replace

import jaxtyping
import numpy as np
import pytest
import torch
from seam import All, Drop, KeepEvery, batch, pixels, prompt, tiny_model
from transformers import MistralConfig

from holitom.attach import reduce_tokens
from holitom.errors import BadUsage, UnsupportedModel
from holitom.methods import AveragePool, DyCokeDecode, FastV, MMGVid, PruneVid, UniformStride
from holitom.methods.presets import preset
from holitom.types import Reduction

GENERATE = {"max_new_tokens": 4, "do_sample": False}


def inputs():
    return {**batch(prompt(5, 7)), "pixel_values_videos": pixels()}


def test_one_question_about_several_videos_needs_a_video_for_each_prompt(sdpa):
    row = prompt(5, 7)
    videos = pixels(4)
    with reduce_tokens(sdpa, KeepEvery(), 0.3):
        with pytest.raises(BadUsage, match="2 videos, but 4 runs"):
            sdpa.generate(**batch(row, row, row, row), pixel_values_videos=videos[:2], **GENERATE)
        with pytest.raises(BadUsage, match="2 videos, but 4 runs"):
            sdpa(**batch(row, row, row, row), pixel_values_videos=videos[:2])
        with pytest.raises(BadUsage, match="2 videos, but 3 runs"):
            sdpa.generate(**batch(row, row, row), pixel_values_videos=videos[:2], num_beams=2, **GENERATE)
        with pytest.raises(BadUsage, match="2 videos, but 1 runs"):
            sdpa.generate(**batch(row), pixel_values_videos=videos[:2], num_beams=2, **GENERATE)
        together = sdpa.generate(**batch(row, row, row, row), pixel_values_videos=videos, **GENERATE)
        for b in range(4):
            alone = sdpa.generate(**batch(row), pixel_values_videos=videos[b : b + 1], **GENERATE)
            assert torch.equal(together[b : b + 1], alone)


@pytest.mark.parametrize("settings", [{"num_beams": 3}, {"num_beams": 3, "num_return_sequences": 2}])
def test_beams_without_a_cache(sdpa, settings):
    given = {**batch(prompt(5, 7), prompt(3, 4)), "pixel_values_videos": pixels(2)}
    with reduce_tokens(sdpa, UniformStride(), 0.3):
        cached = sdpa.generate(**given, **settings, **GENERATE)
        assert torch.equal(sdpa.generate(**given, **settings, use_cache=False, **GENERATE), cached)
        with pytest.raises(BadUsage, match="1 videos, but 3 runs"):  # the beams of the call before are forgotten
            sdpa(**batch(*[prompt(5, 7)] * 3), pixel_values_videos=pixels())


def test_several_returned_sequences_without_a_cache(sdpa):
    settings = {"max_new_tokens": 4, "do_sample": True, "num_return_sequences": 3}
    with reduce_tokens(sdpa, UniformStride(), 0.3):
        torch.manual_seed(3)
        cached = sdpa.generate(**inputs(), **settings)
        torch.manual_seed(3)
        assert torch.equal(sdpa.generate(**inputs(), **settings, use_cache=False), cached)


def test_a_decoder_that_slides_everywhere_takes_outer_stages_only():
    text = MistralConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=300, sliding_window=16, pad_token_id=0,
    )  # fmt: skip
    assert getattr(text, "layer_types", None) is None
    model = tiny_model(text=text)
    for stages in ({"inner": Drop(1)}, {"decode": DyCokeDecode(1, 0.5)}):
        with pytest.raises(UnsupportedModel, match="sliding_attention"), reduce_tokens(model, **stages):
            pass
    stock = model.generate(**inputs(), **GENERATE)
    with reduce_tokens(model, All()):
        assert torch.equal(model.generate(**inputs(), **GENERATE), stock)


@pytest.mark.parametrize("make", [copy.deepcopy, pickle.dumps])
def test_no_copy_is_made_inside_the_block(make):
    model = tiny_model()
    with reduce_tokens(model, KeepEvery(), 0.3), pytest.raises(BadUsage, match="copied or pickled"):
        make(model)
    assert torch.equal(copy.deepcopy(model)(**inputs()).logits, model(**inputs()).logits)


def test_a_second_thread_is_refused_while_a_call_is_under_way(sdpa):
    refused = []

    class Meanwhile(KeepEvery):
        def __call__(self, video, budget):
            def call():
                try:
                    sdpa(**inputs())
                except BadUsage as error:
                    refused.append(error.what)

            other = threading.Thread(target=call)
            other.start()
            other.join()
            return super().__call__(video, budget)

    with reduce_tokens(sdpa, KeepEvery(), 0.3):
        expected = sdpa.generate(**inputs(), **GENERATE)
    with reduce_tokens(sdpa, Meanwhile(), 0.3):
        assert torch.equal(sdpa.generate(**inputs(), **GENERATE), expected)
        assert refused == ["another thread is using this model"]
        found = []
        later = threading.Thread(
            target=lambda: found.append(sdpa.generate(input_ids=torch.tensor([[5, 6]]), **GENERATE))
        )
        later.start()
        later.join()
        assert len(found) == 1  # nothing is under way, so any thread may call


def test_a_video_with_embeddings_is_refused(sdpa):
    embeds = sdpa.get_input_embeddings()(torch.tensor([[5, 6, 7]]))
    with reduce_tokens(sdpa, KeepEvery(), 0.3):
        with pytest.raises(BadUsage, match="a video is given with inputs_embeds"):
            sdpa.generate(inputs_embeds=embeds, pixel_values_videos=pixels(), **GENERATE)
        with pytest.raises(BadUsage, match="a prompt of one token"):
            sdpa(input_ids=torch.tensor([[299]]), pixel_values_videos=pixels())
        expected = sdpa.generate(input_ids=torch.tensor([[5, 6, 7]]), **GENERATE)[:, 3:]
        assert torch.equal(sdpa.generate(inputs_embeds=embeds, **GENERATE), expected)


def test_a_prompt_that_is_padding_only_is_refused(sdpa):
    given = {**batch(prompt(5, 7), prompt(5, 7)), "pixel_values_videos": pixels(2)}
    given["attention_mask"][1] = 0
    with reduce_tokens(sdpa, KeepEvery(), 0.3), pytest.raises(BadUsage, match="all padding"):
        sdpa(**given)


@pytest.mark.parametrize("outer", [PruneVid(), MMGVid()])
def test_an_autocast_around_the_block_leaves_stages_their_precision(sdpa, outer):
    class Watched:
        requires, positions, fidelity = outer.requires, outer.positions, "control"

        def __call__(self, video, budget):
            kept = outer(video, budget)
            with torch.autocast("cpu", enabled=False):
                plain = outer(video, budget)
            assert torch.equal(kept.frame, plain.frame) and torch.equal(kept.tokens, plain.tokens)
            seen.append(torch.is_autocast_enabled("cpu"))
            return kept

    seen = []
    with torch.autocast("cpu", torch.bfloat16), reduce_tokens(sdpa, Watched(), 0.3, inner=FastV(2, 0.5)):
        sdpa(**inputs())
    assert seen == [False]


@dataclass(frozen=True)
class NoDefaults:
    layer: int = 2

    def __call__(self, hidden, score, visual, n0):
        raise AssertionError


def misused(match, **settings):
    return pytest.param(settings, match, id=match)


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        misused("has positions 'orignal'", outer=KeepEvery(positions="orignal"), budget=0.3),
        misused("requires 'salience'", outer=KeepEvery(requires=frozenset({"salience"})), budget=0.3),
        misused("has positions 'org'", inner=[Drop(2, positions="org")]),
        misused("has query 'txt'", inner=[Drop(2, query="txt")]),
        misused("has score 'prv'", inner=[Drop(2, score="prv")]),
        misused("NoDefaults has no attribute 'score'", inner=[NoDefaults()]),
        misused("DyCokeDecode has no attribute 'score'", inner=[DyCokeDecode(2, 0.5)]),
        misused("FastV is no decode stage", decode=FastV(2, 0.5)),
        misused(r"layer 2\.5, which is no int", inner=[Drop(2.5)]),
        misused("layer '2', which is no int", inner=[Drop("2")]),
        misused("reduction is a Preset", reduction=preset("table1", "HoliTom", 0.10)),
        misused(r"budget np\.float32\(0\.5\) is no python number", outer=All(), budget=np.float32(0.5)),
    ],
)
def test_stages_that_would_run_as_something_else(sdpa, settings, match, monkeypatch):
    """Without the type checks of the test run, as users run it."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(BadUsage, match=match), reduce_tokens(sdpa, **settings):
        pass
    assert "generate" not in vars(sdpa)


def test_settings_that_say_what_is_wrong(monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(BadUsage, match="Give a tuple of stages"):
        Reduction("x", inner=FastV(2, 0.5))
    with pytest.raises(BadUsage, match=r"layer np\.int64\(3\) is no int"):
        FastV(np.int64(3), 0.5)

    class Bare(AveragePool):
        pass

    assert replace(Reduction("x", outer=Bare())).describe()["outer"]["method"] == "Bare"

    class Undescribed:
        requires, positions, fidelity = frozenset(), "contiguous", "control"

        def __call__(self, video, budget):
            raise AssertionError

    with pytest.raises(BadUsage, match=r"Undescribed does not tell.*dataclass"):
        Reduction("x", outer=Undescribed()).describe()


def test_a_wrapper_without_a_config_is_named(sdpa):
    class Around(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.module = sdpa

    with pytest.raises(UnsupportedModel, match=r"a Around around a .*hides its config"), reduce_tokens(Around().eval()):
        pass
