"""Kinds of tokens with the counts that the host knows, against counting them."""

import pytest
import torch
from seam import Drop

from holitom.attaching.kinds import NEWLINE, TEXT, VISUAL, Kinds, video_runs

T, V, N = TEXT, VISUAL, NEWLINE
ONE = ([T, T, V, V, N, V, V, N, T, T, T], 1)
TWO = ([T, V, V, N, T, T, V, V, T], 2)


def kinds_of(row, runs):
    kind = torch.tensor(row)
    shown = [int((kind == which).sum()) for which in (TEXT, VISUAL, NEWLINE)]
    return Kinds(kind, *shown, runs, len(row) - 1 - int((kind != TEXT).nonzero().max()))


def stage(include_newlines):
    return Drop(2, include_newlines=include_newlines)


@pytest.mark.parametrize("prompt", [ONE, TWO])
@pytest.mark.parametrize("newlines", [False, True])
@pytest.mark.parametrize("lost", [[], [0], [0, 1], [-1, -2], [1, -1]])
def test_counts_after_a_stage_are_those_of_its_tokens(prompt, newlines, lost):
    before, acting = kinds_of(*prompt), stage(newlines)
    ids = before.candidate_ids(acting)
    wanted = (before.kind != TEXT) if newlines else (before.kind == VISUAL)
    assert torch.equal(ids, wanted.nonzero().flatten()) and before.candidates(acting) == len(ids)
    kept = torch.ones(len(before), dtype=torch.bool)
    kept[ids[lost]] = False
    kept = kept.nonzero().flatten()
    after = before.after(acting, kept)
    assert torch.equal(after.kind, before.kind[kept]) and after.text == before.text
    assert after.visual == (after.kind == VISUAL).sum() and after.newlines == (after.kind == NEWLINE).sum()
    assert torch.equal(after.visual_ids, (after.kind == VISUAL).nonzero().flatten())
    assert after.behind_video() == int((after.kind != TEXT).nonzero().max()) + 1
    again = after.after(stage(False), torch.arange(len(after)))
    assert (again.visual, again.newlines) == (after.visual, after.newlines)


def test_the_text_behind_the_last_video_may_grow():
    """All of the second video is dropped: what was text between the videos is now behind the only one."""
    before = kinds_of(*TWO)
    assert before.behind_video() == 8
    after = before.after(stage(False), torch.tensor([0, 1, 2, 3, 4, 5, 8]))
    assert after.behind_video() == 4


@pytest.mark.parametrize(
    ("kept", "lost"), [(range(11), 0), (range(1, 11), 1), ([0, 1, 4, 7, 8, 9, 10], 0), ([2, 3], 7)]
)
def test_tokens_that_a_stage_must_not_drop_are_missed(kept, lost):
    assert kinds_of(*ONE).lost(stage(False), torch.tensor(list(kept))) == lost
    assert kinds_of(*ONE).lost(stage(True), torch.tensor([0, 1, 8, 9, 10])) == 0


def test_runs_of_placeholders():
    row = torch.tensor([7, 9, 9, 1, 9, 2])
    assert video_runs(row, 9) == [(1, 3), (4, 5)] and video_runs(row, 8) == []
