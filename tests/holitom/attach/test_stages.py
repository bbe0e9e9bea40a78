"""Dropping equals masking: outer stages, stages inside the decoder and decode stages against one forward over explicit
embeddings; scores equal eager attention; what a stage is given, and what it must give."""

from dataclasses import dataclass

import pytest
import seam
import torch
from hosts import FRAMES, LAYERS
from seam import ALL, GREEDY, NEAR, NEW, Drop, GroupDrop, Host, KeepEvery, Nearest, absolute, batch, continued

from holitom.attach import reduce_tokens
from holitom.errors import BadUsage
from holitom.methods import DyCokeDecode, FastV
from holitom.types import TokenSet

OUTER = {"contiguous": KeepEvery(), "original": KeepEvery(positions="original"), "all": ALL}
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
    "not causal": [Drop(4, causal=False)],
}
DECODE = {"early": Nearest(2), "late": Nearest(4), "dycoke": DyCokeDecode(2, 0.7)}


class Watched:
    """A decode stage, and what it was asked and left to be read at every token."""

    fidelity = "control"

    def __init__(self, stage):
        self.stage, self.layer, self.seen = stage, stage.layer, []

    def __call__(self, row, visual):
        read = self.stage(row, visual)
        self.seen.append((len(row), visual, read))
        return read


def check(host, outer=None, stages=(), decode=None):
    """Prefill and decoding with a cache against one forward that masks what was dropped or left unread, at the
    positions that the family has for what is kept; then the counts."""
    stages, decode = [stage.fresh() for stage in stages], decode and Watched(decode)
    with reduce_tokens(host.model, outer, 0.3 if outer else 1.0, stages, decode) as run:
        out = host.model.generate(**host.inputs(0), **GREEDY)
    first, after, full = host.before[0], host.after[0], host.numbers(0)
    rows = host.kept_rows(0, outer(seam.video_of(host), 0.3)) if outer else torch.arange(len(host.rows[0]))
    embeds = host.embed(0, host.rows[0][rows], out.sequences[0, -NEW:])
    length, numbers = len(embeds) - NEW, torch.arange(len(embeds) - NEW)
    if outer is None or outer.positions == "original" or full.ndim == 2:
        behind = torch.arange(full.shape[-1])[-after:]
        numbers = full[..., torch.cat([torch.arange(first), first + rows, behind])]
    kept, entering, cached = absolute(stages, length), [length] * LAYERS, [length] * LAYERS
    masks, positions = seam.layout(length, len(embeds), zip(stages, kept, strict=True), continued(numbers, NEW))
    for stage, ids in zip(stages, kept, strict=True):
        entering[stage.layer :] = cached[stage.layer :] = [len(ids)] * (LAYERS - stage.layer)
        if stage.prune_past:
            cached[: stage.layer] = [min(count, len(ids)) for count in cached[: stage.layer]]
        if not stage.causal:
            masks[stage.layer - 1][:length, :length] = True
    for step, (columns, visual, read) in enumerate(decode.seen if decode else ()):
        assert columns == length + step + 1
        assert torch.equal(visual, first + host.visual[0].nonzero().flatten())
        for i in range(decode.layer, LAYERS):
            masks[i][length + step, visual[~torch.isin(visual, read)]] = False
    torch.testing.assert_close(torch.cat(out.logits), host.recompute(embeds, masks, positions)[length - 1 : -1], **NEAR)
    last = run.stats.last
    held = [out.past_key_values.get_seq_length(i) - NEW + 1 for i in range(LAYERS)]
    assert held == cached == list(last.cached_per_layer) and list(last.prompt_per_layer) == entering
    assert list(last.per_layer) == [last.kept - length + n for n in entering]
    assert run.stats.acted == (outer is not ALL)
    if decode:
        assert len(decode.seen) == NEW - 1
        left = sum(len(visual) - len(read) for _, visual, read in decode.seen)
        assert run.stats.removed[f"decode@{decode.layer}"] == left > 0
    return out


@pytest.mark.parametrize("name", OUTER)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_an_outer_stage(host, name, attention):
    host.model.set_attn_implementation(attention)
    check(host, OUTER[name])
    host.model.set_attn_implementation("sdpa")


@pytest.mark.parametrize("name", STAGES)
def test_drop_equals_mask(host, name):
    check(host, None, STAGES[name])


@pytest.mark.parametrize("name", STAGES)
@pytest.mark.parametrize("positions", ["contiguous", "original"])
def test_drop_equals_mask_behind_an_outer_stage(both, name, positions):
    """With eager attention too, for which every mask is written out."""
    check(both, OUTER[positions], STAGES[name])


@pytest.mark.parametrize("name", DECODE)
def test_what_a_decode_stage_leaves_unread_is_as_if_masked(host, name):
    """From its layer on, a generated token reads the chosen visual tokens only; the caches keep them all."""
    check(host, decode=DECODE[name])


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

    def __call__(self, video, budget):
        kept = super().__call__(video, budget)
        order = torch.arange(len(kept)).flip(0)  # not in raster order
        place = (kept.frame * video.cells + kept.cell)[order]
        group = 5 + 2 * (kept.frame[order] // 2)
        return TokenSet(kept.tokens[order], kept.frame[order], kept.cell[order], None, group, place.float())


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
    kept = [
        expected_groups(outer(seam.video_of(host, i), 0.3), host.grids[0][1], name == "llava_video") for i in (0, 1)
    ]
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
    alone = GroupDrop(2)
    with reduce_tokens(host.model, KeepEvery(), 0.3, alone):
        host.model.generate(**host.inputs(0), **GREEDY)
    assert alone.seen[0]["group"] is alone.seen[0]["gain"] is None


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
    model = Host().model
    model.model.language_model.layers[1].register_forward_hook(lambda _, __, out: out * float("nan"))
    with reduce_tokens(model, inner=FastV(3, 0.5)), pytest.raises(BadUsage, match="NaN or an infinity"):
        model.generate(**plain.inputs(0), **GREEDY)
