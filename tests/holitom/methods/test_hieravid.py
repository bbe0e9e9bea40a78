"""HieraVid: merging over time against a loop, diverse subsets against brute force, and what its percentages mean."""

import numpy as np
import pytest
import torch
from videos import equals, scenes

from holitom.flops import LLM_SHAPES
from holitom.methods.hieravid import HieraVid, HieraVidSelect, hieravid
from holitom.ops.diverse import greedy_map
from holitom.types import VideoFeatures


def plain_merge(video, wanted):
    """Cell by cell: the most similar tokens are averaged into the token before their run."""
    frames, cells, x = video.frames, video.cells, video.tokens.float()
    similar = torch.cosine_similarity(x[1:], x[:-1], dim=-1)
    pairs = [(t, n) for t in range(1, frames) for n in range(cells)]
    merged = {*sorted(pairs, key=lambda p: (-float(similar[p[0] - 1, p[1]]), p))[: frames * cells - wanted]}
    for t, n in [(t, n) for t in range(frames) for n in range(cells) if (t, n) not in merged]:
        run = [t]
        while (run[-1] + 1, n) in merged:
            run.append(run[-1] + 1)
        yield (t, n), (x[run, n].mean(0), len(run))


@pytest.mark.parametrize("budget", [0.1, 0.3, 0.5, 0.8])
def test_merging_equals_the_plain_loop(budget):
    video = scenes(13, (3, 4), 16, seed=1)
    kept = HieraVid()(video, budget)
    equals(kept, dict(plain_merge(video, round(budget * 13 * 12))))
    assert (kept.group.diff() >= 0).all() and kept.gain.isfinite().all()
    assert len(HieraVid()(video, 5 / 156)) == 5  # below one token per cell


def test_segments_begin_where_most_cells_change():
    draw = torch.Generator().manual_seed(0)
    shots = torch.randn(3, 1, 16, 8, generator=draw).repeat_interleave(4, 1).flatten(0, 1)
    video = VideoFeatures(shots + 0.05 * torch.randn(12, 16, 8, generator=draw), (4, 4))
    assert HieraVid()(video, 1.0).group.view(12, 16)[:, 0].tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert HieraVid(threshold=0.0)(video, 1.0).group.unique().tolist() == [0]
    assert len(HieraVid(similarity=1.0)(video, 1.0).group.unique()) == 12


def largest_determinants(rows, quality, count):
    """Add whichever row makes the determinant largest, computed in full every time."""
    unit = torch.nn.functional.normalize(rows.double(), dim=-1)
    kernel, chosen = quality.double()[:, None] * (unit @ unit.T) * quality.double(), []
    for _ in range(count):
        rest = [i for i in range(len(rows)) if i not in chosen]
        chosen.append(max(rest, key=lambda i: float(kernel[[*chosen, i]][:, [*chosen, i]].det())))
    return sorted(chosen)


def inputs(tokens=40, dim=16, seed=0):
    draw = torch.Generator().manual_seed(seed)
    hidden, score = torch.randn(tokens + 6, dim, generator=draw), torch.rand(tokens + 6, generator=draw)
    group = torch.tensor([0] * (tokens // 2) + [1, 2] + [3] * (tokens - tokens // 2 - 2))
    return hidden, score, torch.arange(2, tokens + 2), group, torch.randn(4, generator=draw)[group]


@pytest.mark.parametrize("relevance", [-1, 1])
@pytest.mark.parametrize("counts", ["exact", "coded"])
@pytest.mark.parametrize("ratio", [0.3, 0.57, 0.8])
def test_selection_equals_brute_force_per_segment(relevance, counts, ratio):
    hidden, score, visual, group, gain = inputs()
    ids, rows = HieraVidSelect(7, ratio, relevance, counts)(hidden, score, visual, 40, group=group, gain=gain)
    assert torch.equal(rows, hidden[ids]) and ids[:2].tolist() == [0, 1] and ids[-4:].tolist() == [42, 43, 44, 45]
    attention, kept = relevance * score[visual].double(), ids[2:-4] - 2
    quality = (attention - attention.min()) / (attention.max() - attention.min()) + 1e-6
    for g in group.unique():
        members = (group == g).nonzero().flatten()
        mine = kept[group[kept] == g].tolist()
        chosen = largest_determinants(hidden[visual][members], quality[members], len(mine))
        assert mine == members[chosen].tolist()
        if counts == "coded":
            assert len(mine) == int(len(members) * np.clip(1 - ratio + 0.1 * float(gain[members[0]]), 0.05, 0.95))
    assert counts == "coded" or len(kept) == round((1 - ratio) * 40)


def test_one_token_stays():
    for counts in ("exact", "coded"):
        stage = HieraVidSelect(7, 0.9, counts=counts)
        assert stage(torch.ones(4, 3), torch.zeros(4), torch.arange(3), 3, group=torch.arange(3))[0].tolist() == [0, 3]


def test_dependent_rows_follow_by_quality_and_ties_take_the_first():
    def chosen(rows, quality, count):
        every = torch.ones(1, 7, dtype=torch.bool)
        return greedy_map(rows[None], torch.tensor([quality]), every, torch.tensor([count]))[0].nonzero()[:, 0].tolist()

    rows = torch.eye(4)[[0, 0, 1, 1, 2, 2, 0]]
    rows[5] = 0
    for count, expected in ((3, [2, 4, 6]), (4, [0, 2, 4, 6]), (6, [0, 1, 2, 3, 4, 6]), (7, [0, 1, 2, 3, 4, 5, 6])):
        assert chosen(rows, [0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.95], count) == expected
    assert chosen(torch.ones(7, 4), [1.0] * 7, 3) == [0, 1, 2]
    assert chosen(torch.eye(7), [1e-6, 1, *[1e-6] * 5], 2) == [0, 1]  # quality does not decide what is dependent


@pytest.mark.parametrize(("schedule", "mean", "cost"), [("30%", 30.0, 24.47), ("20%", 21.0, 17.2), ("10%", 11.0, 8.5)])
def test_schedules_cost_what_the_paper_prints(schedule, mean, cost):
    setting, shape = hieravid(schedule), LLM_SHAPES["video-7b"]
    left = np.cumprod([setting.budget, *(1 - stage.ratio for stage in setting.inner)])
    shares = np.repeat(left, np.diff([0, *(stage.layer for stage in setting.inner), 28]))
    assert round(100 * float(shares.mean()), 1) == mean
    percent = 100 * shape.paper(10816 * shares) / shape.paper([10816] * 28)
    assert percent == pytest.approx(cost, abs=0.005 if mean == 30 else 0.06)
