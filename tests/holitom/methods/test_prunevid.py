"""PruneVid: windows and static cells by brute force, what a merged token is, and the selection inside the model."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from videos import VIDEOS, check, scenes

from holitom.errors import BadUsage
from holitom.methods.prunevid import PruneVid, PruneVidSelect


def test_static_cells_are_those_alike_over_all_pairs_of_the_window():
    video = scenes(24, (3, 3), 8, seed=5)
    video.tokens[:, 4] = 0
    windows = PruneVid(tau=0.5).windows(video)
    unit = torch.nn.functional.normalize(video.tokens.double(), dim=-1)
    for (first, last), static in zip(windows.pairs, windows.static, strict=True):
        cosine = torch.einsum("tnd,und->ntu", unit[first : last + 1], unit[first : last + 1])
        pairs = [(i, j) for i in range(last - first + 1) for j in range(last - first + 1) if i != j]
        assert static.tolist() == [bool(pairs) and sum(float(c[p]) for p in pairs) / len(pairs) > 0.5 for c in cosine]
    assert max(windows.lengths) > 2 and windows.static.any() and not windows.static.all()


@settings(max_examples=60)
@given(VIDEOS, st.floats(0.01, 0.99))
def test_every_token_goes_into_one_mean_of_its_group(video, budget):
    method = PruneVid()
    kept, windows = method(video, budget), method.windows(video)
    check(video, kept)
    total = video.frames * video.cells
    ratio, owner = min(1, budget * total / (total - windows.removed)), np.repeat(range(len(windows)), windows.lengths)
    group = 0
    for w, (first, last) in enumerate(windows.pairs):
        parts = [(first, windows.static[w], last - first + 1)]
        parts += [(t, ~windows.static[w], 1) for t in range(first, last + 1)]
        for frame, cells, length in parts:
            mine, n = kept.group == group, int(cells.sum())
            assert int(mine.sum()) == (max(1, int(n * ratio)) if n > 14 else n)
            assert (kept.frame[mine] == frame).all() and cells[kept.cell[mine].numpy()].all()
            assert kept.size[mine].sum() == n * length
            if n <= 14:
                assert kept.cell[mine].tolist() == np.flatnonzero(cells).tolist()
            merged = (kept.size[mine, None].double() * kept.tokens[mine].double()).sum(0)
            source = video.tokens[frame : frame + length, torch.from_numpy(cells)].double().sum((0, 1))
            spread = float(video.tokens.abs().max()) * n * length * torch.finfo(video.tokens.dtype).eps
            torch.testing.assert_close(merged, source, atol=4 * spread + 1e-4, rtol=0)
            group += 1
    assert (kept.group.diff() >= 0).all() and len(owner) == video.frames


def test_groups_of_fourteen_stay_whole():
    for cells, left in ((14, 14), (15, 3)):
        assert len(PruneVid()(scenes(1, (1, cells), 8), 0.2)) == left


def inputs(tokens=30, first=2, after=4):
    draw = torch.Generator().manual_seed(0)
    seq = first + tokens + after
    hidden, score = torch.randn(seq, 8, generator=draw), torch.rand(3, after, seq, generator=draw)
    return hidden, score, torch.arange(first, first + tokens), torch.randint(0, 5, (tokens,), generator=draw)


@pytest.mark.parametrize("alpha", [0.01, 0.4, 0.77, 1.0])
@pytest.mark.parametrize("grouped", [True, False])
def test_every_group_keeps_what_any_word_attends_to(alpha, grouped):
    hidden, score, visual, group = inputs()
    ids, rows = PruneVidSelect(alpha=alpha)(hidden, score, visual, 30, group=group if grouped else None)
    group, best = group if grouped else torch.zeros_like(group), score.flatten(0, 1).amax(0)[visual]
    expected = []
    for g in group.unique():
        members = (group == g).nonzero().flatten().tolist()
        expected += sorted(members, key=lambda i: (-float(best[i]), i))[: int(alpha * len(members))]
    if not expected:  # one token stays: the best of the largest group
        largest = (group == group.bincount().argmax()).nonzero().flatten()
        expected = [int(largest[best[largest].argmax()])]
    assert ids.tolist() == [0, 1, *(i + 2 for i in sorted(expected)), 32, 33, 34, 35]
    assert torch.equal(rows, hidden[ids])


def test_wrong_settings_are_refused():
    assert PruneVidSelect(alpha=1.0).identity and not PruneVidSelect(alpha=0.99).identity
    for wrong in ({"k": 0}, {"temporal_segment_ratio": 0}, {"temporal_segment_ratio": 1.5}):
        with pytest.raises(BadUsage, match=next(iter(wrong))):
            PruneVid(**wrong)
