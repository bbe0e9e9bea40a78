import numpy as np
import pytest
import shapes
import torch
from jaxtyping import TypeCheckError

from holitom.errors import BadUsage
from holitom.flops import paper_flops
from holitom.methods.hieravid import HieraVid, HieraVidSelect, hieravid, hieravid_stages, layer_shares
from holitom.methods.inputs import budget_tokens
from holitom.types import Inner, Outer

torch.set_num_threads(1)


def plain_merge(video, wanted):
    """Cell by cell: the most similar tokens are averaged into the token before their run."""
    frames, cells = video.frames, video.cells
    x = video.tokens.float()
    sim = torch.cosine_similarity(x[1:], x[:-1], dim=-1)
    ranked = sorted(
        ((t, n) for t in range(1, frames) for n in range(cells)), key=lambda p: (-float(sim[p[0] - 1, p[1]]), p)
    )
    merged = set(ranked[: frames * cells - wanted])
    kept = []
    for t in range(frames):
        for n in range(cells):
            if (t, n) not in merged:
                run = [t]
                while (run[-1] + 1, n) in merged:
                    run.append(run[-1] + 1)
                kept.append((t, n, len(run), x[run, n].mean(0)))
    return kept


@pytest.mark.parametrize("budget", [0.3, 0.5, 0.8])
def test_merging_equals_the_plain_loop(budget):
    video = shapes.scenes(13, (3, 4), 16, seed=1)
    kept = HieraVid()(video, budget)
    expected = plain_merge(video, round(budget * 13 * 12))
    assert list(zip(kept.frame.tolist(), kept.cell.tolist(), kept.size.tolist(), strict=True)) == [
        e[:3] for e in expected
    ]
    torch.testing.assert_close(kept.tokens, torch.stack([e[3] for e in expected]), atol=1e-5, rtol=0)


@pytest.mark.parametrize("shape", shapes.SHAPES, ids=str)
@pytest.mark.parametrize("scope", ["video", "segment"])
def test_counts_and_shapes(shape, scope):
    video = shapes.scenes(*shape)
    method = HieraVid(scope=scope)
    for budget in shapes.BUDGETS:
        kept = method(video, budget)
        shapes.check(kept, video)
        assert shapes.same(kept, method(video, budget))
        wanted = budget_tokens(video, budget)
        assert len(kept) == wanted
        assert ((kept.frame * video.cells + kept.cell).diff() > 0).all()
        assert (kept.group.diff() >= 0).all() and kept.gain.isfinite().all()
        if wanted >= video.cells:
            assert kept.size.sum() == video.frames * video.cells
        if budget == 1.0:
            assert torch.equal(kept.tokens, video.tokens.flatten(0, 1))


def test_segments_begin_where_most_cells_change_and_gains_follow_the_formula():
    draw = torch.Generator().manual_seed(0)
    scenes = torch.randn(3, 1, 16, 8, generator=draw)
    tokens = scenes.repeat_interleave(4, 0).flatten(0, 1) + 0.05 * torch.randn(12, 16, 8, generator=draw)
    kept = HieraVid()(shapes.VideoFeatures(tokens, (4, 4)), 1.0)
    assert kept.group.view(12, 16)[:, 0].tolist() == [0] * 4 + [1] * 4 + [2] * 4
    f = tokens.view(3, 64, 8).mean(1)
    cos = torch.nn.functional.cosine_similarity
    raw = [
        0.5 * (1 - cos(f[0], f[1:].mean(0), dim=0)),
        0.5 * cos(f[1], f[0], dim=0) + 0.5 * (1 - cos(f[1], f[2], dim=0)),
        0.5 * cos(f[2], f[:2].mean(0), dim=0) + 0.5,
    ]
    raw = np.array([float(r) for r in raw])
    expected = (raw - raw.mean()) / raw.std()
    np.testing.assert_allclose(kept.gain.view(12, 16)[::4, 0].numpy(), expected, atol=1e-4)
    inside = HieraVid(scope="segment")(shapes.VideoFeatures(tokens, (4, 4)), 0.25)
    assert sorted(set(inside.frame.tolist())) == [0, 4, 8] and inside.size.tolist() == [4.0] * 48


@pytest.mark.parametrize("value", [0.0, 3.0])
def test_equal_tokens_merge_to_themselves(value):
    video = shapes.equal(8, (4, 4), 8, value)
    kept = HieraVid()(video, 0.25)
    assert len(kept) == 32 and torch.equal(kept.tokens, torch.full_like(kept.tokens, value))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype):
    kept = HieraVid()(shapes.scenes(9, (4, 4), 16, dtype=dtype), 0.5)
    assert kept.tokens.dtype == dtype and len(kept) == 72


def inputs(tokens=40, dim=16, seed=0, groups=4):
    draw = torch.Generator().manual_seed(seed)
    hidden, score = torch.randn(tokens + 6, dim, generator=draw), torch.rand(tokens + 6, generator=draw)
    group = torch.randint(0, groups, (tokens,), generator=draw).sort().values
    gain = torch.randn(groups, generator=draw)[group]
    return hidden, score, torch.arange(2, tokens + 2), group, gain


def plain_choice(states, quality, count):
    """Largest determinant of the chosen minor, computed in full at every step."""
    unit = torch.nn.functional.normalize(states.double(), dim=-1)
    kernel = quality[:, None] * (unit @ unit.T) * quality
    chosen = []
    for _ in range(count):
        rest = [i for i in range(len(states)) if i not in chosen]
        chosen.append(max(rest, key=lambda i: float(kernel[[*chosen, i]][:, [*chosen, i]].det())))
    return sorted(chosen)


@pytest.mark.parametrize("relevance", [-1, 1])
@pytest.mark.parametrize("released", [False, True])
@pytest.mark.parametrize("ratio", [0.3, 0.57, 0.8])
def test_selection_equals_brute_force_per_segment(relevance, released, ratio):
    hidden, score, visual, group, gain = inputs()
    stage = HieraVidSelect(7, ratio, relevance=relevance, released=released)
    ids, rows = stage(hidden, score, visual, 40, group=group, gain=gain)
    assert torch.equal(rows, hidden[ids]) and (ids.diff() > 0).all()
    assert ids[:2].tolist() == [0, 1] and ids[-4:].tolist() == [42, 43, 44, 45]
    kept = ids[2:-4] - 2
    attention = relevance * score[visual].double()
    quality = (attention - attention.min()) / (attention.max() - attention.min()) + 1e-6
    for g in group.unique():
        members = (group == g).nonzero().flatten()
        mine = kept[group[kept] == g]
        assert mine.tolist() == [
            int(members[i]) for i in plain_choice(hidden[visual][members], quality[members], len(mine))
        ]
        if released:
            share = min(0.95, max(0.05, 1 - ratio + 0.1 * float(gain[members[0]])))
            assert len(mine) == int(len(members) * share)
    if not released:
        assert len(kept) == round((1 - ratio) * 40)


def test_segments_of_very_unequal_size_in_several_chunks():
    hidden, score, visual, _, _ = inputs(tokens=60, dim=4)
    group = torch.tensor([0] * 1 + [1] * 45 + [2] * 3 + [3] * 11)
    ids, _ = HieraVidSelect(7, 0.5)(hidden, score, visual, 60, group=group)
    assert len(ids) == 30 + 6
    alone, _ = HieraVidSelect(7, 0.5)(hidden, score, visual[1:46], 45)
    mine = [i for i in ids.tolist() if i in set(visual[1:46].tolist())]
    assert len(mine) in (22, 23) and len(set(alone.tolist()) & set(visual[1:46].tolist())) == 22


def test_clean_identity_and_the_codes_five_percent():
    hidden, score, visual, group, gain = inputs()
    ids, rows = HieraVidSelect(7, 0.0)(hidden, score, visual, 40, group=group, gain=gain)
    assert len(ids) == 46 and torch.equal(rows, hidden)
    ids, _ = HieraVidSelect(7, 0.0, released=True)(hidden, score, visual, 40, group=group, gain=gain)
    assert len(ids) < 46


@pytest.mark.parametrize("tokens", [1, 2, 5])
@pytest.mark.parametrize("released", [False, True])
def test_few_tokens_equal_states_and_equal_scores(tokens, released):
    hidden = torch.ones(tokens + 1, 4)
    for score in (torch.zeros(tokens + 1), torch.rand(tokens + 1)):
        stage = HieraVidSelect(7, 0.9, released=released)
        ids, _ = stage(hidden, score, torch.arange(tokens), tokens, group=torch.arange(tokens))
        assert len(ids) == 2 and ids[-1] == tokens


@pytest.mark.parametrize(
    ("schedule", "average", "cost"), [("30%", 30.0, 24.47), ("20%", 21.0, 17.2), ("10%", 11.0, 8.5)]
)
def test_schedules_cost_what_the_paper_prints(schedule, average, cost):
    shares = layer_shares(schedule)
    assert round(100 * float(np.mean(shares)), 1) == average
    full = paper_flops([10816] * 28, 3584, 18944)
    reduced = paper_flops([10816 * share for share in shares], 3584, 18944)
    assert 100 * reduced / full == pytest.approx(cost, abs=0.005 if schedule == "30%" else 0.06)


def test_the_thirty_percent_schedule_in_tokens():
    assert [round(share, 5) for share in layer_shares()[::7]] == [0.5, 0.35, 0.245, 0.10535]
    setting = hieravid("30%")
    assert setting.budget == 0.5 and [stage.layer for stage in setting.inner] == [7, 14, 21]
    video = shapes.scenes(16, (5, 5), 24, seed=7)
    kept = setting.outer(video, setting.budget)
    hidden, group, gain = torch.cat([kept.tokens, torch.randn(3, 24)]), kept.group, kept.gain
    counts = [len(kept)]
    for stage in setting.inner:
        visual = torch.arange(len(group))
        ids, hidden = stage(hidden, torch.rand(len(hidden)), visual, 200, group=group, gain=gain)
        group, gain = group[ids[:-3]], gain[ids[:-3]]
        counts.append(len(group))
    assert counts == [200, 140, 98, 42]


def test_protocols_scaling_and_bad_settings():
    assert isinstance(HieraVid(), Outer) and all(isinstance(stage, Inner) for stage in hieravid_stages())
    assert [stage.layer for stage in hieravid_stages("10%", layers=6)] == [2, 3, 5]
    assert all(stage.relevance == 1 for stage in hieravid_stages(relevance=1))
    with pytest.raises(BadUsage, match="Choose from 30%, 20%, 10%"):
        hieravid("40%")
    for bad in ({"ratio": 1.0}, {"relevance": 0}, {"clamp": (0.0, 1.0)}):
        with pytest.raises((BadUsage, TypeCheckError)):  # the type checker of the tests may come first
            HieraVidSelect(**{"layer": 7, "ratio": 0.5, **bad})
    with pytest.raises((BadUsage, TypeCheckError)):
        HieraVid(scope="frame")
    video = shapes.scenes(6, (3, 3), 8)
    video.tokens[4, 2, 1] = float("nan")
    with pytest.raises(BadUsage, match="tokens hold a NaN or an infinity, first in frame 4"):
        HieraVid()(video, 0.5)
    hidden, score, visual, _, _ = inputs()
    with pytest.raises(BadUsage, match="layer 7 hold a NaN"):
        HieraVidSelect(7, 0.5)(hidden, score * float("nan"), visual, 40)
