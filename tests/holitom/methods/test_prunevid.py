"""PruneVid: what a merged token is, and the selection inside the model. (Windows and static cells: tests/golden.)"""

import numpy as np
import oracle
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from videos import VIDEOS

from holitom.methods.prunevid import PruneVid, PruneVidSelect


@settings(max_examples=60)
@given(VIDEOS, st.floats(0.01, 0.99))
def test_every_token_goes_into_one_mean_of_its_group(video, budget):
    method = PruneVid()
    kept, windows = method(video, budget), method.windows(video)
    total = video.frames * video.cells
    ratio, group = min(1, budget * total / (total - windows.removed)), 0
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
    assert (kept.group.diff() >= 0).all()


@pytest.mark.parametrize("alpha", [0.01, 0.4, 0.77, 1.0])
@pytest.mark.parametrize("grouped", [True, False])
def test_every_group_keeps_what_any_word_attends_to(alpha, grouped):
    draw = torch.Generator().manual_seed(0)
    hidden, score = torch.randn(36, 8, generator=draw), torch.rand(3, 4, 36, generator=draw)
    group, best = torch.randint(0, 5, (30,), generator=draw) * grouped, score.flatten(0, 1).amax(0)[2:32]
    ids, _ = PruneVidSelect(alpha=alpha)(hidden, score, torch.arange(2, 32), 30, group=group if grouped else None)
    expected = []
    for g in group.unique():
        members = (group == g).nonzero().flatten()
        expected += members[oracle.best(best[members], int(alpha * len(members)))].tolist()
    if not expected:  # one token stays: the best of the largest group
        largest = (group == group.bincount().argmax()).nonzero().flatten()
        expected = [int(largest[best[largest].argmax()])]
    assert ids.tolist() == [0, 1, *(i + 2 for i in sorted(expected)), 32, 33, 34, 35]
