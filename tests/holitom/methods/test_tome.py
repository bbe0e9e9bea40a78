import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import normalize
from videos import DTYPES, equals, scenes

from holitom.methods.base import frame_counts
from holitom.methods.tome import ToMe, bipartite_matching


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


@given(st.integers(1, 5), st.integers(1, 30), st.floats(0.01, 0.999), DTYPES)
def test_it_is_what_plain_loops_give(frames, cells, budget, dtype):
    video, expected, step = scenes(frames, (1, cells), 6, frames, dtype), {}, max(1e-6, torch.finfo(dtype).eps)
    for t, count in enumerate(frame_counts(video, budget).tolist()):
        for n, members in loops(video.keys[t].float(), count).items():
            expected[t, n] = video.tokens[t, members].float().mean(0), len(members)
    equals(ToMe()(video, budget), expected, atol=step, rtol=step)


def test_a_round_that_merges_nothing_leaves_the_order_alone():
    metric = torch.randn(2, 7, 4)
    into, order = bipartite_matching(metric, torch.tensor([0, 1]))
    assert into[0].tolist() == order[0].tolist() == list(range(7))
    assert order[1].tolist()[3:6] == [1, 3, 5] and into[1, order[1, 6]] in (1, 3, 5)
    assert bipartite_matching(metric[:, :1], torch.tensor([0, 0]))[1].tolist() == [[0], [0]]
