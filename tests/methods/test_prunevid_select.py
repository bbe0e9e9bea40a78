import pytest
import torch

from holitom.errors import BadUsage
from holitom.methods.prunevid_select import PruneVidSelect
from holitom.types import Inner

torch.set_num_threads(1)


def inputs(tokens=30, first=2, after=4, seed=0):
    draw = torch.Generator().manual_seed(seed)
    seq = first + tokens + after
    hidden = torch.randn(seq, 8, generator=draw)
    score = torch.rand(3, after, seq, generator=draw)
    group = torch.randint(0, 5, (tokens,), generator=draw)
    return hidden, score, torch.arange(first, first + tokens), group


@pytest.mark.parametrize("released", [False, True])
@pytest.mark.parametrize("alpha", [0.05, 0.4, 0.77])
def test_every_group_keeps_what_any_word_attends_to(released, alpha):
    hidden, score, visual, group = inputs()
    ids, rows = PruneVidSelect(alpha=alpha, released=released)(hidden, score, visual, 30, group=group)
    assert torch.equal(rows, hidden[ids]) and (ids.diff() > 0).all()
    assert ids[:2].tolist() == [0, 1] and ids[-4:].tolist() == [32, 33, 34, 35]
    kept = ids[2:-4] - 2
    best = score.flatten(0, 1).amax(0)[visual]
    for g in group.unique():
        members = (group == g).nonzero().flatten().tolist()
        mine = [i for i in kept.tolist() if group[i] == g]
        assert mine == sorted(sorted(members, key=lambda i: (-float(best[i]), i))[: len(mine)])
        if released and alpha > 0.05:
            assert len(mine) == int(alpha * len(members))
        else:
            assert abs(len(mine) - alpha * len(members)) <= 1
    if not released:
        assert len(kept) == max(1, round(alpha * 30))
    assert len(kept) >= 1


def test_without_groups_all_tokens_compete():
    hidden, score, visual, _ = inputs()
    ids, _ = PruneVidSelect(alpha=0.4)(hidden, score, visual, 30)
    best = score.flatten(0, 1).amax(0)[visual]
    expected = sorted(sorted(range(30), key=lambda i: (-float(best[i]), i))[:12])
    assert (ids[2:-4] - 2).tolist() == expected


def test_alpha_one_is_the_identity():
    hidden, score, visual, group = inputs()
    ids, rows = PruneVidSelect(alpha=1.0)(hidden, score, visual, 30, group=group)
    assert ids.tolist() == list(range(36)) and torch.equal(rows, hidden)


def test_only_alpha_one_asks_for_nothing():
    assert PruneVidSelect(alpha=1.0).identity and not PruneVidSelect(alpha=0.99).identity


def test_one_token_always_stays():
    hidden, score, visual, group = inputs(tokens=3)
    for released in (False, True):
        ids, _ = PruneVidSelect(alpha=0.1, released=released)(hidden, score, visual, 3, group=group)
        assert len(ids) == 7


def test_protocol_and_bad_settings():
    stage = PruneVidSelect()
    assert isinstance(stage, Inner) and stage.prune_past and stage.query == "text" and stage.layer == 11
    for bad in ({"layer": 0}, {"alpha": 0.0}, {"alpha": 1.5}):
        with pytest.raises(BadUsage):
            PruneVidSelect(**bad)
    hidden, score, visual, group = inputs()
    with pytest.raises(BadUsage, match="NaN"):
        stage(hidden, score * float("nan"), visual, 30, group=group)
