"""Stages inside a model against the released code: what runs there gives the released states, logits and ids."""

from contextlib import contextmanager

import pytest
import torch
from loader import Golden, cases
from transformers import (
    LlamaConfig,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    Qwen2Config,
    SiglipVisionConfig,
)

from holitom.attach import reduce_tokens
from holitom.methods.fastv import FastV
from holitom.methods.holitom import HoliTom, HoliTomMerge
from holitom.methods.pyramiddrop import PyramidDrop
from holitom.models import adapter_for
from holitom.types import VideoFeatures

NEAR = {"atol": 1e-4, "rtol": 0}


def released_merge(layer, ratio):
    return HoliTomMerge(layer=layer, ratio=ratio, causal=False, include_newlines=True)


def text_config(kind, settings):
    settings = {"tie_word_embeddings": False, **settings}
    settings["rope_parameters"] = {"rope_type": "default", "rope_theta": settings.pop("rope_theta")}
    return kind(**settings)


@pytest.mark.parametrize(("file", "number"), cases("holitom_e2e"))
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_holitom_end_to_end(file, number, attention):
    golden = Golden(file)
    run, text, extra = golden.runs[number], golden.params, golden.params["hf_config"]
    config = LlavaOnevisionConfig(
        vision_config=SiglipVisionConfig(**text["config"]["vision"], vision_use_head=extra["vision_use_head"]),
        text_config=text_config(Qwen2Config, text["config"]["text"]),
        image_token_index=extra["image_token_index"],
        video_token_index=extra["video_token_index"],
        vision_feature_layer=extra["vision_feature_layer"],
        tie_word_embeddings=False,
    )
    model = LlavaOnevisionForConditionalGeneration(config).eval()
    model.load_state_dict(golden.weights())
    model.set_attn_implementation(attention)
    model.generation_config.eos_token_id = None
    clip, outer = golden["pixel_values_videos"][None], None
    if run["outer"]:
        outer = HoliTom(tau=run["tau"], beta=run["beta"], k=run["K"], max_window=run["max_window"])
    inner = [] if run["k"] is None else [released_merge(run["k"], run["r"])]
    placeholders = golden["pooled_features"].shape[:2].numel() + 1
    ids = torch.tensor([[*text["pre_ids"], *[config.video_token_id] * placeholders, *text["post_ids"]]])
    with reduce_tokens(model, outer, run["ratio"] if run["outer"] else 1.0, inner) as done:
        out = model.generate(
            input_ids=ids, pixel_values_videos=clip, max_new_tokens=text["n_new"], do_sample=False,
            return_dict_in_generate=True, output_logits=True,
        )  # fmt: skip
    assert out.sequences[0, ids.shape[1] :].tolist() == golden[number, "new_tokens"].tolist()
    torch.testing.assert_close(torch.cat(out.logits), golden[number, "step_logits"], **NEAR)
    assert list(done.stats.last.prompt_per_layer) == golden[number, "prefill_len"].tolist()
    done.stats.check_acted()
    with torch.no_grad():
        (video,) = adapter_for(model).encode(clip, frozenset({"saliency"}))
    torch.testing.assert_close(video.tokens, golden["pooled_features"], **NEAR)
    torch.testing.assert_close(video.saliency, golden["pooled_attn"], atol=1e-6, rtol=0)
    if outer:
        torch.testing.assert_close(outer(video, run["ratio"]).tokens, golden[number, "video_tokens"][:-1], **NEAR)


def wrapped(golden, number, kind):
    """A LLaVA-OneVision around a golden decoder, in which text token ``i`` of the prompt has an id of its own.

    Returns the model, the prompt's ids and its video: the span without its last embedding, which becomes the newline.
    """
    run, text = golden.runs[number], text_config(kind, golden.params["config"])
    embeds = golden[f"input{run['input']}/inputs_embeds" if "input" in run else (number, "inputs_embeds")].float()
    start, length = run["image_start"], run["image_len"]
    weights = {k.removeprefix("model."): v for k, v in golden.weights().items()}
    words = torch.cat([embeds[:start], embeds[start + length :]])
    known = weights["embed_tokens.weight"]
    vocabulary = len(known) + len(words) + 2
    text = kind(**{**text.to_dict(), "vocab_size": vocabulary})
    tower = SiglipVisionConfig(
        hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1, image_size=8, patch_size=4
    )
    config = LlavaOnevisionConfig(
        vision_config=tower, text_config=text, image_token_index=vocabulary - 1, video_token_index=vocabulary - 2
    )
    model = LlavaOnevisionForConditionalGeneration(config).eval()
    head = weights.pop("lm_head.weight", known)
    spare = torch.zeros(vocabulary - len(known), known.shape[1])
    spare[: len(words)] = words
    weights["embed_tokens.weight"] = torch.cat([known, spare])
    model.model.language_model.load_state_dict(weights)
    model.lm_head.weight.zero_()
    model.lm_head.weight[: len(head)] = head
    model.model.image_newline.copy_(embeds[start + length - 1])
    own = torch.arange(len(known), len(known) + len(words))
    ids = torch.cat([own[:start], torch.full((length,), vocabulary - 2), own[start:]])[None]
    return model, ids, VideoFeatures(embeds[None, start : start + length - 1], (1, length - 1))


class Watched:
    """A stage that notes the score it got and the ids it kept. The whole span of a golden file is visual, its last
    token too, which is a newline here."""

    include_newlines = True

    def __init__(self, stage):
        self.stage = stage

    def __getattr__(self, name):
        return getattr(self.stage, name)

    def __call__(self, hidden, score, visual, n0):
        self.score = score
        self.kept, states = self.stage(hidden, score, visual, n0)
        return self.kept, states


@contextmanager
def prefill(model, ids, video, stages):
    """One forward with the stages inside: the block, its output, the states that entered each stage's layer and those
    behind the last norm."""
    text, entered, normed = model.model.language_model, [], []
    with reduce_tokens(model, inner=stages) as done:
        handles = [
            text.layers[stage.layer].register_forward_pre_hook(lambda _, args: entered.append(args[0][0]))
            for stage in stages
        ]
        handles.append(text.norm.register_forward_hook(lambda _, args, out: normed.append(out[0])))
        done.provide([video])
        out = model(input_ids=ids, use_cache=True)
        for handle in handles:
            handle.remove()
        yield done, out, entered, normed[0]


@pytest.mark.parametrize(("file", "number"), cases("holitom_inner", without="holitom_inner_step"))
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@torch.no_grad()
def test_holitom_inside_a_qwen2(file, number, attention):
    golden = Golden(file)
    run, (model, ids, video) = golden.runs[number], wrapped(golden, number, Qwen2Config)
    model.set_attn_implementation(attention)
    released, causal = (Watched(HoliTomMerge(run["k"], run["r"], causal=causal)) for causal in (False, True))
    with prefill(model, ids, video, [causal]):
        pass
    with prefill(model, ids, video, [released]) as (_, out, entered, normed):
        cache, logits = out.past_key_values, [out.logits[:, -1]]
        held = [cache.get_seq_length(i) for i in range(len(cache))]
        for token in golden[number, "new_tokens"]:  # the released loop feeds the last one back too
            logits.append(model(input_ids=token.view(1, 1), past_key_values=cache).logits[:, -1])
    assert held == golden[number, "cache_len"].tolist()
    assert [cache.get_seq_length(i) for i in range(len(cache))] == golden[number, "cache_len_end"].tolist()
    torch.testing.assert_close(entered[0], golden[number, "hidden_into_layer_k"], **NEAR)
    torch.testing.assert_close(normed, golden[number, "hidden_last"], **NEAR)
    expected = golden[number, "step_logits"]
    torch.testing.assert_close(torch.cat(logits[:-1])[:, : expected.shape[1]], expected, **NEAR)
    for stage in (released, causal):  # layer k - 1 leaves the last row, and so the choice, as it is
        assert stage.kept.tolist() == golden[number, "keep_index"].tolist()
        torch.testing.assert_close(stage.score, golden[number, "attn_last_row"].mean(0), atol=1e-5, rtol=0)


@pytest.mark.parametrize(("file", "number"), cases("fastv") + cases("pyramiddrop"))
@torch.no_grad()
def test_fastv_and_pyramiddrop_inside_a_llama(file, number):
    golden = Golden(file)
    run, (model, ids, video) = golden.runs[number], wrapped(golden, number, LlamaConfig)
    steps = "layer_list" in run
    made = (
        PyramidDrop(tuple(run["layer_list"]), tuple(run["ratios"])).stages() if steps else [FastV(run["k"], run["r"])]
    )
    stages, alive = [Watched(stage) for stage in made], torch.arange(ids.shape[1])
    with prefill(model, ids, video, stages) as (_, _, entered, normed):
        pass
    for j, (stage, states) in enumerate(zip(stages, entered, strict=True)):
        alive = alive[stage.kept]
        visual = alive[(alive >= run["image_start"]) & (alive < run["image_start"] + run["image_len"])]
        kept = golden[number, f"stage{j}_kept"] + run["image_start"] if steps else golden[number, "keep_index"]
        assert torch.equal(visual if steps else alive, kept)
        key = f"stage{j}_hidden" if steps else "hidden_into_layer_k"
        torch.testing.assert_close(states, golden[number, key], **NEAR)
    torch.testing.assert_close(normed, golden[number, "hidden_last"], **NEAR)
