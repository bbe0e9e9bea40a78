"""UniComp, V-CAST, FlashVID and the unified pool against plain loops over frames and tokens."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from videos import equals, places, scenes

from holitom import methods
from holitom.errors import BadUsage
from holitom.methods.fastv import FastV
from holitom.methods.fastvid import FastVID
from holitom.methods.flashvid import FlashVID, flashvid
from holitom.methods.unicomp import UniComp
from holitom.methods.vcast import share_frames
from holitom.ops.diverse import first_come


def cosine(a, b):
    return float(torch.cosine_similarity(a[None].double(), b[None].double()))


def walk(near):
    """One row after the other: stays unless a row that stayed is near."""
    stays = []
    for i in range(len(near)):
        if not any(near[i][j] for j in stays):
            stays.append(i)
    return stays


@pytest.mark.parametrize("density", [0.0, 0.05, 0.5, 1.0])
def test_first_come_is_the_walk(density):
    draw = torch.Generator().manual_seed(0)
    near = torch.rand(5, 40, 40, generator=draw) < density
    near = near | near.mT
    stays = first_come(near)
    assert [mask.nonzero()[:, 0].tolist() for mask in stays] == [walk(one) for one in near]
    chain = torch.ones(1, 9, 9).triu(-1).tril(1).bool()
    assert first_come(chain)[0].nonzero()[:, 0].tolist() == [0, 2, 4, 6, 8]


@pytest.mark.parametrize("seed", range(4))
def test_unicomp_covers_as_a_walk_does(seed):
    """Budgets above the number of picks: every pick of the walk is there, with its average."""
    video = scenes(7, (3, 4), 12, seed)
    video = replace(video, tokens=video.tokens[[0, 0, 1, 2, 2, 2, 3]], frame_embed=None)
    kept = UniComp(cell=0.6, head="substitute")(video, 0.75)
    expected = {}
    for first, length in ((0, 2), (2, 1), (3, 2), (5, 1), (6, 1)):  # groups have at most int(1 / 0.75) + 1 frames
        fused, keys = video.tokens[first : first + length].double().mean(0), video.keys[first]
        table = [[cosine(a, b) for b in keys] for a in keys]
        order = sorted(range(12), key=lambda n, table=table: (round(sum(table[n]), 5), n))
        for n in (order[i] for i in walk([[1 - table[a][b] < 0.6 for b in order] for a in order])):
            covered = [m for m in range(12) if 1 - table[n][m] < 0.6]
            expected[first, n] = (fused[n] + fused[covered].mean(0)) / 2, len(covered) * length
    equals(kept, dict(sorted(expected.items())))
    fewer = places(UniComp(cell=0.6, head="substitute")(video, 0.15))
    assert len(fewer) == int(0.15 * 84) and {at for at in fewer if at[0] > 5} < set(expected)


@pytest.mark.parametrize("seed", range(4))
def test_vcast_follows_the_curve_and_keeps_what_stands_out(seed):
    video = scenes(3 + 2 * seed, (3, 4), 16, seed)
    means = torch.nn.functional.normalize(video.tokens.double().mean(1), dim=-1)
    inner = range(1, video.frames - 1)
    turn = [1.0, *(1 - cosine(means[t] - means[t - 1], means[t + 1] - means[t]) for t in inner), 1.0]
    shares = np.exp(np.array(turn) / 0.7) / np.exp(np.array(turn) / 0.7).sum()
    counts = share_frames(shares, round(0.3 * video.frames * 12), 12)
    expected = []
    for t, frame in enumerate(video.tokens.double()):
        norm = frame.norm(dim=-1)
        norm = (norm - norm.min()) / (norm.max() - norm.min())
        score = [1 - cosine(x, means[t]) + float(n) for x, n in zip(frame, norm, strict=True)]
        expected += [(t, n) for n in sorted(sorted(range(12), key=lambda n: -score[n])[: counts[t]])]
    assert places(methods.VCast()(video, 0.3)) == expected


def test_vcast_shares():
    assert share_frames(np.array([0.5, 0.3, 0.2]), 13, 6).tolist() == [6, 4, 3]
    assert share_frames(np.array([0.9, 0.05, 0.05]), 12, 6).sum() == 12 and share_frames(np.ones(1), 3, 6) == [3]
    assert share_frames(np.array([0.4, 0.3, 0.3]), 2, 6).sum() == 2, "no token for every frame"


@pytest.mark.parametrize("seed", [*range(6), 14, 17])  # the last two: frames that keep no tree, but their first cell
def test_flashvid_is_what_plain_loops_give(seed):
    """The choice of salient and diverse tokens, the counts, and that the others are merged and not dropped."""
    video, method = scenes(8, (3, 4), 12, seed), FlashVID(alpha=0.5, tau=0.6, segments=1 + seed % 3, cut=-1.0)
    x, budget = video.tokens.double(), [0.75, 0.5, 0.25][seed % 3]
    ends = FastVID(method.segments, method.cut).ends(x.float().mean(1)).tolist()
    segment = np.concatenate([[0], np.cumsum(ends)])
    counts = np.diff(np.arange(9) * round(budget * 96) // 8)
    chosen = []
    for t in range(8):
        centre = x[segment == segment[t]].mean((0, 1))
        weight = [float(video.saliency[t, n]) * float(x[t, n] @ centre) for n in range(12)]
        far = [[(1 - cosine(x[t, m], x[t, n])) * weight[n] for n in range(12)] for m in range(12)]
        mine = []
        for _ in range(math.ceil(counts[t] / 2)):
            to = {n: min(far[m][n] for m in (mine or set(range(12)) - {n})) for n in range(12) if n not in mine}
            mine.append(max(to, key=to.get))
        chosen += [(t, n) for n in mine]
    kept = method(video, budget)
    found = dict(zip(places(kept), kept.size.tolist(), strict=True))
    assert set(chosen) <= set(found) and all(found[at] == 1 for at in chosen)
    sizes = sum(size for at, size in found.items() if at not in chosen)
    if budget > 0.25:  # below it some frames may keep no tree
        assert sizes == 96 - len(chosen), "every token that is not chosen went into one"
    assert sizes <= 96 - len(chosen) and max(found.values()) > 1


def test_flashvid_averages_a_still_tree():
    """Frames that repeat: every cell is one tree over time, whose token is its mean."""
    base = torch.randn(1, 12, 16, generator=torch.Generator().manual_seed(0))
    noise = 0.01 * torch.randn(6, 12, 16, generator=torch.Generator().manual_seed(1))
    video = replace(scenes(6, (3, 4), 16), tokens=base + noise)
    kept = FlashVID(alpha=0.0, segments=1)(video, 12 / 72)
    assert places(kept) == [(0, n) for n in range(12)] and (kept.size == 6).all()
    torch.testing.assert_close(kept.tokens, video.tokens.mean(0))


def test_flashvids_two_ways_to_count():
    ten = flashvid(0.10)
    (late,) = ten.inner
    assert type(late) is FastV and (ten.budget, late.layer, late.ratio) == pytest.approx((0.125, 20, 0.7))
    for layers in (6, 28, 80):
        made = flashvid(0.2, layers)
        (late,) = made.inner
        mean = made.budget * (late.layer + (1 - late.ratio) * (layers - late.layer)) / layers
        assert mean == pytest.approx(0.2)
    assert flashvid(0.1, expansion=1.0).inner == ()
    for mean, expansion in ((0.9, 1.25), (0.1, 1.5), (0.1, 0.9)):
        with pytest.raises(BadUsage, match="expansion"):
            flashvid(mean, expansion=expansion)


@pytest.mark.parametrize("seed", range(4))
def test_the_unified_pool_is_a_walk_over_all_tokens(seed):
    video, method = scenes(6, (4, 5), 8, seed), methods.UnifiedPool(tau=0.5)
    rows, saliency = video.tokens.flatten(0, 1), video.saliency.flatten()
    order = sorted(range(120), key=lambda i: (-float(saliency[i]), i))
    pool = [order[i] for i in walk([[cosine(rows[a], rows[b]) > 0.5 for b in order] for a in order])]
    for wanted in (10, 60):
        expected = set(pool[: wanted - round(0.3 * wanted)])
        kept = method(video, wanted / 120)
        flat = (kept.frame * 20 + kept.cell).tolist()
        alone = {i for i in flat if torch.equal(kept.tokens[flat.index(i)], rows[i])}
        assert expected <= alone and flat == sorted(flat) and len(flat) == wanted
        assert int(kept.size.sum()) == 120, "every token is there, or went into a cluster"
