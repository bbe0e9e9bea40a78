"""Groups of the outer stage, through newlines, padding, several videos and earlier stages, to those who read them."""

from dataclasses import dataclass, field

import pytest
import torch
from seam import CELLS, FRAMES, Drop, KeepEvery, batch, pixels, prompt, tiny_model

from holitom.attach import reduce_tokens
from holitom.attaching.groups import Groups, groups_of
from holitom.layout import arrange
from holitom.types import TokenSet

GENERATE = {"max_new_tokens": 3, "do_sample": False}
GRID = (4, 4)


@dataclass(frozen=True)
class Grouped(KeepEvery):
    """Groups of two frames, numbered 5, 7, ...; the gain is the token's own place, so that none can be mistaken."""

    gains: bool = True

    def __call__(self, video, budget):
        kept = super().__call__(video, budget)
        order = torch.arange(len(kept)).flip(0)  # not in raster order
        place = (kept.frame * CELLS + kept.cell)[order]
        group = 5 + 2 * (kept.frame[order] // 2)
        gain = place.float() if self.gains else None
        return TokenSet(kept.tokens[order], kept.frame[order], kept.cell[order], None, group, gain)


@dataclass(frozen=True)
class GroupDrop(Drop):
    reads_groups = True
    groups: list = field(default_factory=list, compare=False)

    def __call__(self, hidden, score, visual, n0, group, gain):
        self.groups.append((group, gain))
        return super().__call__(hidden, score, visual, n0)


def grid_model():
    return tiny_model(mm_newline_position="grid", mm_spatial_pool_mode="average")


def expected_of(kept, row_newlines):
    """One video's tokens in prompt order, by loops: (group, place, is a newline)."""
    tokens = list(zip(kept.group.tolist(), kept.gain.tolist(), strict=True))
    if not row_newlines:
        return [(*token, False) for token in tokens] + [(*tokens[-1], True)]
    out = []
    for line in range(FRAMES * 4):
        mine = sorted((t for t in tokens if t[1] // 4 == line), key=lambda t: t[1])
        out += [(*t, False) for t in mine] + ([(*mine[-1], True)] if mine else [])
    return out


@pytest.mark.parametrize("newlines", ["end", "row"])
@pytest.mark.parametrize("counted", [False, True])
def test_every_stage_gets_the_groups_of_its_tokens(newlines, counted):
    """A left-padded batch, with two videos in one prompt, and stages after stages."""
    model = tiny_model() if newlines == "end" else grid_model()
    spots = FRAMES * CELLS + (1 if newlines == "end" else FRAMES * 4)
    two = torch.cat([prompt(4, 5, spots, seed=1), prompt(3, 6, spots, seed=2)])
    rows, clips = [two, prompt(2, 3, spots, seed=3)], pixels(3, seed=4)
    outer = Grouped()
    stages = [GroupDrop(1, 0.7, include_newlines=counted), Drop(2, 0.8), GroupDrop(4, include_newlines=counted)]
    with reduce_tokens(model, outer, 0.3, stages) as run:
        videos = run.encode(clips)
        model.generate(**batch(*rows), pixel_values_videos=clips, **GENERATE)
    kept = [expected_of(outer(video, 0.3), newlines == "row") for video in videos]
    for b, (mine, words) in enumerate([(kept[:2], (4, 8, 6)), (kept[2:], (2, 3))]):
        expected = []
        for number, video in enumerate(mine):
            expected += [None] * words[number]
            expected += [(group + 3 * number, gain, newline) for group, gain, newline in video]
        expected += [None] * words[-1]
        for stage in stages:
            seen = stage.seen[b]
            if stage in (stages[0], stages[2]):
                group, gain = stage.groups[b]
                chosen = [e for e in expected if e is not None and (counted or not e[2])]
                assert [(g, x) for g, x, _ in chosen] == list(zip(group.tolist(), gain.tolist(), strict=True))
                assert len(seen["visual"]) == len(group)
            expected = [expected[i] for i in seen["keep"]]
    # the first video's groups are 5 and 7 as the outer stage numbered them, the second one's 8 and 10: none is shared
    assert set(stages[0].groups[0][0].tolist()) == {5, 7, 8, 10}


def test_beams_get_the_groups_of_their_prompt(sdpa):
    stage, rows = GroupDrop(2), [prompt(5, 7), prompt(2, 3, seed=1)]
    with reduce_tokens(sdpa, Grouped(), 0.3, stage):
        sdpa.generate(**batch(*rows), pixel_values_videos=pixels(2), **GENERATE, num_beams=2)
    alone = GroupDrop(2)
    with reduce_tokens(sdpa, Grouped(), 0.3, alone):
        for b, row in enumerate(rows):
            sdpa.generate(**batch(row), pixel_values_videos=pixels(2)[b : b + 1], **GENERATE)
    assert [len(g) for g, _ in stage.groups] == [len(alone.groups[b][0]) for b in (0, 0, 1, 1)]
    for i, (group, gain) in enumerate(stage.groups):
        assert torch.equal(group, alone.groups[i // 2][0]) and torch.equal(gain, alone.groups[i // 2][1])


@pytest.mark.parametrize(("outer", "names"), [(KeepEvery(), (True, True)), (Grouped(gains=False), (False, True))])
def test_without_groups_or_gains_the_stage_gets_none(sdpa, outer, names):
    stage = GroupDrop(2)
    with reduce_tokens(sdpa, outer, 0.3, stage):
        sdpa.generate(**batch(prompt(5, 7)), pixel_values_videos=pixels(), **GENERATE)
    assert tuple(value is None for value in stage.groups[0]) == names


def test_videos_with_and_without_groups_in_one_prompt():
    some = Groups(torch.tensor([0, 4]), torch.tensor([1.5, 2.5]))
    both = groups_of(9, [(1, some, 2), (4, None, 3), (7, Groups(torch.tensor([-2, 0])), 2)])
    assert both.group.tolist() == [-1, 0, 4, -1, 5, 5, 5, 6, 8]
    assert both.gain.tolist() == [0, 1.5, 2.5, 0, 0, 0, 0, 0, 0]
    assert groups_of(5, [(1, None, 2)]) is None
    assert groups_of(5, []) is None
    kept = both.at(torch.tensor([2, 7]))
    assert (kept.group.tolist(), kept.gain.tolist()) == ([4, 6], [2.5, 0])


@pytest.mark.parametrize("order", ["end", "row", "none"])
def test_arranged_groups_follow_their_tokens(order):
    place = torch.tensor([21, 2, 9, 8])
    kept = TokenSet(place[:, None].float(), place // 16, place % 16, None, place * 10, place * 0.5)
    placed = arrange(kept, GRID, torch.tensor([-1.0]), order)
    carried = 0
    for row, group, gain in zip(placed.rows[:, 0].tolist(), placed.group.tolist(), placed.gain.tolist(), strict=True):
        carried = row if row >= 0 else carried
        assert (group, gain) == (10 * carried, 0.5 * carried)
    empty = TokenSet(torch.zeros(0, 1), *[torch.zeros(0, dtype=torch.long)] * 2, None, torch.zeros(0, dtype=torch.long))
    assert len(arrange(empty, GRID, torch.tensor([-1.0]), order).group) == (order == "end")


def test_a_token_set_that_contradicts_itself_is_refused(monkeypatch):
    import jaxtyping

    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    tokens, ids = torch.zeros(3, 2), torch.arange(3)
    with pytest.raises(ValueError, match="group has 2 entries for 3 tokens"):
        TokenSet(tokens, ids, ids, None, ids[:2])
    with pytest.raises(ValueError, match="there is no group"):
        TokenSet(tokens, ids, ids, None, None, torch.zeros(3))
