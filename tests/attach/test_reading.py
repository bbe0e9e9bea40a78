"""Decode stages read a part of every cache behind them: what they do not read is as if masked, and nothing is lost."""

import copy
from itertools import pairwise

import pytest
import torch
from devices import beams_in_half_precision, on_cuda_as_on_cpu
from recompute import embed, layout, recompute, stock_video
from seam import CELLS, FRAMES, LAYERS, Drop, KeepEvery, batch, pixels, prompt
from test_generation import CLIPS, NEW, ROWS
from transformers import DynamicCache

from holitom.attach import reduce_tokens
from holitom.attaching.reading import ReadingLayer, reading_layer
from holitom.errors import UnsupportedModel
from holitom.methods import DyCokeDecode, HoliTom, HoliTomMerge
from holitom.types import Reduction

GENERATE = {"max_new_tokens": NEW, "do_sample": False, "return_dict_in_generate": True, "output_logits": True}
PROMPT = 12 + FRAMES * CELLS + 1

SETTINGS = {
    "plain": Reduction("plain", decode=DyCokeDecode(2, 0.7)),
    "released": Reduction("released", KeepEvery(), 0.3, decode=DyCokeDecode(2, 0.5, threshold=0.97, released=True)),
    "behind stages": Reduction(
        "behind stages", HoliTom(tau=0.5), 0.4, (HoliTomMerge(1, 0.3), Drop(3, 0.6)), DyCokeDecode(2, 0.5)
    ),
    "renumbered": Reduction(
        "renumbered", KeepEvery(positions="original"), 0.3, (Drop(3, positions="contiguous"),), DyCokeDecode(1, 0.6)
    ),
    "past": Reduction("past", KeepEvery(), 0.3, (Drop(3, 0.5, prune_past=True),), DyCokeDecode(4, 0.5)),
}


class Watched:
    """A decode stage that writes down what it is given and what it leaves."""

    def __init__(self, stage, reads_previous=None):
        self.stage, self.seen = stage, []
        self.layer, self.fidelity = stage.layer, "control"
        self.reads_previous = stage.reads_previous if reads_previous is None else reads_previous

    def __call__(self, row, visual, **given):
        read = self.stage(row, visual, **given)
        self.seen.append((row, given.get("previous"), visual if read is None else read))
        return read


@pytest.mark.parametrize("released", [False, True])
def test_what_is_not_read_is_as_if_masked(model, released):
    """Every step of generation against one forward with masks; the layers really get fewer keys."""
    stage = Watched(DyCokeDecode(2, 0.7, threshold=0.995, released=released))
    with reduce_tokens(model, decode=stage) as run:
        out = model.generate(**batch(prompt(5, 7)), pixel_values_videos=pixels(), **GENERATE)
    answer = out.sequences[0, PROMPT:]
    tokens, newline = stock_video(model, pixels())
    embeds = embed(model, torch.cat([prompt(5, 7), answer]), [torch.cat([tokens, newline[None]])])
    masks, positions = layout(LAYERS, PROMPT, len(embeds))
    visual = torch.arange(5, 5 + FRAMES * CELLS)
    for step, (_, _, read) in enumerate(stage.seen):
        for layer in range(2, LAYERS):
            masks[layer][PROMPT + step, visual[~torch.isin(visual, read)]] = False
    expected = recompute(model, embeds, masks, positions)
    torch.testing.assert_close(torch.cat(out.logits), expected[PROMPT - 1 : -1], atol=3e-5, rtol=0)
    assert [out.past_key_values.get_seq_length(i) for i in range(LAYERS)] == [PROMPT + NEW - 1] * LAYERS
    assert run.stats.removed["decode@2"] == sum(64 - len(read) for *_, read in stage.seen) > 0
    if released:  # both branches: something is left unread at first, everything is read while attention stays
        assert len({len(read) for *_, read in stage.seen}) == 2


def test_attention_gets_fewer_keys(sdpa, monkeypatch):
    widths, update = [], ReadingLayer.update

    def watched(self, keys, values, *args, **kwargs):
        out = update(self, keys, values, *args, **kwargs)
        widths.append((keys.shape[2], out[0].shape[2], out[1].shape[2]))
        return out

    monkeypatch.setattr(ReadingLayer, "update", watched)
    with reduce_tokens(sdpa, decode=DyCokeDecode(3, 0.75)):
        sdpa.generate(**batch(prompt(5, 7)), pixel_values_videos=pixels(), **GENERATE)
    full = [(PROMPT, PROMPT, PROMPT)] * 2
    assert widths == full + [(1, PROMPT - 48 + i, PROMPT - 48 + i) for i in range(1, NEW) for _ in range(2)]


@pytest.mark.parametrize("name", SETTINGS)
def test_batch_equals_singles(model, name):
    """Left-padded prompts that leave unequally many tokens unread."""
    with reduce_tokens(model, reduction=SETTINGS[name]) as run:
        together = model.generate(**batch(*ROWS), pixel_values_videos=CLIPS, **GENERATE)
        for b, row in enumerate(ROWS):
            alone = model.generate(**batch(row), pixel_values_videos=CLIPS[b : b + 1], **GENERATE)
            logits = torch.stack([step[b] for step in together.logits])
            torch.testing.assert_close(logits, torch.cat(alone.logits), atol=5e-5, rtol=0)
            assert run.stats.last.cached_per_layer == run.stats.samples[b].cached_per_layer
    assert run.stats.acted


@pytest.mark.parametrize("name", SETTINGS)
def test_beams_in_a_batch_equal_beams_alone(sdpa, name):
    settings = {**GENERATE, "num_beams": 3, "num_return_sequences": 2, "output_scores": True}
    with reduce_tokens(sdpa, reduction=SETTINGS[name]):
        together = sdpa.generate(**batch(*ROWS), pixel_values_videos=CLIPS, **settings)
        for b, row in enumerate(ROWS):
            alone = sdpa.generate(**batch(row), pixel_values_videos=CLIPS[b : b + 1], **settings)
            assert torch.equal(together.sequences[2 * b : 2 * b + 2, -NEW:], alone.sequences[:, -NEW:])
            scores = together.sequences_scores[2 * b : 2 * b + 2]
            torch.testing.assert_close(scores, alone.sequences_scores, atol=1e-5, rtol=0)


def test_the_row_of_the_step_before(sdpa):
    """None at the first step of every prompt, then the row of the step before; not at all for who does not ask."""
    stage = Watched(DyCokeDecode(2, 0.5), reads_previous=True)
    with reduce_tokens(sdpa, decode=stage):
        for _ in range(2):
            stage.seen.clear()
            sdpa.generate(**batch(*ROWS), pixel_values_videos=CLIPS, **GENERATE)
            steps = [stage.seen[i : i + 3] for i in range(0, len(stage.seen), 3)]
            assert len(steps) == NEW - 1
            assert all(previous is None for _, previous, _ in steps[0])
            for before, now in pairwise(steps):
                for (row, _, _), (_, previous, _) in zip(before, now, strict=True):
                    assert torch.equal(previous, row)
    deaf = Watched(DyCokeDecode(2, 0.5))
    with reduce_tokens(sdpa, decode=deaf):
        sdpa.generate(**batch(*ROWS), pixel_values_videos=CLIPS, **GENERATE)
    assert all(previous is None for _, previous, _ in deaf.seen)


@torch.no_grad()
def test_the_row_is_forgotten_behind_a_call_with_several_tokens(sdpa):
    given, token = {**batch(ROWS[0]), "pixel_values_videos": CLIPS[:1]}, torch.tensor([[7]])
    stage = Watched(DyCokeDecode(2, 0.5), reads_previous=True)
    with reduce_tokens(sdpa, decode=stage):
        cache = sdpa(**given, use_cache=True).past_key_values
        for ids in (token, token, token.expand(1, 3), token, token):
            sdpa(input_ids=ids, past_key_values=cache)
    assert [previous is None for _, previous, _ in stage.seen] == [True, False, True, False]


def test_the_row_follows_its_beam(sdpa):
    """Where beams change places, each gets the row of the beam that it continues."""
    stage = Watched(DyCokeDecode(2, 0.5), reads_previous=True)
    beams = 4
    settings = {**GENERATE, "num_beams": beams, "num_return_sequences": beams, "output_scores": True}
    with reduce_tokens(sdpa, decode=stage):
        out = sdpa.generate(**batch(ROWS[0]), pixel_values_videos=CLIPS[:1], **settings)
    steps = [stage.seen[i : i + beams] for i in range(0, len(stage.seen), beams)]
    moved = 0
    for path in out.beam_indices.tolist():
        for t in range(2, NEW):  # token t was chosen in the forward of beam path[t], its parent in that of path[t - 1]
            now, before = steps[t - 1][path[t]], steps[t - 2][path[t - 1]]
            assert torch.equal(now[1], before[0])
            moved += path[t] != path[t - 1]
    assert moved


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("rows", [1, 3])
def test_second_turn_through_generate(model, name, rows):
    """The new turn is read with everything, the tokens after it with less; by hand, step by step, it is the same."""
    start, clips = batch(*ROWS[:rows]), CLIPS[:rows]
    turn = torch.randint(3, 290, (rows, 4), generator=torch.Generator().manual_seed(9))
    with reduce_tokens(model, reduction=SETTINGS[name]):
        first = model.generate(**start, pixel_values_videos=clips, **GENERATE)
        copied = copy.deepcopy(first.past_key_values)
        ids = torch.cat([first.sequences, turn], dim=1)
        mask = torch.cat([start["attention_mask"], torch.ones(rows, NEW + 4, dtype=torch.long)], dim=1)
        second = model.generate(
            input_ids=ids[:, -5:], attention_mask=mask, past_key_values=first.past_key_values, **GENERATE
        )
        logits = [model(input_ids=ids[:, -5:], attention_mask=mask, past_key_values=copied).logits[:, -1]]
        for i in range(NEW - 1):
            mask = torch.cat([mask, torch.ones(rows, 1, dtype=torch.long)], dim=1)
            token = second.sequences[:, 5 + i][:, None]
            logits.append(model(input_ids=token, attention_mask=mask, past_key_values=copied).logits[:, -1])
    torch.testing.assert_close(torch.stack(second.logits, 1), torch.stack(logits, 1), atol=5e-5, rtol=0)


@torch.no_grad()
def test_padding_inside_a_further_turn_is_never_read(sdpa):
    turns = [prompt(3, 0, 0, seed=11), prompt(5, 0, 0, seed=12)]
    turn, start, token = batch(*turns), batch(*ROWS[:2]), torch.tensor([[7], [9]])
    stage = Watched(DyCokeDecode(2, 0.7))
    with reduce_tokens(sdpa, KeepEvery(), 0.3, decode=stage):
        cache = sdpa(**start, pixel_values_videos=CLIPS[:2], use_cache=True).past_key_values
        mask = torch.cat([start["attention_mask"], turn["attention_mask"]], dim=1)
        sdpa(input_ids=turn["input_ids"], attention_mask=mask, past_key_values=cache)
        mask = torch.cat([mask, torch.ones(2, 1, dtype=torch.long)], dim=1)
        both = sdpa(input_ids=token, attention_mask=mask, past_key_values=cache).logits
        padded = stage.seen[0][0]
        for b in range(2):
            alone = sdpa(**batch(ROWS[b]), pixel_values_videos=CLIPS[b : b + 1], use_cache=True).past_key_values
            sdpa(input_ids=turns[b][None], past_key_values=alone)
            logits = sdpa(input_ids=token[b][None], past_key_values=alone).logits
            torch.testing.assert_close(both[b], logits[0], atol=5e-5, rtol=0)
    single = stage.seen[2][0]  # the same row without the two columns of padding
    held = len(single) - 4
    torch.testing.assert_close(padded[:held], single[:held], atol=1e-5, rtol=0)
    assert not padded[held : held + 2].any()


@torch.no_grad()
@pytest.mark.parametrize("cache", [DynamicCache, lambda: None])
def test_a_prompt_of_a_block_without_decode_stage(sdpa, cache):
    """Continued inside a block with one, and beyond: the cache holds everything all the time."""
    given, tokens = {**batch(ROWS[0]), "pixel_values_videos": CLIPS[:1]}, torch.tensor([[7], [8]])
    stage = DyCokeDecode(2, 0.7)
    with reduce_tokens(sdpa, KeepEvery(), 0.3):
        late = sdpa(**given, past_key_values=cache(), use_cache=True).past_key_values
    with reduce_tokens(sdpa, KeepEvery(), 0.3, decode=stage):
        early = sdpa(**given, past_key_values=cache(), use_cache=True).past_key_values
        logits = [sdpa(input_ids=tokens[:1], past_key_values=c).logits for c in (late, early)]
        torch.testing.assert_close(*logits, atol=1e-5, rtol=0)
    with reduce_tokens(sdpa, KeepEvery(), 0.3):
        after = [sdpa(input_ids=tokens[1:], past_key_values=c).logits for c in (late, early)]
        plain = sdpa(**given, use_cache=True).past_key_values
        sdpa(input_ids=tokens[:1], past_key_values=plain)
        everything = sdpa(input_ids=tokens[1:], past_key_values=plain).logits
    torch.testing.assert_close(*after, atol=1e-5, rtol=0)
    assert (after[0] - everything).abs().max() > 1e-4  # the token before was computed from less
    assert late.get_seq_length(4) == plain.get_seq_length(4)


@torch.no_grad()
def test_a_cache_used_again_starts_anew(sdpa):
    given, token = {**batch(ROWS[0]), "pixel_values_videos": CLIPS[:1]}, torch.tensor([[7]])
    stage = Watched(DyCokeDecode(2, 0.7), reads_previous=True)
    with reduce_tokens(sdpa, decode=stage):
        cache = sdpa(**given, use_cache=True).past_key_values
        first = sdpa(input_ids=token, past_key_values=cache).logits
        cache.reset()
        sdpa(**given, past_key_values=cache)
        again = sdpa(input_ids=token, past_key_values=cache).logits
    assert torch.equal(first, again)
    assert [previous for _, previous, _ in stage.seen] == [None, None]


def test_the_layer_itself():
    layer, keys = ReadingLayer(), torch.arange(12.0).view(2, 1, 6, 1)
    layer.update(keys, -keys)
    layer.row = torch.tensor([[0.0], [1.0]])
    layer.read = torch.tensor([[0, 5, 6], [0, 2, 6]])
    assert layer.get_mask_sizes(1) == (3, 0) and layer.get_seq_length() == 6
    got, values = layer.update(torch.full((2, 1, 1, 1), 50.0), torch.zeros(2, 1, 1, 1))
    assert got.flatten().tolist() == [0, 5, 50, 6, 8, 50] and values.flatten().tolist() == [0, -5, 0, -6, -8, 0]
    assert layer.read is None and layer.get_seq_length() == 7 and layer.get_mask_sizes(2) == (9, 0)
    layer.reorder_cache(torch.tensor([1, 1]))
    assert layer.row.tolist() == [[1], [1]] and layer.keys[0, 0, 0] == 6
    layer.batch_repeat_interleave(2)
    layer.batch_select_indices(torch.tensor([0, 3, 1]))
    assert layer.row.shape == (3, 1) and len(layer.keys) == 3
    layer.reset()
    assert layer.row is None and layer.get_seq_length() == 0
    cache = DynamicCache()
    cache.layers.append(type("SomeLayer", (ReadingLayer.__base__,), {})())
    with pytest.raises(UnsupportedModel, match="SomeLayer"):
        reading_layer(cache, 0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype):
    beams_in_half_precision(dtype, SETTINGS["released"], ROWS, CLIPS, GENERATE)


@pytest.mark.gpu
@pytest.mark.parametrize("name", SETTINGS)
def test_cuda_equals_cpu(sdpa, name):
    on_cuda_as_on_cpu(sdpa, SETTINGS[name], {**batch(*ROWS), "pixel_values_videos": CLIPS}, GENERATE)
