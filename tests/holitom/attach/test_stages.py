"""Stages inside the decoder: dropping equals masking, scores equal eager attention, and every layer caches its own."""

from dataclasses import dataclass

import pytest
import torch
from hosts import FRAMES, LAYERS
from seam import (
    GREEDY,
    NEAR,
    NEW,
    Drop,
    GroupDrop,
    Host,
    KeepEvery,
    Nearest,
    absolute,
    batch,
    continued,
    layout,
    video_of,
)

from holitom.attach import reduce_tokens
from holitom.errors import BadUsage
from holitom.methods.dycoke import DyCokeDecode
from holitom.methods.fastv import FastV
from holitom.methods.holitom import HoliTomMerge
from holitom.types import Reduction, TokenSet

STAGES = {
    "one": [Drop(3)],
    "this": [Drop(3, score="this")],
    "first layer": [Drop(0, 0.7, score="this"), Drop(2)],
    "three": [Drop(1, 0.7), Drop(2, 0.6, score="this"), Drop(4, 0.5)],
    "renumbered": [Drop(2, positions="contiguous"), Drop(4, 0.4, score="this", positions="contiguous")],
    "mixed": [Drop(1, 0.6), Drop(3, positions="contiguous"), Drop(4)],
    "text": [Drop(2, query="text"), Drop(3, score="this", query="text")],
    "past": [Drop(3, prune_past=True)],
    "past twice": [Drop(1, 0.8), Drop(2, 0.6, prune_past=True), Drop(4, 0.6, prune_past=True, positions="contiguous")],
    "almost nothing": [Drop(2, 1 / 16)],
}


def check_masked(host, out, stages, run, rows=None, numbers=None):
    """Prefill and decoding with a cache against one forward that masks what was dropped; then the counts."""
    rows = host.rows[0] if rows is None else rows
    embeds = host.embed(0, rows, out.sequences[0, -NEW:])
    length = len(embeds) - NEW
    numbers = continued(host.numbers(0) if numbers is None else numbers, NEW)
    kept = absolute(stages, length)
    masks, positions = layout(length, len(embeds), zip(stages, kept, strict=True), numbers)
    expected = host.recompute(embeds, masks, positions)
    torch.testing.assert_close(torch.cat(out.logits), expected[length - 1 : -1], **NEAR)
    entering, cached = [length] * LAYERS, [length] * LAYERS
    for stage, ids in zip(stages, kept, strict=True):
        entering[stage.layer :] = cached[stage.layer :] = [len(ids)] * (LAYERS - stage.layer)
        if stage.prune_past:
            cached[: stage.layer] = [min(count, len(ids)) for count in cached[: stage.layer]]
    held = [out.past_key_values.get_seq_length(i) - NEW + 1 for i in range(LAYERS)]
    assert held == cached == list(run.stats.last.cached_per_layer)
    assert list(run.stats.last.prompt_per_layer) == entering
    assert list(run.stats.last.per_layer) == [run.stats.last.kept - length + n for n in entering]
    assert run.stats.acted


@pytest.mark.parametrize("name", STAGES)
def test_drop_equals_mask(host, name):
    stages = [stage.fresh() for stage in STAGES[name]]
    with reduce_tokens(host.model, inner=stages) as run:
        out = host.model.generate(**host.inputs(0), **GREEDY)
    check_masked(host, out, stages, run)


@pytest.mark.parametrize("name", STAGES)
@pytest.mark.parametrize("outer_positions", ["contiguous", "original"])
def test_drop_equals_mask_behind_an_outer_stage(both, name, outer_positions):
    """With eager attention too, for which every mask is written out."""
    outer, stages = KeepEvery(positions=outer_positions), [stage.fresh() for stage in STAGES[name]]
    with reduce_tokens(both.model, outer, 0.3, stages) as run:
        out = both.model.generate(**both.inputs(0), **GREEDY)
    rows, first = both.kept_rows(0, outer(video_of(both), 0.3)), both.before[0]
    numbers = None
    if outer_positions == "original":
        numbers = torch.cat(
            [torch.arange(first), first + rows, first + len(both.rows[0]) + torch.arange(both.after[0])]
        )
    else:
        numbers = torch.arange(first + len(rows) + both.after[0])
    check_masked(both, out, stages, run, both.rows[0][rows], numbers)


@pytest.mark.parametrize("layer", [1, 4])
def test_a_layer_that_is_not_causal(both, layer):
    """The layer before the stage attends to everything in prefill, and to nothing later while decoding."""
    stage = Drop(layer, causal=False)
    with reduce_tokens(both.model, inner=stage):
        out = both.model.generate(**both.inputs(0), **GREEDY)
    with reduce_tokens(both.model, inner=Drop(layer)):
        causal = both.model.generate(**both.inputs(0), **GREEDY)
    embeds = both.embed(0, both.rows[0], out.sequences[0, -NEW:])
    length = len(embeds) - NEW
    masks, positions = layout(length, len(embeds), [(stage, absolute([stage], length)[0])])
    masks[layer - 1][:length, :length] = True
    expected = both.recompute(embeds, masks, positions)
    torch.testing.assert_close(torch.cat(out.logits), expected[length - 1 : -1], **NEAR)
    assert (out.logits[0] - causal.logits[0]).abs().max() > 1e-2


@pytest.mark.parametrize("stage", [Drop(2, 1.0, positions="contiguous"), Drop(3, 1.0, prune_past=True)])
def test_a_stage_that_keeps_everything_is_the_unmodified_model(both, stage):
    stock = both.model.generate(**both.inputs(0, 1), **GREEDY)
    with reduce_tokens(both.model, inner=stage):
        ours = both.model.generate(**both.inputs(0, 1), **GREEDY)
    torch.testing.assert_close(torch.stack(ours.logits), torch.stack(stock.logits), **NEAR)


@pytest.mark.parametrize("name", ["llava_onevision", "llava_next_video"])
@pytest.mark.parametrize("cache", [True, False])
@torch.no_grad()
def test_scores_are_eager_attention(name, cache):
    """One row of the layer before, or of the layer itself, as the eager model reports it; all rows after the video."""
    host = Host(name, "eager")
    stages = [Drop(2, 1.0), Drop(3, 1.0, score="this"), Drop(4, 1.0, query="text")]
    maps = host.model(**host.inputs(0), output_attentions=True).attentions
    with reduce_tokens(host.model, inner=stages):
        host.model(**host.inputs(0), use_cache=cache)
    last, this, text = (stage.seen[0]["score"] for stage in stages)
    torch.testing.assert_close(last, maps[1][0, :, -1].mean(0), atol=1e-6, rtol=0)
    torch.testing.assert_close(this, maps[3][0, :, -1].mean(0), atol=1e-6, rtol=0)
    torch.testing.assert_close(text, maps[3][0, :, -host.after[0] :], atol=1e-6, rtol=0)
    assert text.shape == (4, host.after[0], len(host.prompt(0))) and last.dtype == torch.float32


def test_a_stage_sees_its_tokens(plain):
    """Ids of visual tokens, their number at the start, and states without padding."""
    stages = [Drop(1), Drop(3, include_newlines=True)]
    with reduce_tokens(plain.model, inner=stages):
        plain.model.generate(**plain.inputs(0, 1), **GREEDY)
    for b in (0, 1):
        first, second = stages[0].seen[b], stages[1].seen[b]
        assert first["visual"].tolist() == [plain.before[b] + i for i in range(64)]
        assert (first["n0"], second["n0"], len(second["visual"])) == (64, 65, 33)
        assert len(first["hidden"]) == len(first["score"]) == len(plain.prompt(b))


# --- groups


@dataclass(frozen=True)
class Grouped(KeepEvery):
    """Groups of two frames, numbered 5, 7, ...; the gain is the token's own place, so that none can be mistaken."""

    gains: bool = True

    def __call__(self, video, budget):
        kept = super().__call__(video, budget)
        order = torch.arange(len(kept)).flip(0)  # not in raster order
        place = (kept.frame * video.cells + kept.cell)[order]
        group, gain = 5 + 2 * (kept.frame[order] // 2), place.float() if self.gains else None
        return TokenSet(kept.tokens[order], kept.frame[order], kept.cell[order], None, group, gain)


def expected_groups(kept, width, row_newlines):
    """One video's tokens in prompt order, by loops: (group, place, is a newline)."""
    tokens = list(zip(kept.group.tolist(), kept.gain.tolist(), strict=True))
    if not row_newlines:
        return [(*token, False) for token in tokens] + [(*tokens[-1], True)]
    out = []
    for line in range(FRAMES * width):
        mine = sorted((t for t in tokens if t[1] // width == line), key=lambda t: t[1])
        out += [(*t, False) for t in mine] + ([(*mine[-1], True)] if mine else [])
    return out


@pytest.mark.parametrize("name", ["llava_onevision", "llava_video"])
@pytest.mark.parametrize("counted", [False, True])
def test_every_stage_gets_the_groups_of_its_tokens(name, counted):
    """A left-padded batch with two videos in one prompt, stages after stages, beams."""
    host, outer = Host(name), Grouped()
    two = torch.cat([host.prompt(0), host.prompt(1)])
    stages = [GroupDrop(1, 0.7, include_newlines=counted), Drop(2, 0.8), GroupDrop(4, include_newlines=counted)]
    with reduce_tokens(host.model, outer, 0.3, stages):
        host.model.generate(**batch(two, host.prompt(1)), **host.pixels(0, 1, 1), **GREEDY, num_beams=2)
    kept = [expected_groups(outer(video_of(host, i), 0.3), host.grids[0][1], name == "llava_video") for i in (0, 1)]
    middle = host.after[0] + host.before[1]
    for b, (mine, between) in enumerate([(kept, (5, middle, 4)), (kept[1:], (3, 4))]):
        expected = []
        for number, video in enumerate(mine):
            expected += [None] * between[number] + [(group + 3 * number, gain, new) for group, gain, new in video]
        expected += [None] * between[-1]
        for stage in stages:
            seen, twin = stage.seen[2 * b], stage.seen[2 * b + 1]
            assert torch.equal(seen["keep"], twin["keep"])
            if isinstance(stage, GroupDrop):
                chosen = [e for e in expected if e is not None and (counted or not e[2])]
                found = list(zip(seen["group"].tolist(), seen["gain"].tolist(), strict=True))
                assert [(group, gain) for group, gain, _ in chosen] == found
            expected = [expected[i] for i in seen["keep"]]
    # the first video's groups are 5 and 7 as the outer stage numbered them, the second one's 8 and 10: none is shared
    assert set(stages[0].seen[0]["group"].tolist()) == {5, 7, 8, 10}


@pytest.mark.parametrize(("outer", "missing"), [(KeepEvery(), (True, True)), (Grouped(gains=False), (False, True))])
def test_without_groups_or_gains_the_stage_gets_none(plain, outer, missing):
    stage = GroupDrop(2)
    with reduce_tokens(plain.model, outer, 0.3, stage):
        plain.model.generate(**plain.inputs(0), **GREEDY)
    assert (stage.seen[0]["group"] is None, stage.seen[0]["gain"] is None) == missing


# --- promises


BROKEN = {
    "strictly ascending": lambda ids, hidden: (ids.flip(0), hidden),
    "77 ids and 76 states": lambda ids, hidden: (ids, hidden[1:]),
    "dropped 1 tokens that are not visual": lambda ids, hidden: (ids[1:], hidden[1:]),
    "Return strictly": lambda ids, hidden: (ids + 1, hidden),
    "0 ids": lambda ids, hidden: (ids[:0], hidden[:0]),
}


@pytest.mark.parametrize("match", BROKEN)
def test_a_stage_that_breaks_its_promise(plain, match):
    class Careless(Drop):
        def __call__(self, hidden, score, visual, n0):
            return BROKEN[match](torch.arange(len(hidden)), hidden)

    with reduce_tokens(plain.model, inner=Careless(2)), pytest.raises(BadUsage, match=match):
        plain.model(**plain.inputs(0))


def test_what_a_stage_refuses_is_raised_at_once(plain):
    """A NaN in the language model reaches the stage's own refusal, through generate too."""
    layer = plain.model.model.language_model.layers[1]
    handle = layer.register_forward_hook(lambda _, __, out: out * float("nan"))
    try:
        with reduce_tokens(plain.model, inner=FastV(3, 0.5)), pytest.raises(BadUsage, match="NaN or an infinity"):
            plain.model.generate(**plain.inputs(0), **GREEDY)
    finally:
        handle.remove()


# --- the decode stage


@pytest.mark.parametrize("stage", [Nearest(2), Nearest(4), DyCokeDecode(2, 0.7)])
def test_what_a_decode_stage_leaves_unread_is_as_if_masked(host, stage):
    """From its layer on, a generated token reads the chosen visual tokens only; the caches keep them all."""
    seen = []

    class Watched:
        layer, fidelity = stage.layer, "control"

        def __call__(self, row, visual):
            read = stage(row, visual)
            seen.append((len(row), visual, visual if read is None else read))
            return read

    with reduce_tokens(host.model, decode=Watched()) as run:
        out = host.model.generate(**host.inputs(0), **GREEDY)
    embeds = host.embed(0, host.rows[0], out.sequences[0, -NEW:])
    length = len(embeds) - NEW
    masks, positions = layout(length, len(embeds), numbers=continued(host.numbers(0), NEW))
    assert len(seen) == NEW - 1
    for step, (columns, visual, read) in enumerate(seen):
        assert torch.equal(visual, host.before[0] + host.visual[0].nonzero().flatten())
        assert columns == length + step + 1
        for i in range(stage.layer, LAYERS):
            masks[i][length + step, visual[~torch.isin(visual, read)]] = False
    expected = host.recompute(embeds, masks, positions)
    torch.testing.assert_close(torch.cat(out.logits), expected[length - 1 : -1], **NEAR)
    assert [out.past_key_values.get_seq_length(i) for i in range(LAYERS)] == [length + NEW - 1] * LAYERS
    assert run.stats.removed[f"decode@{stage.layer}"] == sum(len(v) - len(r) for _, v, r in seen) > 0


DECODING = {
    "plain": Reduction("plain", decode=DyCokeDecode(2, 0.7)),
    "behind stages": Reduction("behind stages", KeepEvery(), 0.3, (HoliTomMerge(1, 0.3), Drop(3, 0.6)), Nearest(2)),
    "renumbered": Reduction(
        "renumbered", KeepEvery(positions="original"), 0.3, (Drop(3, positions="contiguous"),), Nearest(1)
    ),
    "past": Reduction("past", KeepEvery(), 0.3, (Drop(3, 0.5, prune_past=True),), Nearest(4, 3)),
}


@pytest.mark.parametrize("name", DECODING)
def test_decode_stages_in_batches_and_beams(both, name):
    """Left-padded prompts that leave unequally many tokens unread, and beams that change places: as alone."""
    beams = {**GREEDY, "num_beams": 3, "num_return_sequences": 2, "output_scores": True}
    with reduce_tokens(both.model, reduction=DECODING[name]) as run:
        together = both.model.generate(**both.inputs(0, 1), **GREEDY)
        searched = both.model.generate(**both.inputs(0, 1), **beams)
        for b in range(2):
            alone = both.model.generate(**both.inputs(b), **GREEDY)
            logits = torch.stack([step[b] for step in together.logits])
            torch.testing.assert_close(logits, torch.cat(alone.logits), **NEAR)
            found = both.model.generate(**both.inputs(b), **beams)
            assert torch.equal(searched.sequences[2 * b : 2 * b + 2, -NEW:], found.sequences[:, -NEW:])
    assert run.stats.acted
