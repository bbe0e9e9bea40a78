"""Stages inside the decoder: dropping equals masking, scores equal eager attention, and every layer caches its own."""

from itertools import pairwise

import pytest
import torch
from recompute import embed, layout, recompute, stock_video
from seam import CELLS, FRAMES, LAYERS, Drop, KeepEvery, batch, pixels, prompt, tiny_model

from holitom.attach import reduce_tokens
from holitom.methods import HoliTomMerge
from holitom.types import Reduction

GENERATE = {"max_new_tokens": 5, "do_sample": False, "return_dict_in_generate": True, "output_logits": True}
FULL = FRAMES * CELLS + 1
PROMPT = 12 + FULL


def inputs():
    return {**batch(prompt(5, 7)), "pixel_values_videos": pixels()}


def absolute(stages):
    """Kept ids of each stage as ids of the prompt."""
    kept, now = [], torch.arange(PROMPT)
    for stage in stages:
        now = now[stage.seen[0]["keep"]]
        kept.append(now)
    return kept


STAGES = {
    "one": [Drop(3)],
    "this": [Drop(3, score="this")],
    "first layer": [Drop(0, score="this"), Drop(2)],
    "three": [Drop(1, 0.7), Drop(2, 0.6, score="this"), Drop(4, 0.5)],
    "renumbered": [Drop(2, positions="contiguous"), Drop(4, 0.4, score="this", positions="contiguous")],
    "mixed": [Drop(1, 0.6), Drop(3, positions="contiguous"), Drop(4)],
    "text": [Drop(2, query="text"), Drop(3, score="this", query="text")],
    "past": [Drop(3, prune_past=True)],
    "past twice": [Drop(1, 0.8), Drop(2, 0.6, prune_past=True), Drop(4, 0.6, prune_past=True, positions="contiguous")],
    "almost nothing": [Drop(2, 1 / 64)],
}


@pytest.mark.parametrize("name", STAGES)
def test_drop_equals_mask(model, name):
    """Prefill and decoding with a cache against one forward that masks what was dropped."""
    stages = [Drop(**{**vars(s), "seen": []}) for s in STAGES[name]]
    with reduce_tokens(model, inner=stages) as run:
        out = model.generate(**inputs(), **GENERATE)
    kept = absolute(stages)
    answer = out.sequences[0, PROMPT:]
    tokens, newline = stock_video(model, pixels())
    embeds = embed(model, torch.cat([prompt(5, 7), answer]), [torch.cat([tokens, newline[None]])])
    plan = [(s.layer, ids, s.positions) for s, ids in zip(stages, kept, strict=True)]
    pruned = [s.layer for s in stages if s.prune_past]
    masks, positions = layout(LAYERS, PROMPT, len(embeds), plan, prune_past=pruned)
    expected = recompute(model, embeds, masks, positions)
    torch.testing.assert_close(torch.cat(out.logits), expected[PROMPT - 1 : -1], atol=3e-5, rtol=0)
    entering = [PROMPT] * LAYERS
    cached = [PROMPT] * LAYERS
    for stage, ids in zip(stages, kept, strict=True):
        entering[stage.layer :] = cached[stage.layer :] = [len(ids)] * (LAYERS - stage.layer)
        if stage.prune_past:
            cached[: stage.layer] = [min(c, len(ids)) for c in cached[: stage.layer]]
    cache = out.past_key_values
    assert [cache.get_seq_length(i) - len(answer) + 1 for i in range(LAYERS)] == cached
    assert list(run.stats.last.cached_per_layer) == cached
    assert list(run.stats.last.prompt_per_layer) == entering
    assert list(run.stats.last.per_layer) == [n - 13 for n in entering]
    assert run.stats.acted


def test_ratio_zero_is_the_unmodified_model(model):
    stock = model.generate(**inputs(), **GENERATE)
    for stage in (
        HoliTomMerge(layer=2, ratio=0.0),
        Drop(2, 1.0, positions="contiguous"),
        Drop(3, 1.0, prune_past=True),
    ):
        with reduce_tokens(model, inner=stage):
            ours = model.generate(**inputs(), **GENERATE)
        torch.testing.assert_close(torch.cat(ours.logits), torch.cat(stock.logits), atol=1e-5, rtol=0)


@pytest.mark.parametrize("cache", [True, False])
def test_scores_are_eager_attention(cache):
    """One row of the layer before, or of the layer itself, as the eager model reports it; all rows after the video."""
    model = tiny_model("eager")
    stages = [Drop(2, 1.0), Drop(3, 1.0, score="this"), Drop(4, 1.0, query="text")]
    with torch.no_grad():
        maps = model(**inputs(), output_attentions=True).attentions
        with reduce_tokens(model, inner=stages):
            model(**inputs(), use_cache=cache)
    last, this, text = (s.seen[0]["score"] for s in stages)
    torch.testing.assert_close(last, maps[1][0, :, -1].mean(0), atol=1e-6, rtol=0)
    torch.testing.assert_close(this, maps[3][0, :, -1].mean(0), atol=1e-6, rtol=0)
    torch.testing.assert_close(text, maps[3][0, :, 5 + FULL :], atol=1e-6, rtol=0)
    assert text.shape == (4, 7, PROMPT)
    assert last.dtype == torch.float32


def test_a_stage_sees_its_tokens(sdpa):
    """Ids of visual tokens, their number at the start, and states without padding."""
    stages = [Drop(1, 0.5), Drop(3, 0.5, include_newlines=True)]
    rows = [prompt(5, 7), prompt(2, 3, seed=1)]
    with reduce_tokens(sdpa, inner=stages):
        sdpa.generate(**batch(*rows), pixel_values_videos=pixels(2), **GENERATE)
    for b, row in enumerate(rows):
        first, second = stages[0].seen[b], stages[1].seen[b]
        assert torch.equal(first["visual"], (row == 299).nonzero().flatten()[:-1])
        assert (first["n0"], second["n0"]) == (64, 65)
        assert len(first["hidden"]) == len(first["score"]) == len(row)
        assert len(second["visual"]) == 33


@pytest.mark.parametrize("layer", [1, 4])
def test_non_causal_layer(model, layer):
    """causal=False: the layer before the stage attends to everything in prefill, and to nothing later when decoding."""
    stage = Drop(layer, 0.5, causal=False)
    with reduce_tokens(model, inner=stage):
        out = model.generate(**inputs(), **GENERATE)
    answer = out.sequences[0, PROMPT:]
    tokens, newline = stock_video(model, pixels())
    embeds = embed(model, torch.cat([prompt(5, 7), answer]), [torch.cat([tokens, newline[None]])])
    plan = [(layer, absolute([stage])[0], "original")]
    masks, positions = layout(LAYERS, PROMPT, len(embeds), plan)
    masks[layer - 1][:PROMPT, :PROMPT] = True
    expected = recompute(model, embeds, masks, positions)
    torch.testing.assert_close(torch.cat(out.logits), expected[PROMPT - 1 : -1], atol=3e-5, rtol=0)
    with reduce_tokens(model, inner=Drop(layer, 0.5)):
        causal = model.generate(**inputs(), **GENERATE)
    assert (out.logits[0] - causal.logits[0]).abs().max() > 1e-2


def test_merged_rows_are_what_the_layer_gets(sdpa):
    stage = HoliTomMerge(layer=2, ratio=0.5)
    with torch.no_grad(), reduce_tokens(sdpa, inner=stage) as run:
        seen = []
        handle = sdpa.model.language_model.layers[2].register_forward_pre_hook(lambda _, args: seen.append(args[0]))
        sdpa(**inputs())
        handle.remove()
    assert seen[0].shape[1] == PROMPT - 32 == run.stats.last.prompt_per_layer[2]
    assert run.stats.last.per_layer == (64, 64, 32, 32, 32)


@pytest.mark.parametrize("outer_positions", ["contiguous", "original"])
@pytest.mark.parametrize("inner_positions", ["contiguous", "original"])
def test_outer_and_inner_together(model, outer_positions, inner_positions):
    outer, stage = KeepEvery(positions=outer_positions), Drop(2, 0.5, positions=inner_positions)
    with reduce_tokens(model, reduction=Reduction("both", outer, 0.3, (stage,))) as run:
        out = model.generate(**inputs(), **GENERATE)
        (video,) = run.encode(pixels())
    kept = outer(video, 0.3)
    flat = kept.frame * CELLS + kept.cell
    answer = out.sequences[0, PROMPT:]
    tokens, newline = stock_video(model, pixels())
    embeds = embed(model, torch.cat([prompt(5, 7), answer]), [torch.cat([tokens[flat], newline[None]])])
    length = len(embeds) - len(answer)
    numbers = torch.arange(len(embeds))
    if outer_positions == "original":
        numbers = torch.cat([torch.arange(5), 5 + flat, 5 + FULL - 1 + torch.arange(8 + len(answer))])
    plan = [(2, stage.seen[0]["keep"], inner_positions)]
    masks, positions = layout(LAYERS, length, len(embeds), plan, numbers)
    expected = recompute(model, embeds, masks, positions)
    torch.testing.assert_close(torch.cat(out.logits), expected[length - 1 : -1], atol=3e-5, rtol=0)
    assert [a >= b for a, b in pairwise(run.stats.last.per_layer)] == [True] * 4


class Nearest:
    """A decode stage: of the visual tokens only the ``count`` with the highest attention are read."""

    layer, fidelity, count = 2, "control", 10

    def __init__(self):
        self.reads = []

    def __call__(self, row, visual):
        read = visual[row[visual].topk(self.count).indices].sort().values
        self.reads.append((row, visual, read))
        return read


def test_decode_stage_reads_less(model):
    """From its layer on, a generated token reads the chosen visual tokens only; the cache keeps them all."""
    stage = Nearest()
    with reduce_tokens(model, decode=stage) as run:
        out = model.generate(**inputs(), **GENERATE)
    answer = out.sequences[0, PROMPT:]
    tokens, newline = stock_video(model, pixels())
    embeds = embed(model, torch.cat([prompt(5, 7), answer]), [torch.cat([tokens, newline[None]])])
    masks, positions = layout(LAYERS, PROMPT, len(embeds))
    assert len(stage.reads) == len(answer) - 1
    for step, (row, visual, read) in enumerate(stage.reads):
        assert visual.tolist() == list(range(5, 69)) and len(row) == PROMPT + step + 1
        for layer in range(stage.layer, LAYERS):
            masks[layer][PROMPT + step, visual[~torch.isin(visual, read)]] = False
    expected = recompute(model, embeds, masks, positions)
    torch.testing.assert_close(torch.cat(out.logits), expected[PROMPT - 1 : -1], atol=3e-5, rtol=0)
    assert run.stats.acted
    assert out.past_key_values.get_seq_length(4) == PROMPT + len(answer) - 1
