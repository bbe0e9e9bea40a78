import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import normalize

from holitom.methods.base import frame_counts
from holitom.methods.tome import ToMe, bipartite_matching
from holitom.types import VideoFeatures

GRIDS = st.tuples(st.integers(1, 6), st.integers(1, 6))
DTYPES = st.sampled_from([torch.float32, torch.bfloat16, torch.float16])


def loops(keys, count):
    """One frame, one token at a time -> {cell: its source cells}, in the order of the tokens."""
    members = {n: [n] for n in range(len(keys))}
    while len(members) > max(1, count):
        unit = {n: normalize(keys[m].mean(0), dim=0) for n, m in members.items()}
        a, b = list(members)[::2], list(members)[1::2]
        alike = {i: [float(unit[i] @ unit[j]) for j in b] for i in a}
        ranked = sorted(a, key=lambda i: -max(alike[i]))
        away = min(len(b), len(members) - max(1, count))
        for i in ranked[:away]:
            members[b[alike[i].index(max(alike[i]))]] += members[i]
        members = {n: members[n] for n in ranked[away:] + b}
    return members if count else {}


@given(st.integers(1, 5), GRIDS, st.one_of(st.floats(0.01, 0.999), st.sampled_from([0.5, 0.97])), DTYPES)
def test_it_is_what_plain_loops_give_at_the_exact_budget(frames, grid, budget, dtype):
    draw, cells = torch.Generator().manual_seed(frames), grid[0] * grid[1]
    tokens, keys = (torch.randn(frames, cells, dim, generator=draw) for dim in (6, 5))
    video = VideoFeatures(tokens.to(dtype), grid, keys=keys)
    kept, step = ToMe()(video, budget), torch.finfo(dtype).eps
    assert len(kept) == max(1, round(budget * (frames * cells))) and kept.tokens.dtype == dtype
    for t, count in enumerate(frame_counts(video, budget).tolist()):
        mine, expected = kept.frame == t, loops(keys[t], count)
        assert kept.cell[mine].tolist() == list(expected)
        assert kept.size[mine].tolist() == [len(members) for members in expected.values()]
        for token, members in zip(kept.tokens[mine], expected.values(), strict=True):
            torch.testing.assert_close(token.float(), video.tokens[t, members].float().mean(0), atol=step, rtol=step)


def test_a_round_that_merges_nothing_leaves_the_order_alone():
    metric = torch.randn(2, 7, 4)
    into, order = bipartite_matching(metric, torch.tensor([0, 1]))
    assert into[0].tolist() == order[0].tolist() == list(range(7))
    assert order[1].tolist()[3:6] == [1, 3, 5] and into[1, order[1, 6]] in (1, 3, 5)
    assert bipartite_matching(metric[:, :1], torch.tensor([0, 0]))[1].tolist() == [[0], [0]]
