from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from golden.loader import Golden, cases
from holitom_repro.bench import peak_bytes
from holitom.errors import BadUsage
from holitom.methods.tome import ToMe, group_means, match_rounds, plan_rounds
from holitom.types import Outer, VideoFeatures

BUDGETS = st.one_of(st.sampled_from([0.01, 0.1, 0.25, 0.5, 1.0]), st.floats(0.01, 1.0))


def video_of(frames, grid=(3, 4), dim=6, seed=0, dtype=torch.float32):
    draw = torch.Generator().manual_seed(seed)
    cells = grid[0] * grid[1]
    tokens = torch.randn(frames, cells, dim, generator=draw).to(dtype)
    return VideoFeatures(tokens, grid, keys=torch.randn(frames, cells, 5, generator=draw))


@pytest.mark.parametrize(("name", "run"), cases("tome_merge"))
def test_rounds_equal_the_released_code(name, run):
    golden = Golden(name)
    setting = golden.runs[run]
    x, metric, size = (golden[run, part] for part in ("x", "metric", "size"))
    guarded = setting["class_token"]
    plan, left = [], len(x)
    for j, wanted in enumerate(setting["r"]):
        plan.append(np.array([min(wanted, (left - guarded) // 2)]))  # a round merges half at most
        left -= int(plan[-1][0])
        merged = match_rounds(
            metric[None], size[None], plan, order="index" if guarded else "score", protect_first=guarded
        )
        assert merged.alive.all()
        heads = merged.heads[0]
        for part, values in (("x", x), ("metric", metric)):
            means, weight = group_means(values, merged.owner[0], heads, size)
            torch.testing.assert_close(means, golden[run, f"round{j}/{part}"], atol=1e-5, rtol=0)
        torch.testing.assert_close(weight, golden[run, f"round{j}/size"], atol=1e-5, rtol=0)
    source = (heads[:, None] == merged.owner[0]).to(torch.uint8)
    assert torch.equal(source, golden[run, "source"])


def oracle(metric, rows, rounds, by_score):
    """One frame: -> (cells in output order, {cell: source cells})."""
    members = {n: [n] for n in range(len(metric))}
    slots = list(members)
    for away in rounds:
        unit = {n: torch.nn.functional.normalize(metric[members[n]].mean(0), dim=0) for n in slots}
        even, odd = slots[::2], slots[1::2]
        best = {a: max(odd, key=lambda b: (float(unit[a] @ unit[b]), -odd.index(b))) for a in even}
        ranked = sorted(even, key=lambda a: -float(unit[a] @ unit[best[a]]))
        for a in ranked[:away]:
            members[best[a]] += members.pop(a)
        left = ranked[away:] if by_score else [a for a in even if a in members]
        slots = left + odd
    return slots, members


@pytest.mark.parametrize("released", [False, True])
@pytest.mark.parametrize(("kept", "rounds"), [(11, 1), (6, 1), (4, 1), (1, 1), (5, 4), (10, 3)])
def test_it_is_what_plain_loops_give(released, kept, rounds):
    video = video_of(3, seed=kept)
    out = ToMe(rounds=rounds, released=released)(video, kept / 12)
    schedule = [int(away[0]) for away in plan_rounds(12, np.array([kept] * 3), rounds)]
    assert sum(schedule) == 12 - kept
    for t in range(3):
        slots, members = oracle(video.keys[t], video.tokens[t], schedule, released)
        mine = out.frame == t
        expected = slots if released else sorted(slots)
        assert out.cell[mine].tolist() == expected
        means = torch.stack([video.tokens[t, members[n]].mean(0) for n in expected])
        torch.testing.assert_close(out.tokens[mine], means, atol=1e-5, rtol=0)
        assert out.size[mine].tolist() == [len(members[n]) for n in expected]


@given(st.integers(1, 196), st.floats(0, 1), st.integers(1, 12), st.integers(1, 9))
def test_no_round_merges_more_than_half(cells, share, rounds, frames):
    low = int(share * (cells - 1))
    counts = np.full(frames, low)
    counts[::2] += 1
    left = np.full(frames, cells)
    plan = plan_rounds(cells, counts, rounds)
    for i, away in enumerate(plan):
        assert (away <= left // 2).all()
        assert i + 1 == len(plan) or (away == away[0]).all()
        left -= away
    assert (left == np.maximum(counts, 1)).all()
    if cells - low >= 2 * rounds and low > cells * 0.6:
        assert rounds <= len(plan) <= rounds + 1


@pytest.mark.parametrize("metric", ["keys", "tokens"])
@settings(deadline=None, max_examples=40)
@given(
    st.integers(1, 64), st.integers(1, 14), st.integers(1, 14), st.integers(4, 64), BUDGETS, st.sampled_from([1, 3, 8])
)
def test_counts_are_exact_and_mass_is_conserved(metric, frames, height, width, dim, budget, rounds):
    video = video_of(frames, (height, width), dim, seed=frames)
    kept = ToMe(metric=metric, rounds=rounds)(video, budget)
    assert len(kept) == max(1, round(budget * (frames * video.cells)))
    assert ((kept.frame * video.cells + kept.cell).diff() > 0).all()
    if len(kept) >= frames:
        assert kept.size.sum() == frames * video.cells
        total = (kept.tokens * kept.size[:, None]).sum(0)
        torch.testing.assert_close(total, video.tokens.sum((0, 1)), atol=2e-3, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("metric", ["keys", "tokens"])
def test_precision_is_kept_and_budget_one_is_the_identity(dtype, metric):
    video = video_of(5, dtype=dtype)
    stage = ToMe(metric=metric)
    kept = stage(video, 0.3)
    assert kept.tokens.dtype == dtype
    assert torch.equal(kept.tokens, stage(video, 0.3).tokens)
    exact = stage(replace(video, tokens=video.tokens.float()), 0.3)
    torch.testing.assert_close(kept.tokens.float(), exact.tokens, atol=2e-2, rtol=2e-2)
    assert torch.equal(stage(video, 1.0).tokens, video.tokens.flatten(0, 1))


@pytest.mark.parametrize("metric", ["keys", "tokens"])
@pytest.mark.parametrize("fill", [0.0, 1.0])
@pytest.mark.parametrize("frames", [1, 2, 33])
def test_equal_tokens_merge_to_themselves(metric, fill, frames):
    video = VideoFeatures(torch.full((frames, 12, 4), fill), (3, 4), keys=torch.zeros(frames, 12, 3))
    kept = ToMe(metric=metric)(video, 0.25)
    assert len(kept) == round(0.25 * (frames * 12))
    torch.testing.assert_close(kept.tokens, torch.full_like(kept.tokens, fill))


@pytest.mark.parametrize("metric", ["keys", "tokens"])
@pytest.mark.parametrize("budget", [0.1, 0.25, 0.9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_extra_memory_is_at_most_three_inputs(dtype, budget, metric):
    video = video_of(32, (8, 8), 512, dtype=dtype)
    assert peak_bytes(lambda: ToMe(metric=metric)(video, budget)) <= 3 * video.tokens.nbytes


def test_what_it_cannot_do_is_refused():
    video = video_of(4)
    assert isinstance(ToMe(), Outer)
    assert [ToMe().fidelity, ToMe(released=True).fidelity] == ["port", "golden"]
    assert [ToMe().requires, ToMe(metric="tokens").requires] == [{"keys"}, frozenset()]
    with pytest.raises(BadUsage, match=r"ToMe reads VideoFeatures\.keys"):
        ToMe()(replace(video, keys=None), 0.5)
    with pytest.raises(BadUsage, match="rounds=0"):
        ToMe(rounds=0)
    for name in ("tokens", "keys"):
        broken = getattr(video, name).clone()
        broken[1, 2, 3] = torch.nan
        with pytest.raises(BadUsage, match=f"{name} hold a NaN or an infinity, first in frame 1"):
            ToMe()(replace(video, **{name: broken}), 0.5)
