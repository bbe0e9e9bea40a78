"""Generation from a reduced prompt: the stock model at budget 1, one forward over explicit embeddings below it,
batches, beams, what reads ids while generating, and prompts without video."""

from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from hosts import FRAMES, IMAGE, VIDEO
from seam import ALL, GREEDY, NEAR, NEW, Drop, Host, KeepEvery, Nearest, batch, check_batch, continued, layout, words

from holitom.attach import reduce_tokens
from holitom.errors import BadUsage
from holitom.methods import DyCokeDecode, HoliTom, HoliTomMerge
from holitom.types import Reduction

SETTINGS = {
    "outer": Reduction("outer", KeepEvery(), 0.3),
    "gaps": Reduction("gaps", KeepEvery(positions="original"), 0.3),
    "both": Reduction("both", KeepEvery(), 0.3, (Drop(1, 0.6), Drop(3, score="this", positions="contiguous"))),
    "past": Reduction("past", KeepEvery(), 0.3, (Drop(1, 0.8), Drop(3, 0.5, query="text", prune_past=True))),
    "not causal": Reduction("not causal", KeepEvery(), 0.3, (Drop(3, causal=False, include_newlines=True),)),
    "holitom": Reduction("holitom", HoliTom(tau=0.5), 0.2, (HoliTomMerge(layer=3, ratio=0.5),)),
}
DECODING = {
    "dycoke": Reduction("dycoke", decode=DyCokeDecode(2, 0.7)),
    "behind stages": Reduction("behind stages", KeepEvery(), 0.3, (HoliTomMerge(1, 0.3), Drop(3, 0.6)), Nearest(2)),
    "renumbered": Reduction("x", KeepEvery(positions="original"), 0.3, (Drop(3, positions="contiguous"),), Nearest(1)),
    "read of past": Reduction("x", KeepEvery(), 0.3, (Drop(3, 0.5, prune_past=True),), Nearest(4, 3)),
}


@pytest.mark.parametrize("outer", [None, ALL, replace(ALL, positions="original")])
def test_the_stock_model_at_budget_one(host, outer):
    """The stock class knows no row newlines, so that LLaVA-Video has the oracle alone."""
    inputs = host.inputs(0)
    with reduce_tokens(host.model, outer) as run:
        ours, bare = host.model.generate(**inputs, **GREEDY), host.model(**inputs).logits[0]
    embeds = host.embed(0, host.rows[0], ours.sequences[0, -NEW:])
    expected = host.recompute(embeds, *layout(0, len(embeds), numbers=continued(host.numbers(0), NEW)))
    length = len(expected) - NEW
    torch.testing.assert_close(torch.cat(ours.logits), expected[length - 1 : -1], **NEAR)
    torch.testing.assert_close(bare, expected[:length], **NEAR)
    assert torch.equal(ours.sequences[0, :-NEW], host.prompt(0))
    last = run.stats.last
    assert last.kept == last.requested == int(host.visual[0].sum())
    assert last.newlines == last.full_newlines == int((~host.visual[0]).sum())
    assert last.prompt_before == last.prompt_after == length
    if host.name != "llava_video":
        stock = host.model.generate(**inputs, **GREEDY)
        assert torch.equal(ours.sequences, stock.sequences)
        torch.testing.assert_close(torch.cat(ours.logits), torch.cat(stock.logits), **NEAR)


@pytest.mark.parametrize("positions", ["contiguous", "original"])
def test_any_number_of_placeholders(plain, positions):
    """Positions belong to the video, not to the placeholders; prompts keep those that they have."""
    rows, answers = [plain.prompt(0, count) for count in (1, 200, len(plain.rows[0]))], []
    with reduce_tokens(plain.model, KeepEvery(positions=positions), 0.3):
        for row in rows:
            out = plain.model.generate(**batch(row), **plain.pixels(0), **GREEDY)
            assert torch.equal(out.sequences[0, :-NEW], row)
            answers.append(torch.cat(out.logits))
    assert torch.equal(answers[0], answers[1]) and torch.equal(answers[0], answers[2])


@torch.no_grad()
def test_gaps_without_a_cache_are_not_read_as_packed_sequences(plain):
    """transformers cuts attention at every gap in the positions if there is neither a cache nor a mask."""
    inputs = plain.inputs(0)
    del inputs["attention_mask"]
    with reduce_tokens(plain.model, KeepEvery(positions="original"), 0.3):
        cached = plain.model(**inputs, use_cache=True).logits
        torch.testing.assert_close(plain.model(**inputs, use_cache=False).logits, cached, atol=1e-5, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("name", SETTINGS)
def test_a_batch_equals_singles(host, name):
    """And tokens behind the prompt on the cache of a plain forward, one by one or all at once, have the logits that
    ``generate`` found."""
    out, inputs = check_batch(host, SETTINGS[name]), host.inputs(0, 1)
    with reduce_tokens(host.model, reduction=SETTINGS[name]):
        prefill = host.model(**inputs, use_cache=True, logits_to_keep=1)
        answer, logits = out.sequences[:, -NEW:], [prefill.logits]
        for i in range(NEW - 1):
            logits.append(host.model(input_ids=answer[:, i : i + 1], past_key_values=prefill.past_key_values).logits)
        cache = host.model(**inputs, use_cache=True).past_key_values
        at_once = host.model(input_ids=answer[:, :-1], past_key_values=cache).logits
    stepwise = torch.cat(logits, 1)
    torch.testing.assert_close(stepwise, torch.stack(out.logits, 1), **NEAR)
    torch.testing.assert_close(at_once, stepwise[:, 1:], **NEAR)


@pytest.mark.parametrize("name", DECODING)
def test_a_batch_equals_singles_with_a_decode_stage(both, name):
    check_batch(both, DECODING[name])


class Ids:
    """Remembers every ids it is shown, as a stopping criterion."""

    def __init__(self):
        self.shown = []

    def __call__(self, ids, scores, **kwargs):
        self.shown.append(ids.tolist())
        return torch.zeros(len(ids), dtype=torch.bool)


READERS = {
    "repetition_penalty": {"repetition_penalty": 1.7},
    "no_repeat_ngram_size": {"no_repeat_ngram_size": 2},
    "sequence_bias": {"sequence_bias": [[[int(words(3, 21)[-1]), 5], -9.0], [[7], 3.0]]},
    "encoder_repetition_penalty": {"encoder_repetition_penalty": 1.9},
    "encoder_no_repeat_ngram_size": {"encoder_no_repeat_ngram_size": 1},
    "guidance": {"guidance_scale": 1.6},
    "negative prompt": {"guidance_scale": 1.5, "negative_prompt_ids": torch.tensor([[3, 4, 5]] * 2)},
    "sampling": {"do_sample": True, "temperature": 1.5, "num_return_sequences": 2, "repetition_penalty": 1.3},
    "beams": {"num_beams": 3, "num_return_sequences": 2, "repetition_penalty": 1.5, "guidance_scale": 1.2},
}


@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize("padded", [True, False])
def test_what_reads_ids_reads_those_of_the_full_prompt(plain, name, padded):
    """Same tokens and scores as the stock model's at budget 1, with a stopping criterion that reads along."""
    inputs, settings, seen = plain.inputs(*((0, 1) if padded else (0,))), {**GREEDY, **READERS[name]}, []
    if not padded:
        del inputs["attention_mask"]
        if "negative_prompt_ids" in settings:
            settings["negative_prompt_ids"] = settings["negative_prompt_ids"][:1]
    for block in (nullcontext(), reduce_tokens(plain.model, ALL)):
        torch.manual_seed(0)
        ids = Ids()
        with block:
            given = {**inputs, **settings, "stopping_criteria": [ids], "output_scores": True}
            seen.append((plain.model.generate(**given), ids.shown))
    (stock, expected), (ours, shown) = seen
    assert torch.equal(ours.sequences, stock.sequences) and shown == expected
    torch.testing.assert_close(torch.stack(ours.scores), torch.stack(stock.scores), atol=1e-5, rtol=0)


def test_padding_without_a_mask_is_found_as_the_stock_model_finds_it(plain):
    inputs = plain.inputs(0, 1)
    del inputs["attention_mask"]
    stock = plain.model.generate(**inputs, **GREEDY)
    with reduce_tokens(plain.model, ALL):
        ours = plain.model.generate(**inputs, **GREEDY)
    torch.testing.assert_close(torch.stack(ours.logits), torch.stack(stock.logits), **NEAR)


def test_lengths_count_the_full_prompt(plain):
    inputs, width = plain.inputs(0, 1), plain.inputs(0, 1)["input_ids"].shape[1]
    with reduce_tokens(plain.model, KeepEvery(), 0.3):
        first = plain.model.generate(**inputs, max_new_tokens=1, do_sample=False)[:, -1].tolist()
        limits = {"max_length": width + 6, "min_length": width + 4, "eos_token_id": first}
        longer = plain.model.generate(inputs.pop("input_ids"), **inputs, **limits, do_sample=False)
    assert width + 4 <= longer.shape[1] <= width + 6
    assert not torch.isin(longer[:, width : width + 3], torch.tensor(first)).any()


def test_several_videos_in_a_prompt(host):
    """Two videos in one prompt and one in the other, with beams; every prompt alone gives the same."""
    two = torch.cat([host.prompt(0), host.prompt(1)])
    given = {**batch(two, host.prompt(1)), **host.pixels(0, 1, 1)}
    alone = [{**batch(two), **host.pixels(0, 1)}, host.inputs(1)]
    if host.name == "qwen2_5_vl":
        for inputs, seconds in ((given, (1.0, 0.5, 0.5)), (alone[0], (1.0, 0.5))):
            inputs["mm_token_type_ids"] = (inputs["input_ids"] == VIDEO).int() * 2
            inputs["second_per_grid_ts"] = torch.tensor(seconds)
    settings = {**GREEDY, "num_beams": 3, "output_scores": True}
    with reduce_tokens(host.model, KeepEvery(), 0.3, Drop(2)) as run:
        together = host.model.generate(**given, **settings)
        singles = [host.model.generate(**inputs, **settings) for inputs in alone]
    for b, single in enumerate(singles):
        assert torch.equal(together.sequences[b, -NEW:], single.sequences[0, -NEW:])
        torch.testing.assert_close(together.sequences_scores[b], single.sequences_scores[0], atol=1e-5, rtol=0)
    both, second = run.stats.samples[2:]
    first, other = (t * h * w for t, (h, w) in zip(host.frames, host.grids, strict=True))
    assert (both.full, both.frames) == (first + other, sum(host.frames))
    assert both.requested == second.requested + round(0.3 * first)


def test_features_may_be_provided_once(host):
    inputs = host.inputs(0)
    with reduce_tokens(host.model, KeepEvery(), 0.3) as run:
        expected = host.model.generate(**inputs, **GREEDY)
        features = run.encode(**host.pixels(0))
        del inputs["pixel_values_videos"]
        run.provide(features)
        text = batch(words(6, 8), words(3, 9))
        host.model.generate(**text, **GREEDY)  # leaves them for the next prompt with a video
        assert torch.equal(host.model.generate(**inputs, **GREEDY).sequences, expected.sequences)
        run.provide(features)
        torch.testing.assert_close(host.model(**inputs).logits[:, -1], expected.logits[0], atol=1e-5, rtol=0)
        with pytest.raises(BadUsage, match="none came with it"):
            host.model.generate(**inputs, **GREEDY)


def image_of(plain):
    pixels = torch.randn(1, 2, 3, 112, 112, generator=torch.Generator().manual_seed(3))
    sizes = torch.tensor([[112, 112]])
    with torch.no_grad():
        rows = len(plain.model.model.get_image_features(pixels, sizes).pooler_output[0])
    return torch.full((rows,), IMAGE), {"pixel_values": pixels, "image_sizes": sizes}


def test_images_and_text_pass_unchanged(plain):
    image, pixels = image_of(plain)
    calls = [batch(torch.cat([words(3), image, words(4)])) | pixels, batch(words(12), words(5))]
    expected = [plain.model.generate(**inputs, **GREEDY) for inputs in calls]
    with reduce_tokens(plain.model, KeepEvery(), 0.3, [Drop(2), Drop(3)]) as run:
        ours = [plain.model.generate(**inputs, **GREEDY) for inputs in calls]
        embeds = plain.model.get_input_embeddings()(calls[1]["input_ids"])
        from_embeds = plain.model.generate(inputs_embeds=embeds, attention_mask=calls[1]["attention_mask"], **GREEDY)
    for a, b in zip(ours, expected, strict=True):
        assert torch.equal(torch.stack(a.logits), torch.stack(b.logits))
    assert torch.equal(from_embeds.sequences, expected[1].sequences[:, -NEW:])
    assert not run.stats.samples and not run.stats.calls


def test_an_image_beside_a_video(plain):
    image, pixels = image_of(plain)
    inputs = {**batch(torch.cat([image, plain.prompt(0)])), **pixels, **plain.pixels(0)}
    stock, bare = plain.model.generate(**inputs, **GREEDY), plain.model(**inputs).logits
    with reduce_tokens(plain.model, ALL):
        same = plain.model.generate(**inputs, **GREEDY)
        torch.testing.assert_close(plain.model(**inputs).logits, bare, **NEAR)
    torch.testing.assert_close(torch.cat(same.logits), torch.cat(stock.logits), **NEAR)
    with reduce_tokens(plain.model, KeepEvery(), 0.3) as run:
        plain.model.generate(**inputs, num_beams=2, **GREEDY)
    assert run.stats.last.prompt_before - run.stats.last.prompt_after == FRAMES * 16 - run.stats.last.kept


def test_a_prompt_without_video_in_the_batch(plain):
    text = words(11, 8)
    stock = plain.model.generate(**batch(text), **GREEDY)
    with reduce_tokens(plain.model, reduction=SETTINGS["both"]) as run:
        both = plain.model.generate(**batch(text, plain.prompt(0)), **plain.pixels(0), **GREEDY)
        alone = plain.model.generate(**plain.inputs(0), **GREEDY)
    for b, single in enumerate((stock, alone)):
        torch.testing.assert_close(torch.stack(both.logits)[:, b], torch.cat(single.logits), **NEAR)
    assert len(run.stats.samples) == 2


def test_half_precision():
    half = Host()
    half.model.to(torch.float16)
    half.clips = half.clips.to(torch.float16)
    with reduce_tokens(half.model, reduction=SETTINGS["holitom"]) as run:
        out = half.model.generate(**half.inputs(0, 1), **GREEDY, num_beams=2)
    assert all(torch.isfinite(step).all() for step in out.logits)
    run.stats.check_acted()
