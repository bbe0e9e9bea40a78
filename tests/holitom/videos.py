"""Videos and prompts of every content that the methods must take, and what their answers are compared by."""

from dataclasses import replace

import torch
from hypothesis import strategies as st

from holitom.types import VideoFeatures

DTYPES = st.sampled_from([torch.float32, torch.bfloat16, torch.float16])
BUDGETS = st.one_of(st.sampled_from([0.001, 0.03, 0.1, 0.15, 0.25, 0.5, 0.9, 0.999, 1.0]), st.floats(0.01, 1.0))


def scenes(frames, grid, dim, seed=0, dtype=torch.float32):
    """Scenes of 1 to 9 frames; two thirds of the cells change little inside a scene. Every optional field is there."""
    draw, cells, parts = torch.Generator().manual_seed(seed), grid[0] * grid[1], []
    while sum(map(len, parts)) < frames:
        length = int(torch.randint(1, 10, (), generator=draw))
        noise = torch.where(torch.rand(cells, 1, generator=draw) < 0.67, 0.3, 2.0)
        base = torch.randn(cells, dim, generator=draw)
        parts.append(base + noise * torch.randn(length, cells, dim, generator=draw))
    saliency = torch.rand(frames, cells, generator=draw).softmax(-1)
    return with_every_field(VideoFeatures(torch.cat(parts)[:frames].to(dtype), grid, saliency), draw)


def with_every_field(video, draw):
    frames, cells = video.frames, video.cells
    return replace(
        video,
        keys=torch.randn(frames, cells, 8, generator=draw).to(video.tokens.dtype),
        frame_embed=torch.randn(frames, 6, generator=draw),
        head_saliency=torch.rand(frames, cells, generator=draw),
    )


def video_of(frames, grid, dim, kind, dtype, seed):
    if kind == "scenes":
        return scenes(frames, grid, dim, seed, dtype)
    draw, cells = torch.Generator().manual_seed(seed), grid[0] * grid[1]
    tokens = torch.randn(1 if kind == "still" else frames, cells, dim, generator=draw).expand(frames, -1, -1)
    fill = {"equal": torch.full_like(tokens, 0.7), "zeros": torch.zeros_like(tokens)}
    zeroed = tokens * (torch.rand(frames, cells, 1, generator=draw) < 0.5)
    tokens = {**fill, "some zero": zeroed}.get(kind, tokens).contiguous().to(dtype)
    # Few distinct values, so that ties between saliencies are the rule.
    saliency = torch.randint(0, 4, (frames, cells), generator=draw).float()
    return with_every_field(VideoFeatures(tokens, grid, saliency), draw)


VIDEOS = st.builds(
    lambda frames, height, width, *rest: video_of(frames, (height, width), *rest),
    st.integers(1, 48),
    st.integers(1, 12),
    st.integers(1, 12),
    st.integers(4, 48),
    st.sampled_from(["scenes", "noise", "equal", "zeros", "still", "some zero"]),
    DTYPES,
    st.integers(0, 99),
)


@st.composite
def prompts(draw):
    """States, scores of both kinds, visual ids, groups and gains; visual tokens stand anywhere in the prompt."""
    seed = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    visual, text, dim = draw(st.integers(1, 90)), draw(st.integers(1, 9)), draw(st.integers(4, 64))
    kind, dtype = draw(st.sampled_from(["noise", "equal", "zeros"])), draw(DTYPES)
    hidden = torch.randn(visual + text, dim, generator=seed)
    hidden = {"noise": hidden, "equal": torch.full_like(hidden, 0.7), "zeros": hidden * 0}[kind]
    score = torch.rand(3, text, len(hidden), generator=seed)
    score = (4 * score).floor() if draw(st.booleans()) else score  # ties
    ids = torch.randperm(len(hidden), generator=seed)[:visual].sort().values
    group = torch.randint(0, draw(st.integers(1, 6)), (visual,), generator=seed).sort().values
    return hidden.to(dtype), score, ids, group, torch.randn(6, generator=seed)[group]


def places(kept):
    return list(zip(kept.frame.tolist(), kept.cell.tolist(), strict=True))


def equals(kept, expected, **near):
    """Whether the tokens are those of a loop: {(frame, cell): (token, size)} in their order."""
    assert places(kept) == list(expected)
    assert kept.size.tolist() == [size for _, size in expected.values()]
    rows = torch.stack([row for row, _ in expected.values()]).double()
    torch.testing.assert_close(kept.tokens.double(), rows, **near or {"atol": 1e-5, "rtol": 0})


def check(video, kept):
    """What every token set must be, whatever the method."""
    assert kept.tokens.shape == (len(kept), video.tokens.shape[2]) and kept.tokens.dtype == video.tokens.dtype
    assert kept.tokens.isfinite().all() and 1 <= len(kept) <= video.frames * video.cells
    assert ((kept.frame >= 0) & (kept.frame < video.frames) & (kept.cell >= 0) & (kept.cell < video.cells)).all()
    places = kept.frame * video.cells + kept.cell
    assert len(places.unique()) == len(kept), "two tokens in one place"
    assert (kept.size >= 1).all()


def same(a, b):
    return all(torch.equal(getattr(a, name), getattr(b, name)) for name in ("tokens", "frame", "cell", "size"))
