"""Dropping equals masking: outer stages, stages inside the decoder and decode stages against one forward over explicit
embeddings; scores equal eager attention; what a stage is given, and what it must give."""

from dataclasses import dataclass

import pytest
import torch
from hosts import FRAMES
from seam import GREEDY, Drop, GroupDrop, Host, KeepEvery, Nearest, batch, check, video_of

from holitom.attach import reduce_tokens
from holitom.errors import BadUsage
from holitom.types import TokenSet

OUTER = {"contiguous": KeepEvery(), "original": KeepEvery(positions="original")}
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
DECODE = {"early": Nearest(2), "late": Nearest(4)}


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
    """Two videos in a prompt, stages after stages."""
    host, outer = Host(name), Grouped()
    stages = [GroupDrop(1, 0.7, include_newlines=counted), Drop(2, 0.8), GroupDrop(4, include_newlines=counted)]
    two = batch(torch.cat([host.prompt(0), host.prompt(1)]))
    with reduce_tokens(host.model, outer, 0.3, stages):
        host.model(**two, **host.pixels(0, 1))
    first, second = (
        expected_groups(outer(video_of(host, i), 0.3), host.grids[0][1], name == "llava_video") for i in (0, 1)
    )
    second = [(group + 8, gain, new) for group, gain, new in second]  # 5 and 7 are the first video's: none is shared
    expected = [None] * 5 + first + [None] * (host.after[0] + host.before[1]) + second + [None] * 4
    for stage in stages:
        (seen,) = stage.seen
        if isinstance(stage, GroupDrop):
            chosen = [one[:2] for one in expected if one is not None and (counted or not one[2])]
            assert chosen == list(zip(seen["group"].tolist(), seen["gain"].tolist(), strict=True))
        expected = [expected[i] for i in seen["keep"]]
    alone = GroupDrop(2)
    with reduce_tokens(host.model, KeepEvery(), 0.3, alone):
        host.model(**host.inputs(0))
    assert alone.seen[0]["group"] is alone.seen[0]["gain"] is None


# --- promises


BROKEN = {
    "a state is missing": lambda ids, hidden: (ids, hidden[1:]),
    "text is dropped": lambda ids, hidden: (ids[1:], hidden[1:]),
    "an id lies beyond": lambda ids, hidden: (ids + 1, hidden),
    "the order is another": lambda ids, hidden: (ids.flip(0), hidden),
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_stage_that_breaks_its_promise(plain, what):
    class Careless(Drop):
        def __call__(self, hidden, score, visual, n0):
            return BROKEN[what](torch.arange(len(hidden)), hidden)

    refused = pytest.raises(BadUsage, match=r"Careless returned \d+ ids .* Return strictly ascending ids")
    with reduce_tokens(plain.model, inner=Careless(2)), refused:
        plain.model(**plain.inputs(0))
