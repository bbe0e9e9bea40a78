"""What holds for every method, over shapes, contents, budgets and precisions: one test for all of one kind."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from holitom import methods
from holitom_repro.bench import peak_bytes, prompt_of, synthetic_video, with_every_field
from holitom.errors import BadUsage
from holitom.methods import (
    AveragePool,
    DyCoke,
    DyCokeDecode,
    HieraVidSelect,
    HoliTom,
    HoliTomMerge,
    PruneVid,
    VisionZip,
)
from holitom.methods.inputs import budget_tokens
from holitom.types import Inner, Outer, VideoFeatures
from stages import INNER, OUTER, call, reach

DTYPES = st.sampled_from([torch.float32, torch.bfloat16, torch.float16])
BUDGETS = st.one_of(st.sampled_from([0.01, 0.05, 0.1, 0.15, 0.25, 0.5, 0.9, 1.0]), st.floats(0.01, 1.0))
KINDS = st.sampled_from(["scenes", "noise", "equal", "zeros", "still", "some zero"])


def video_of(frames, grid, dim, kind, dtype, seed):
    cells, draw = grid[0] * grid[1], torch.Generator().manual_seed(seed)
    if kind == "scenes":
        video = synthetic_video(frames, grid, dim, seed=seed, dtype=dtype)
    else:
        tokens = torch.randn(1 if kind == "still" else frames, cells, dim, generator=draw).expand(frames, -1, -1)
        fill = {"equal": torch.full_like(tokens, 0.7), "zeros": torch.zeros_like(tokens)}
        zeroed = tokens * (torch.rand(frames, cells, 1, generator=draw) < 0.5)
        tokens = {**fill, "some zero": zeroed}.get(kind, tokens).contiguous().to(dtype)
        # Few distinct values, so that ties between saliencies are the rule.
        video = VideoFeatures(tokens, grid, torch.randint(0, 4, (frames, cells), generator=draw).float())
    keys = torch.randn(frames, cells, 8, generator=draw) if kind != "equal" else torch.ones(frames, cells, 8)
    return replace(video, keys=keys.to(dtype), frame_embed=torch.randn(frames, 6, generator=draw))


VIDEOS = st.builds(
    lambda frames, height, width, *rest: video_of(frames, (height, width), *rest),
    st.integers(1, 64),
    st.integers(1, 14),
    st.integers(1, 14),
    st.integers(4, 64),
    KINDS,
    DTYPES,
    st.integers(0, 99),
)


def equal_sets(a, b):
    return all(torch.equal(getattr(a, name), getattr(b, name)) for name in ("tokens", "frame", "cell", "size"))


@pytest.mark.parametrize("method", OUTER, ids=str)
@settings(max_examples=25)
@given(VIDEOS, BUDGETS)
def test_an_outer_stage_takes_any_video_at_any_budget(method, video, budget):
    frames, cells, dim = video.tokens.shape
    budget, before = reach(method, budget), video.tokens.clone()
    if isinstance(method, VisionZip) and method.released and math.ceil(round(budget * cells, 9)) > cells:
        return
    kept = method(video, budget)
    count = len(kept)
    assert 1 <= count <= frames * cells
    assert kept.tokens.shape == (count, dim) and kept.tokens.dtype == video.tokens.dtype
    assert kept.tokens.isfinite().all()
    assert ((kept.frame >= 0) & (kept.frame < frames) & (kept.cell >= 0) & (kept.cell < cells)).all()
    places = kept.frame * cells + kept.cell
    assert len(places.unique()) == count, "two tokens in one place"
    assert (kept.size >= 1).all()
    assert torch.equal(video.tokens, before), "the input was changed"
    assert equal_sets(kept, method(video, budget))
    if budget == 1:
        assert torch.equal(kept.tokens, video.tokens.flatten(0, 1)) and (kept.size == 1).all()
    if not isinstance(method, DyCoke | AveragePool) and not getattr(method, "released", False):
        exact = getattr(method, "counts", "exact") == "exact" and getattr(method, "exact", True)
        if exact:  # HoliTom and PruneVid end below where merging over time alone goes further
            assert count <= budget_tokens(video, budget)
            assert count == budget_tokens(video, budget) or isinstance(method, HoliTom | PruneVid)


@pytest.mark.parametrize("method", OUTER, ids=str)
@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("budget", [0.3, 1.0])
def test_an_outer_stage_refuses_one_nan_by_name(method, value, budget):
    video = video_of(9, (3, 4), 8, "scenes", torch.float32, 1)
    fields = {"tokens", *method.requires}
    assert isinstance(method, Outer) and fields <= {"tokens", "saliency", "keys", "frame_embed"}
    for name in sorted(fields):
        broken = getattr(video, name).clone()
        broken[5].view(-1)[3] = value
        with pytest.raises(BadUsage, match=f"{name} hold a NaN or an infinity, first in frame 5"):
            method(replace(video, **{name: broken}), reach(method, budget))
        if name != "tokens":
            with pytest.raises(BadUsage, match=rf"{type(method).__name__} reads VideoFeatures\.{name}"):
                method(replace(video, **{name: None}), reach(method, budget))


@pytest.mark.parametrize("method", OUTER, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_outer_stage_needs_at_most_three_inputs(method, dtype):
    video = with_every_field(synthetic_video(24, (8, 8), 512, dtype=dtype), key_dim=64)
    for budget in (0.15, 0.9 if dtype == torch.float32 else 0.25):
        share = reach(method, budget)
        assert peak_bytes(lambda share=share: method(video, share)) <= 3 * video.tokens.nbytes


@pytest.mark.parametrize("method", OUTER, ids=str)
def test_an_outer_stage_takes_features_that_carry_gradients(method):
    """Choices are made without gradients, and gradients reach the tokens that are kept."""
    video = video_of(9, (3, 4), 8, "scenes", torch.float32, 2)
    expected = method(video, 0.5)
    tokens = video.tokens.clone().requires_grad_()
    kept = method(replace(video, tokens=tokens), 0.5)
    assert equal_sets(kept, expected)
    kept.tokens.sum().backward()
    assert tokens.grad.isfinite().all()
    assert (tokens.grad.flatten(0, 1)[kept.frame * 12 + kept.cell] != 0).any(1).all()


@st.composite
def prompts(draw):
    """States, scores of both kinds, visual ids, groups and gains; visual tokens stand anywhere in the prompt."""
    seed = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    visual, text, dim = draw(st.integers(1, 90)), draw(st.integers(1, 9)), draw(st.integers(4, 64))
    kind, dtype = draw(st.sampled_from(["noise", "equal", "zeros", "some zero"])), draw(DTYPES)
    hidden = torch.randn(visual + text, dim, generator=seed)
    mask = {"noise": 1, "zeros": 0, "some zero": torch.rand(len(hidden), 1, generator=seed) < 0.5}
    hidden = torch.full_like(hidden, 0.7) if kind == "equal" else hidden * mask[kind]
    score = torch.rand(3, text, len(hidden), generator=seed)
    if draw(st.booleans()):
        score = (4 * score).floor()  # ties
    ids = torch.randperm(len(hidden), generator=seed)[:visual].sort().values
    group = torch.randint(0, draw(st.integers(1, 6)), (visual,), generator=seed).sort().values
    gain = torch.randn(6, generator=seed)[group]
    return hidden.to(dtype), score, ids, group, gain


@pytest.mark.parametrize("stage", INNER, ids=str)
@settings(max_examples=40)
@given(prompts(), st.booleans())
def test_an_inner_stage_takes_any_prompt(stage, prompt, grouped):
    hidden, _, visual, _, _ = prompt
    before = hidden.clone()
    ids, rows = call(stage, prompt, grouped)
    assert isinstance(stage, Inner)
    assert (ids.diff() > 0).all() and rows.shape == (len(ids), hidden.shape[1]) and rows.dtype == hidden.dtype
    assert rows.isfinite().all() and torch.equal(hidden, before)
    text = torch.ones(len(hidden), dtype=torch.bool).index_fill_(0, visual, False).nonzero().flatten()
    kept_text = ids[torch.isin(ids, text)]
    assert torch.equal(kept_text, text), "text was dropped"
    assert 1 <= len(ids) - len(text) <= len(visual)
    if not isinstance(stage, HoliTomMerge):
        assert torch.equal(rows, hidden[ids])
    again = call(stage, prompt, grouped)
    assert torch.equal(ids, again[0]) and torch.equal(rows, again[1])


@pytest.mark.parametrize("stage", INNER, ids=str)
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_an_inner_stage_refuses_one_nan_by_name(stage, value):
    draw = torch.Generator().manual_seed(0)
    hidden, score, visual = (
        torch.randn(44, 8, generator=draw),
        torch.rand(3, 2, 44, generator=draw),
        torch.arange(2, 42),
    )
    group = torch.arange(40) // 10
    broken = score.clone()
    broken[1, :, 7] = value
    with pytest.raises(BadUsage, match=rf"attention scores of {type(stage).__name__} .* hold a NaN or an infinity"):
        call(stage, (hidden, broken, visual, group, torch.zeros(40)))
    if isinstance(stage, HoliTomMerge | HieraVidSelect):  # those that read the states
        states = hidden.clone()
        states[7, 1] = value
        with pytest.raises(BadUsage, match=rf"states that enter {type(stage).__name__} .* hold a NaN or an infinity"):
            call(stage, (states, score, visual, group, torch.zeros(40)))


@pytest.mark.parametrize("stage", INNER, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("grouped", [True, False])
def test_an_inner_stage_needs_at_most_three_inputs(stage, dtype, grouped):
    prompt = prompt_of(synthetic_video(12, (8, 8), 512, dtype=dtype), heads=4)
    given = (prompt.hidden, prompt.text_score, prompt.visual, prompt.group, prompt.gain)
    assert peak_bytes(lambda: call(stage, given, grouped)) <= 3 * prompt.hidden.nbytes


def test_every_method_of_the_package_is_here():
    schedules = {"PyramidDrop"}  # a list of stages
    stages = {getattr(methods, name) for name in methods.__all__ if isinstance(getattr(methods, name), type)}
    names = {stage.__name__ for stage in stages} - schedules
    assert names == {type(m).__name__ for m in [*OUTER, *INNER, DyCokeDecode()]}
