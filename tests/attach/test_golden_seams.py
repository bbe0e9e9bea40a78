"""The seams against the released code: what runs inside a model gives the released hidden states, logits and ids."""

import pytest
import torch
from transformers import (
    LlamaConfig,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    Qwen2Config,
    SiglipVisionConfig,
)

from golden.loader import Golden
from holitom.attach import reduce_tokens
from holitom.methods import FastV, HoliTom, HoliTomMerge
from holitom.types import VideoFeatures

INNER, E2E, FASTV = Golden("holitom_inner"), Golden("holitom_e2e"), Golden("fastv")


def released_merge(layer, ratio):
    return HoliTomMerge(layer=layer, ratio=ratio, causal=False, include_newlines=True)


@pytest.fixture(scope="module", params=["sdpa", "eager"])
def e2e(request):
    text, extra = dict(E2E.params["config"]["text"]), E2E.params["hf_config"]
    text["rope_parameters"] = {"rope_type": "default", "rope_theta": text.pop("rope_theta")}
    vision = SiglipVisionConfig(**E2E.params["config"]["vision"], vision_use_head=extra["vision_use_head"])
    config = LlavaOnevisionConfig(
        vision_config=vision,
        text_config=Qwen2Config(**text),
        image_token_index=extra["image_token_index"],
        video_token_index=extra["video_token_index"],
        vision_feature_layer=extra["vision_feature_layer"],
        tie_word_embeddings=False,
    )
    model = LlavaOnevisionForConditionalGeneration(config).eval()
    model.load_state_dict(E2E.weights())
    model.set_attn_implementation(request.param)
    model.generation_config.eos_token_id = None
    return model


@pytest.mark.parametrize("number", range(4))
def test_end_to_end(e2e, number):
    run, text = E2E.runs[number], E2E.params
    video = e2e.config.video_token_id
    ids = torch.tensor([[*text["pre_ids"], *[video] * 393, *text["post_ids"]]])
    outer = (
        HoliTom(tau=run["tau"], beta=run["beta"], k=run["K"], max_window=run["max_window"]) if run["outer"] else None
    )
    inner = [released_merge(run["k"], run["r"])] if run["k"] is not None else []
    with reduce_tokens(e2e, outer, run["ratio"] if run["outer"] else 1.0, inner) as done:
        out = e2e.generate(
            input_ids=ids,
            pixel_values_videos=E2E["pixel_values_videos"][None],
            max_new_tokens=text["n_new"],
            do_sample=False,
            return_dict_in_generate=True,
            output_logits=True,
        )
        (features,) = done.encode(E2E["pixel_values_videos"][None], saliency=True)
    assert out.sequences[0, ids.shape[1] :].tolist() == E2E[number, "new_tokens"].tolist()
    torch.testing.assert_close(torch.cat(out.logits), E2E[number, "step_logits"], atol=1e-4, rtol=0)
    assert list(done.stats.last.prompt_per_layer) == E2E[number, "prefill_len"].tolist()
    torch.testing.assert_close(features.tokens, E2E["pooled_features"], atol=1e-4, rtol=0)
    torch.testing.assert_close(features.saliency, E2E["pooled_attn"], atol=1e-6, rtol=0)
    assert done.stats.acted


def wrapped(golden, text, embeds, start, length):
    """A LLaVA-OneVision around a golden decoder, in which text token ``i`` of the prompt has an id of its own.

    Returns the model, the prompt's ids and its video: the span without its last embedding, which becomes the newline.
    """
    weights = {k.removeprefix("model."): v for k, v in golden.weights().items()}
    words = torch.cat([embeds[:start], embeds[start + length :]])
    known = weights["embed_tokens.weight"]
    vocabulary = len(known) + len(words) + 2
    text = type(text)(**{**text.to_dict(), "vocab_size": vocabulary})
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
    with torch.no_grad():
        model.lm_head.weight.zero_()
        model.lm_head.weight[: len(head)] = head
        model.model.image_newline.copy_(embeds[start + length - 1])
    own = torch.arange(len(known), len(known) + len(words))
    ids = torch.cat([own[:start], torch.full((length,), vocabulary - 2), own[start:]])[None]
    return model, ids, VideoFeatures(embeds[None, start : start + length - 1], (1, length - 1))


def watch(module, inputs):
    """A list that collects what enters (or leaves) a module."""
    seen = []
    if inputs:
        module.register_forward_pre_hook(lambda _, args: seen.append(args[0].clone()))
    else:
        module.register_forward_hook(lambda _, args, out: seen.append(out.clone()))
    return seen


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("number", range(5))
@torch.no_grad()
def test_holitom_inner(number, attention):
    run, settings = INNER.runs[number], dict(INNER.params["config"])
    settings["rope_parameters"] = {"rope_type": "default", "rope_theta": settings.pop("rope_theta")}
    embeds = INNER[f"input{run['input']}/inputs_embeds"]
    model, ids, video = wrapped(INNER, Qwen2Config(**settings), embeds, run["image_start"], run["image_len"])
    model.set_attn_implementation(attention)
    with reduce_tokens(model, inner=released_merge(run["k"], run["r"])) as done:
        entering = watch(model.model.language_model.layers[run["k"]], inputs=True)
        normed = watch(model.model.language_model.norm, inputs=False)
        done.provide([video])
        out = model(input_ids=ids, use_cache=True)
        cache, logits = out.past_key_values, [out.logits[:, -1]]
        prefilled = [cache.get_seq_length(i) for i in range(len(cache))]
        for token in INNER[number, "new_tokens"]:  # the released loop feeds the last one back too
            logits.append(model(input_ids=token.view(1, 1), past_key_values=cache).logits[:, -1])
    golden = {name: INNER[number, name] for name in ("keep_index", "hidden_into_layer_k", "hidden_last", "step_logits")}
    assert prefilled == INNER[number, "cache_len"].tolist() == list(done.stats.last.cached_per_layer)
    assert [cache.get_seq_length(i) for i in range(len(cache))] == INNER[number, "cache_len_end"].tolist()
    torch.testing.assert_close(entering[0][0], golden["hidden_into_layer_k"], atol=1e-4, rtol=0)
    torch.testing.assert_close(normed[0][0], golden["hidden_last"], atol=1e-4, rtol=0)
    known = golden["step_logits"].shape[1]
    torch.testing.assert_close(torch.cat(logits[:-1])[:, :known], golden["step_logits"], atol=1e-4, rtol=0)


@pytest.mark.parametrize("number", range(5))
@torch.no_grad()
def test_kept_ids_and_scores_do_not_depend_on_causality(number):
    """The release's layer k-1 is not causal, which leaves the last row, and with it the choice, as it is."""
    run, settings = INNER.runs[number], dict(INNER.params["config"])
    settings["rope_parameters"] = {"rope_type": "default", "rope_theta": settings.pop("rope_theta")}
    embeds = INNER[f"input{run['input']}/inputs_embeds"]
    model, ids, video = wrapped(INNER, Qwen2Config(**settings), embeds, run["image_start"], run["image_len"])
    kept, scores = [], []
    for causal in (True, False):
        stage = HoliTomMerge(layer=run["k"], ratio=run["r"], causal=causal, include_newlines=True)
        recorder = _Recorder(stage)
        with reduce_tokens(model, inner=recorder) as done:
            done.provide([video])
            model(input_ids=ids)
        kept.append(recorder.kept)
        scores.append(recorder.score)
    assert kept[0].tolist() == kept[1].tolist() == INNER[number, "keep_index"].tolist()
    for score in scores:
        torch.testing.assert_close(score, INNER[number, "attn_last_row"].mean(0), atol=1e-5, rtol=0)


class _Recorder:
    """A stage that notes the score it got and the ids it kept."""

    def __init__(self, stage):
        self.stage = stage

    def __getattr__(self, name):
        return getattr(self.stage, name)

    def __call__(self, hidden, score, visual, n0):
        ids, rows = self.stage(hidden, score, visual, n0)
        self.score, self.kept = score, ids
        return ids, rows


@pytest.mark.parametrize("number", range(3))
@torch.no_grad()
def test_fastv_in_a_llama(number):
    run, settings = FASTV.runs[number], dict(FASTV.params["config"])
    settings["rope_parameters"] = {"rope_type": "default", "rope_theta": settings.pop("rope_theta")}
    text = LlamaConfig(**settings, tie_word_embeddings=False)
    embeds = FASTV[number, "inputs_embeds"]
    model, ids, video = wrapped(FASTV, text, embeds, run["image_start"], run["image_len"])
    stage = _Newlines(FastV(layer=run["k"], ratio=run["r"]))
    with reduce_tokens(model, inner=stage) as done:
        entering = watch(model.model.language_model.layers[run["k"]], inputs=True)
        normed = watch(model.model.language_model.norm, inputs=False)
        done.provide([video])
        model(input_ids=ids)
    assert stage.kept.tolist() == FASTV[number, "keep_index"].tolist()
    torch.testing.assert_close(entering[0][0], FASTV[number, "hidden_into_layer_k"], atol=1e-4, rtol=0)
    torch.testing.assert_close(normed[0][0], FASTV[number, "hidden_last"], atol=1e-4, rtol=0)


class _Newlines(_Recorder):
    """The whole span of the golden file is visual, its last token too, which is a newline here."""

    include_newlines = True
