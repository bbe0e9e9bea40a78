"""HoliTom's outer stage beyond the golden data: the plain loop, counts, budgets, precisions, odd input, memory."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import oracle
from holitom_repro.bench import peak_bytes, synthetic_video
from holitom.errors import BadUsage
from holitom.methods import HoliTom
from holitom.types import Outer, VideoFeatures

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def assert_same(kept, expected, tolerance=1e-5):
    assert kept.frame.tolist() == expected["frame"]
    assert kept.cell.tolist() == expected["cell"]
    assert kept.size.tolist() == expected["size"]
    torch.testing.assert_close(kept.tokens.float(), expected["tokens"].float(), atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("budget", [0.1, 0.25, 0.6])
def test_equals_the_plain_loop(seed, budget):
    draw = torch.Generator().manual_seed(seed)
    frames, height, width = (int(torch.randint(1, high, (), generator=draw)) for high in (25, 9, 9))
    video = synthetic_video(frames, (height, width), 24, seed=seed)
    setting = {"tau": [0.65, 0.8][seed % 2], "beta": [0.6, 0.3, None][seed % 3], "k": [7, 3, 2, 1][seed % 4]}
    expected = oracle.outer(video.tokens, video.saliency, budget, **setting)
    if expected["frame"]:  # the release may keep nothing of a tiny video; ours then keeps one token
        assert_same(HoliTom(**setting)(video, budget), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_equals_the_plain_loop(dtype):
    video = synthetic_video(16, (6, 5), 32, seed=4, dtype=dtype)
    kept = HoliTom()(video, 0.2)
    assert kept.tokens.dtype == dtype
    assert_same(kept, oracle.outer(video.tokens, video.saliency, 0.2), tolerance=2 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("max_window", [1, 2, 5])
def test_windows_are_capped(max_window):
    video = synthetic_video(14, (4, 6), 16, seed=1)
    kept = HoliTom(max_window=max_window)(video, 0.3)
    assert_same(kept, oracle.outer(video.tokens, video.saliency, 0.3, max_window=max_window))


videos = st.builds(
    lambda frames, height, width, dim, kind, dtype, seed: any_video(frames, (height, width), dim, kind, dtype, seed),
    st.integers(1, 64),
    st.integers(1, 14),
    st.integers(1, 14),
    st.sampled_from([4, 16, 64]),
    st.sampled_from(["scenes", "equal", "zeros", "noise", "still", "half zero"]),
    st.sampled_from(DTYPES),
    st.integers(0, 99),
)
budgets = st.sampled_from([0.001, 0.03, 0.1, 0.15, 0.25, 0.5, 0.9, 0.999, 1.0])


def any_video(frames, grid, dim, kind, dtype, seed):
    cells = grid[0] * grid[1]
    draw = torch.Generator().manual_seed(seed)
    if kind == "scenes":
        return synthetic_video(frames, grid, dim, seed=seed, dtype=dtype)
    tokens = {
        "equal": lambda: torch.full((frames, cells, dim), 0.7),
        "zeros": lambda: torch.zeros(frames, cells, dim),
        "noise": lambda: torch.randn(frames, cells, dim, generator=draw),
        "still": lambda: torch.randn(1, cells, dim, generator=draw).expand(frames, -1, -1).contiguous(),
        "half zero": lambda: torch.randn(1, cells, dim, generator=draw) * (torch.arange(cells) % 2)[None, :, None],
    }[kind]()
    tokens = tokens.expand(frames, -1, -1).contiguous().to(dtype)
    # Few distinct values, so that ties between saliencies are the rule.
    return VideoFeatures(tokens, grid, torch.randint(0, 4, (frames, cells), generator=draw).float())


def assert_well_formed(video, kept):
    frames, cells, dim = video.tokens.shape
    count = len(kept)
    assert kept.tokens.shape == (count, dim)
    assert kept.tokens.dtype == video.tokens.dtype
    assert kept.tokens.isfinite().all()
    assert 1 <= count <= frames * cells
    assert ((kept.frame >= 0) & (kept.frame < frames)).all()
    assert ((kept.cell >= 0) & (kept.cell < cells)).all()
    places = kept.frame * cells + kept.cell
    assert len(places.unique()) == count, "two tokens in one place"
    assert (kept.size >= 1).all()
    assert kept.size.sum() <= frames * cells


@settings(max_examples=80)
@given(videos, budgets)
def test_any_video_any_budget(video, budget):
    frames, cells, _ = video.tokens.shape
    method = HoliTom()
    kept = method(video, budget)
    assert_well_formed(video, kept)
    again = method(video, budget)
    assert torch.equal(kept.tokens, again.tokens)
    assert torch.equal(kept.cell, again.cell)
    if budget < 1:
        removed = method.segments(video).removed
        # ceil per frame and round per segment: above the budget by less than one token per frame and half per segment.
        assert len(kept) <= max(1, min(budget * frames * cells + 1.5 * frames, frames * cells - removed))


@settings(max_examples=80)
@given(videos, budgets)
def test_exact_counts(video, budget):
    frames, cells, _ = video.tokens.shape
    method = HoliTom(counts="exact")
    kept = method(video, budget)
    assert_well_formed(video, kept)
    left = frames * cells - (method.segments(video).removed if budget < 1 else 0)
    assert len(kept) == min(left, max(1, round(budget * (frames * cells))))


@settings(max_examples=30)
@given(videos)
def test_budget_one_is_the_identity(video):
    kept = HoliTom()(video, 1.0)
    assert torch.equal(kept.tokens, video.tokens.flatten(0, 1))
    assert torch.equal(kept.frame * video.cells + kept.cell, torch.arange(video.frames * video.cells))
    assert (kept.size == 1).all()


@settings(max_examples=60)
@given(
    videos,
    st.sampled_from([0.05, 0.3, 0.8]),
    st.fixed_dictionaries(
        {
            "tau": st.sampled_from([0.5, 0.8]),
            "k": st.sampled_from([1, 7]),
            "beta": st.sampled_from([None, 0.0, 1.0]),
            "max_window": st.sampled_from([1, 3, 1024]),
            "segmentation": st.sampled_from(["dp", "fixed", "none"]),
            "static_by": st.sampled_from(["cluster", "saliency"]),
            "dynamic_by": st.sampled_from(["saliency", "cluster"]),
        }
    ),
)
def test_every_ablation_on_any_video(video, budget, fields):
    method = HoliTom(counts="exact", **fields)
    assert isinstance(method, Outer)
    kept = method(video, budget)
    assert_well_formed(video, kept)
    left = video.frames * video.cells - method.segments(video).removed
    assert len(kept) == min(left, max(1, round(budget * (video.frames * video.cells))))


def test_ablations_by_hand():
    """Two cells stand still over three frames, one changes; saliency says which static cell survives."""
    still = torch.tensor([[1.0, 0, 0], [0, 1, 0]])
    moving = torch.tensor([[0, 0, 1.0], [0, 0, -1], [0, 0, 1]])
    tokens = torch.stack([torch.cat([still, moving[t : t + 1]]) for t in range(3)])
    saliency = torch.tensor([[0.1, 0.3, 0.2]] * 3)
    video = VideoFeatures(tokens, (1, 3), saliency)
    kept = HoliTom(static_by="saliency", counts="exact")(video, 3 / 9)
    # 9 tokens, 4 removed by merging, 5 left; of 3 tokens, one goes to the two static cells and two to the frames.
    assert kept.cell.tolist() == [1, 2, 2]
    assert kept.frame.tolist() == [0, 0, 1]
    assert kept.size.tolist() == [3, 1, 1]
    assert HoliTom(segmentation="none").segments(video).removed == 0
    assert HoliTom(segmentation="fixed", max_window=2).segments(video).pairs == [(0, 1), (2, 2)]
    assert HoliTom().segments(video).pairs == [(0, 2)]


def test_sizes_add_up_where_nothing_is_dropped():
    """A video that stands still loses nothing: cluster members and frames account for every source token."""
    video = any_video(10, (5, 5), 16, "still", torch.float32, 0)
    kept = HoliTom()(video, 0.05)
    assert kept.size.sum() == 10 * 25
    assert len(kept) == round(25 * 0.5)


def test_cells_may_be_numbered_in_any_order():
    """Renumbering the cells renumbers the result: no cell is treated by its place, apart from ties."""
    video = synthetic_video(12, (5, 6), 32, seed=8)
    order = torch.randperm(30, generator=torch.Generator().manual_seed(0))
    mixed = replace(video, tokens=video.tokens[:, order], saliency=video.saliency[:, order])
    method = HoliTom()
    plain, moved = method(video, 0.2), method(mixed, 0.2)
    places = {(int(f), int(c)): row for f, c, row in zip(plain.frame, plain.cell, plain.tokens, strict=True)}
    assert len(plain) == len(moved)
    for frame, cell, row in zip(moved.frame, order[moved.cell], moved.tokens, strict=True):
        torch.testing.assert_close(places[int(frame), int(cell)], row)


def test_the_input_is_left_alone_and_other_threads_do_not_matter():
    video = synthetic_video(9, (4, 4), 16, seed=2)
    tokens, saliency = video.tokens.clone(), video.saliency.clone()
    torch.manual_seed(1)
    first = HoliTom()(video, 0.2)
    torch.manual_seed(2)
    assert torch.equal(first.tokens, HoliTom()(video, 0.2).tokens)
    assert torch.equal(tokens, video.tokens)
    assert torch.equal(saliency, video.saliency)


def test_strided_features():
    video = synthetic_video(8, (4, 4), 32, seed=3)
    strided = replace(video, tokens=torch.stack([video.tokens] * 2, dim=-1)[..., 0])
    assert not strided.tokens.is_contiguous()
    assert torch.equal(HoliTom()(video, 0.3).tokens, HoliTom()(strided, 0.3).tokens)


@pytest.mark.parametrize("budget", [0.0, -0.1, 1.5, math.nan])
def test_budgets_outside_the_range_are_refused(budget):
    with pytest.raises(BadUsage, match="outside \\(0, 1\\]"):
        HoliTom()(synthetic_video(2, (2, 2), 4), budget)


def test_missing_saliency_is_refused():
    video = replace(synthetic_video(3, (2, 2), 4), saliency=None)
    with pytest.raises(BadUsage, match=r"HoliTom reads VideoFeatures\.saliency"):
        HoliTom()(video, 0.5)
    assert HoliTom().requires == {"saliency"}
    assert HoliTom(dynamic_by="cluster").requires == frozenset()
    assert len(HoliTom(dynamic_by="cluster", counts="exact")(video, 0.5)) == 6


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("name", ["tokens", "saliency"])
@pytest.mark.parametrize("budget", [0.3, 1.0])
def test_non_finite_numbers_are_refused_by_name(name, value, budget):
    video = synthetic_video(5, (3, 3), 8)
    broken = getattr(video, name).clone()
    broken[3, 2] = value
    with pytest.raises(BadUsage, match=f"{name} hold a NaN or an infinity, first in frame 3"):
        HoliTom()(replace(video, **{name: broken}), budget)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [({"k": 0}, "k=0"), ({"max_window": 0}, "max_window=0"), ({"beta": 1.5}, "beta 1.5 is outside")],
)
def test_wrong_parameters_are_refused(wrong, message):
    with pytest.raises(BadUsage, match=message):
        HoliTom(**wrong)


def test_fidelity_names_what_equals_the_release():
    assert HoliTom(tau=0.65).fidelity == "golden"
    assert HoliTom(segmentation="none").fidelity == "reconstruction"
    assert HoliTom(counts="exact").fidelity == "reconstruction"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["scenes", "pairs", "still", "noise"])
@pytest.mark.parametrize(("method", "times"), [(HoliTom(), 3), (HoliTom(dynamic_by="cluster"), 3.5)])
def test_extra_memory_is_at_most_three_inputs(kind, dtype, method, times):
    """In the worst cases: nothing static, everything static, segments of two frames (the most means to hold). The
    ablation that clusters every token holds them once more."""
    if kind == "pairs":
        scene = torch.randn(16, 64, 256, generator=torch.Generator().manual_seed(0)).repeat_interleave(2, dim=0)
        video = VideoFeatures(scene.to(dtype), (8, 8), torch.rand(32, 64))
    else:
        video = any_video(32, (8, 8), 256, kind, dtype, 0)
    assert peak_bytes(lambda: method(video, 0.4)) <= times * video.tokens.nbytes


def test_features_that_carry_gradients():
    """Choices are made without gradients; the tokens that come out still have theirs."""
    video = synthetic_video(6, (4, 4), 8)
    tokens = video.tokens.clone().requires_grad_()
    kept = HoliTom()(replace(video, tokens=tokens), 0.3)
    kept.tokens.sum().backward()
    assert tokens.grad.abs().sum() > 0
