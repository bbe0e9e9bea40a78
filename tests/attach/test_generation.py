"""Batches, beams, sampling, further turns: whatever generates must not notice how its neighbours were reduced."""

import copy

import pytest
import torch
from devices import beams_in_half_precision, on_cuda_as_on_cpu
from recompute import embed, layout, recompute, stock_video
from seam import CELLS, FRAMES, LAYERS, VIDEO, All, Drop, KeepEvery, batch, pixels, prompt
from transformers import DynamicCache

from holitom.attach import reduce_tokens
from holitom.methods import HoliTom, HoliTomMerge
from holitom.types import Reduction

NEW = 6
GENERATE = {"max_new_tokens": NEW, "do_sample": False, "return_dict_in_generate": True, "output_logits": True}
ROWS = [prompt(5, 7, seed=1), prompt(2, 11, seed=2), prompt(9, 4, seed=3)]
CLIPS = pixels(3, seed=4)

SETTINGS = {
    "outer": Reduction("outer", KeepEvery(), 0.3),
    "gaps": Reduction("gaps", KeepEvery(positions="original"), 0.3),
    "inner": Reduction("inner", inner=(Drop(2),)),
    "both": Reduction("both", KeepEvery(), 0.3, (Drop(1, 0.6), Drop(3, score="this", positions="contiguous"))),
    "past": Reduction("past", KeepEvery(), 0.3, (Drop(1, 0.8), Drop(3, 0.5, query="text", prune_past=True))),
    "not causal": Reduction("not causal", KeepEvery(), 0.3, (Drop(3, causal=False, include_newlines=True),)),
    "holitom": Reduction("holitom", HoliTom(tau=0.5), 0.2, (HoliTomMerge(layer=3, ratio=0.5),)),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_batch_equals_singles(model, name):
    """Left-padded prompts whose videos shrink to different lengths, at every stage."""
    with reduce_tokens(model, reduction=SETTINGS[name]) as run:
        together = model.generate(**batch(*ROWS), pixel_values_videos=CLIPS, **GENERATE)
        lengths = [s.prompt_per_layer for s in run.stats.samples]
        for b, row in enumerate(ROWS):
            alone = model.generate(**batch(row), pixel_values_videos=CLIPS[b : b + 1], **GENERATE)
            logits = torch.stack([step[b] for step in together.logits])
            torch.testing.assert_close(logits, torch.cat(alone.logits), atol=5e-5, rtol=0)
            assert run.stats.last.prompt_per_layer == lengths[b]
            assert run.stats.last.cached_per_layer == run.stats.samples[b].cached_per_layer
    assert len(set(lengths)) > 1


@pytest.mark.parametrize("name", SETTINGS)
def test_beams_in_a_batch_equal_beams_alone(sdpa, name):
    settings = {**GENERATE, "num_beams": 3, "num_return_sequences": 2, "output_scores": True}
    with reduce_tokens(sdpa, reduction=SETTINGS[name]) as run:
        together = sdpa.generate(**batch(*ROWS), pixel_values_videos=CLIPS, **settings)
        assert len(run.stats.samples) == 3
        for b, row in enumerate(ROWS):
            alone = sdpa.generate(**batch(row), pixel_values_videos=CLIPS[b : b + 1], **settings)
            assert torch.equal(together.sequences[2 * b : 2 * b + 2, -NEW:], alone.sequences[:, -NEW:])
            scores = together.sequences_scores[2 * b : 2 * b + 2]
            torch.testing.assert_close(scores, alone.sequences_scores, atol=1e-5, rtol=0)


def test_beam_scores_are_the_probabilities_of_their_sequences(model):
    """Every returned beam, recomputed in one forward without a cache: the reordered caches held the right tokens."""
    row, clip = ROWS[0], CLIPS[:1]
    settings = {**GENERATE, "num_beams": 4, "num_return_sequences": 4, "output_scores": True}
    outer, stage = KeepEvery(), Drop(2)
    with reduce_tokens(model, outer, 0.3, stage):
        out = model.generate(**batch(row), pixel_values_videos=clip, **settings)
    tokens, newline = stock_video(model, clip)
    with reduce_tokens(model, outer, 0.3) as run:
        kept = outer(run.encode(clip)[0], 0.3)
    rows = torch.cat([tokens[kept.frame * CELLS + kept.cell], newline[None]])
    for sequence, score in zip(out.sequences, out.sequences_scores, strict=True):
        embeds = embed(model, sequence, [rows])
        length = len(embeds) - NEW
        plan = [(2, stage.seen[0]["keep"], "original")]
        logits = recompute(model, embeds, *layout(LAYERS, length, len(embeds), plan))[length - 1 : -1]
        chosen = logits.log_softmax(-1).gather(1, sequence[-NEW:, None]).mean()
        torch.testing.assert_close(chosen, score, atol=1e-5, rtol=0)
    assert len({tuple(s.tolist()) for s in out.sequences}) == 4


def test_sampling(sdpa):
    """The same draws give the same tokens as the unmodified model; several sequences per prompt work."""
    inputs = {**batch(*ROWS), "pixel_values_videos": CLIPS}
    settings = {"max_new_tokens": NEW, "do_sample": True, "num_return_sequences": 2}
    torch.manual_seed(0)
    stock = sdpa.generate(**inputs, **settings)
    with reduce_tokens(sdpa, All(), inner=Drop(2, 1.0)):
        torch.manual_seed(0)
        assert torch.equal(sdpa.generate(**inputs, **settings), stock)
    with reduce_tokens(sdpa, reduction=SETTINGS["both"]):
        assert sdpa.generate(**inputs, **settings).shape == stock.shape


def test_a_prompt_without_video_in_the_batch(sdpa):
    words = prompt(6, 5, 0, seed=8)
    stock = sdpa.generate(**batch(words), **GENERATE)
    with reduce_tokens(sdpa, reduction=SETTINGS["both"]) as run:
        both = sdpa.generate(**batch(words, ROWS[0]), pixel_values_videos=CLIPS[:1], **GENERATE)
        alone = sdpa.generate(**batch(ROWS[0]), pixel_values_videos=CLIPS[:1], **GENERATE)
    for b, single in enumerate((stock, alone)):
        logits = torch.stack([step[b] for step in both.logits])
        torch.testing.assert_close(logits, torch.cat(single.logits), atol=5e-5, rtol=0)
    assert len(run.stats.samples) == 2


@torch.no_grad()
@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("padded", [True, False])
def test_several_tokens_at_once_equal_one_by_one(model, name, padded):
    """A continuation with q_len 5 on the cache, with and without mask and positions, and on a copy of the cache."""
    rows = ROWS if padded else ROWS[:1]
    start = batch(*rows)
    more = torch.randint(3, 290, (len(rows), 5), generator=torch.Generator().manual_seed(9))
    mask = torch.cat([start["attention_mask"], torch.ones_like(more)], dim=1)
    number = (mask.cumsum(1) - 1).clamp_min(0)
    with reduce_tokens(model, reduction=SETTINGS[name]):
        cache = model(**start, pixel_values_videos=CLIPS[: len(rows)], use_cache=True).past_key_values
        other, third = copy.deepcopy(cache), copy.deepcopy(cache)
        at_once = model(input_ids=more, attention_mask=mask, past_key_values=cache).logits
        width = start["input_ids"].shape[1]
        steps = [
            model(
                input_ids=more[:, i : i + 1],
                attention_mask=mask[:, : width + i + 1],
                position_ids=number[:, width + i : width + i + 1],
                past_key_values=other,
            ).logits
            for i in range(5)
        ]
        bare = [model(input_ids=more[:, i : i + 1], past_key_values=third).logits for i in range(5)]
    torch.testing.assert_close(at_once, torch.cat(steps, 1), atol=5e-5, rtol=0)
    torch.testing.assert_close(at_once, torch.cat(bare, 1), atol=5e-5, rtol=0)


@pytest.mark.parametrize("name", ["outer", "gaps", "both", "past"])
@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("whole", [True, False])
def test_second_turn_through_generate(model, name, rows, whole):
    """The conversation goes on from the cache, with the whole text or the new turn alone; nothing is reduced twice."""
    reduction = SETTINGS[name]
    start = batch(*ROWS[:rows])
    clips = CLIPS[:rows]
    turn = torch.randint(3, 290, (rows, 4), generator=torch.Generator().manual_seed(9))
    with reduce_tokens(model, reduction=reduction) as run:
        first = model.generate(**start, pixel_values_videos=clips, **GENERATE)
        calls = run.stats.calls.copy()
        ids = torch.cat([first.sequences, turn], dim=1)
        mask = torch.cat([start["attention_mask"], torch.ones(rows, NEW + 4, dtype=torch.long)], dim=1)
        held = first.past_key_values.get_seq_length(LAYERS - 1)
        given = ids if whole else ids[:, -5:]  # the last answer token is not in the cache yet
        second = model.generate(input_ids=given, attention_mask=mask, past_key_values=first.past_key_values, **GENERATE)
        assert run.stats.calls == calls and len(run.stats.samples) == rows
        assert second.past_key_values.get_seq_length(LAYERS - 1) == held + 5 + NEW - 1
        # the same by hand: prefill, then every later token one by one
        cache = model(**start, pixel_values_videos=clips, use_cache=True).past_key_values
        later = torch.cat([ids[:, start["input_ids"].shape[1] :], second.sequences[:, -NEW:]], dim=1)
        logits = []
        for i in range(later.shape[1]):
            width = start["input_ids"].shape[1] + i + 1
            padded = torch.cat([mask, torch.ones(rows, NEW, dtype=torch.long)], dim=1)[:, :width]
            logits.append(model(input_ids=later[:, i : i + 1], attention_mask=padded, past_key_values=cache).logits)
    expected = torch.cat(logits, dim=1)[:, NEW + 3 : -1]
    torch.testing.assert_close(torch.stack(second.logits, 1), expected, atol=5e-5, rtol=0)


def test_padding_inside_a_further_turn(sdpa):
    """Turns of different length in one batch, padded on the left: as alone."""
    turns = [prompt(3, 0, 0, seed=11), prompt(5, 0, 0, seed=12)]
    turn = batch(*turns)
    start = batch(*ROWS[:2])
    with torch.no_grad(), reduce_tokens(sdpa, reduction=SETTINGS["both"]):
        cache = sdpa(**start, pixel_values_videos=CLIPS[:2], use_cache=True).past_key_values
        mask = torch.cat([start["attention_mask"], turn["attention_mask"]], dim=1)
        both = sdpa(input_ids=turn["input_ids"], attention_mask=mask, past_key_values=cache).logits
        for b in range(2):
            alone = sdpa(**batch(ROWS[b]), pixel_values_videos=CLIPS[b : b + 1], use_cache=True).past_key_values
            logits = sdpa(input_ids=turns[b][None], past_key_values=alone).logits
            torch.testing.assert_close(both[b, -len(turns[b]) :], logits[0], atol=5e-5, rtol=0)


def test_without_a_cache(sdpa):
    """Generation that recomputes everything at each step reduces the same video at each step."""
    inputs = {**batch(*ROWS), "pixel_values_videos": CLIPS}
    with reduce_tokens(sdpa, reduction=SETTINGS["gaps"]) as run:
        cached = sdpa.generate(**inputs, **GENERATE)
        plain = sdpa.generate(**inputs, **GENERATE, use_cache=False)
    torch.testing.assert_close(torch.stack(plain.logits), torch.stack(cached.logits), atol=5e-5, rtol=0)
    assert len(run.stats.samples) == 3 + 3 * NEW


@torch.no_grad()
def test_conversations_side_by_side(sdpa):
    """Each cache knows its own prompt, and keeps it beyond the block: the next token as without a cache."""
    clips, token = [CLIPS[b : b + 1] for b in range(3)], torch.tensor([7])
    with reduce_tokens(sdpa, reduction=SETTINGS["gaps"]):
        caches = [
            sdpa(**batch(row), pixel_values_videos=clip, past_key_values=DynamicCache()).past_key_values
            for row, clip in zip(ROWS, clips, strict=True)
        ]
        expected = [
            sdpa(**batch(torch.cat([row, token])), pixel_values_videos=clip).logits[:, -1:]
            for row, clip in zip(ROWS, clips, strict=True)
        ]
    with reduce_tokens(sdpa, reduction=SETTINGS["gaps"]):
        for cache, logits in zip(reversed(caches), reversed(expected), strict=True):
            ours = sdpa(input_ids=token[None], past_key_values=cache).logits
            torch.testing.assert_close(ours, logits, atol=2e-5, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype):
    out, inputs = beams_in_half_precision(dtype, SETTINGS["holitom"], ROWS, CLIPS, GENERATE)
    assert out.sequences.shape == (3, len(inputs["input_ids"][0]) + NEW)


@pytest.mark.gpu
@pytest.mark.parametrize("name", SETTINGS)
def test_cuda_equals_cpu(sdpa, name):
    inputs = {**batch(*ROWS), "pixel_values_videos": CLIPS}
    run = on_cuda_as_on_cpu(sdpa, SETTINGS[name], inputs, GENERATE)
    assert run.stats.last.seconds["prefill"] > 0


def test_placeholders_stay_in_the_returned_text(sdpa):
    with reduce_tokens(sdpa, reduction=SETTINGS["both"]):
        out = sdpa.generate(**batch(ROWS[0]), pixel_values_videos=CLIPS[:1], max_new_tokens=3)
    assert torch.equal(out[0, : len(ROWS[0])], ROWS[0]) and int((out == VIDEO).sum()) >= FRAMES * CELLS + 1
