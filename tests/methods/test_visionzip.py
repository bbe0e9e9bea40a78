import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from golden.loader import Golden, cases
from holitom_repro.bench import peak_bytes
from holitom.errors import BadUsage
from holitom.methods.visionzip import VisionZip
from holitom.types import Outer, VideoFeatures

BUDGETS = st.one_of(st.sampled_from([0.01, 0.1, 0.15, 0.2, 0.25, 1.0]), st.floats(0.01, 1.0))


def video_of(frames, grid=(3, 4), dim=6, seed=0, dtype=torch.float32):
    draw = torch.Generator().manual_seed(seed)
    cells = grid[0] * grid[1]
    tokens = torch.randn(frames, cells, dim, generator=draw).to(dtype)
    keys = torch.randn(frames, cells, 5, generator=draw)
    return VideoFeatures(tokens, grid, torch.rand(frames, cells, generator=draw), keys)


def golden_video(golden, run):
    side = math.isqrt(golden.runs[run]["N"])
    return VideoFeatures(golden[run, "features"], (side, side), golden[run, "attn"], golden[run, "metric"])


def reduced(golden, run):
    setting = golden.runs[run]
    stage = VisionZip(dominant_ratio=setting["DOMINANT_RATIO"], released=True)
    return stage(golden_video(golden, run), setting["SPATIAL_TOKENS"] / setting["N"])


@pytest.mark.parametrize(("name", "run"), cases("visionzip_port"))
def test_released_mode_equals_the_released_code(name, run):
    golden = Golden(name)
    setting = golden.runs[run]
    kept = reduced(golden, run)
    cells = torch.cat([golden[run, "dominant_cells"], golden[run, "contextual_cells"]], dim=1)
    assert torch.equal(kept.cell.view_as(cells), cells)
    assert torch.equal(kept.frame, torch.arange(setting["T"]).repeat_interleave(cells.shape[1]))
    if setting["newline"] == "one_token":
        torch.testing.assert_close(kept.tokens, golden[run, "prompt_tokens"][:-1], atol=1e-5, rtol=0)
    else:
        torch.testing.assert_close(rows_as_the_port(golden, run, kept), golden[run, "prompt_tokens"], atol=1e-5, rtol=0)


def rows_as_the_port(golden, run, kept):
    """With a newline per row the port puts dominant tokens, in raster order, at the dominant cells in order of
    saliency, and ends empty rows with a newline as well. Not offered by the method; rebuilt here from its tokens."""
    setting = golden.runs[run]
    side, dominant = math.isqrt(setting["N"]), setting["dominant"]
    ranked = golden[run, "attn"].sort(dim=1, descending=True).indices[:, :dominant]
    out = []
    for t in range(setting["T"]):
        mine = kept.frame == t
        cells = torch.cat([ranked[t], kept.cell[mine][dominant:]])
        for row in range(side):
            there = (cells // side == row).nonzero().flatten()
            out += [kept.tokens[mine][there[cells[there].argsort()]], golden[run, "image_newline"][None]]
    return torch.cat(out)


def oracle(video, budget_per_frame, dominant, released):
    """One frame at a time, one cell at a time."""
    rows, cells = [], []
    for t in range(video.frames):
        ranked = sorted(range(video.cells), key=lambda n: (-float(video.saliency[t, n]), n))
        top = sorted(ranked[:dominant])
        rest = [n for n in range(video.cells) if n not in top]
        wanted = budget_per_frame - dominant
        starts = rest[:: max(1, len(rest) // wanted)][:wanted]
        members = {n: [] for n in starts}
        for n in rest:
            if n not in members:
                near = [torch.cosine_similarity(video.keys[t, n], video.keys[t, s], dim=0) for s in starts]
                members[starts[max(range(wanted), key=lambda j: (float(near[j]), -j))]].append(n)
        rows += [video.tokens[t, n] for n in top]
        for n in starts:
            joined = video.tokens[t, members[n]]
            if released:
                rows.append(video.tokens[t, n] + (joined.mean(0) if members[n] else 0))
            else:
                rows.append(torch.cat([video.tokens[t, n : n + 1], joined]).mean(0))
        cells += top + starts
    return torch.stack(rows), cells


@pytest.mark.parametrize("released", [False, True])
@pytest.mark.parametrize(("kept", "ratio"), [(8, 0.75), (8, 0.5), (3, 0.4), (1, 0.5), (17, 0.84375), (19, 0.9)])
def test_it_is_what_plain_loops_give(released, kept, ratio):
    video = video_of(4, (4, 5), seed=kept)
    rows, cells = oracle(video, kept, int(kept * ratio), released)
    out = VisionZip(dominant_ratio=ratio, released=released)(video, kept / 20)
    assert out.cell.tolist() == cells
    torch.testing.assert_close(out.tokens, rows, atol=1e-5, rtol=0)


@settings(deadline=None, max_examples=50)
@given(
    st.integers(1, 64),
    st.integers(1, 14),
    st.integers(1, 14),
    st.integers(4, 64),
    BUDGETS,
    st.sampled_from([0.0, 0.5, 54 / 64, 1.0]),
)
def test_counts_are_exact_and_mass_is_conserved(frames, height, width, dim, budget, ratio):
    video = video_of(frames, (height, width), dim, seed=frames)
    kept = VisionZip(dominant_ratio=ratio)(video, budget)
    assert len(kept) == max(1, round(budget * (frames * video.cells)))
    assert (kept.frame.diff() >= 0).all()
    assert len(torch.unique(kept.frame * video.cells + kept.cell)) == len(kept)
    per_frame = torch.bincount(kept.frame, minlength=frames)
    assert per_frame.max() - per_frame.min() <= 1
    if ratio == 0.5 and per_frame.min() >= 1:  # every frame has a contextual token, so every cell went somewhere
        total = (kept.tokens * kept.size[:, None]).sum(0)
        torch.testing.assert_close(total, video.tokens.sum((0, 1)), atol=2e-3, rtol=0)
        assert kept.size.sum() == frames * video.cells


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 9), st.integers(1, 14), st.integers(1, 14), BUDGETS)
def test_released_counts_are_those_of_the_release(frames, height, width, budget):
    video = video_of(frames, (height, width))
    wanted = frames * video.cells if budget == 1 else frames * math.ceil(round(budget * video.cells, 9))
    assert len(VisionZip(released=True)(video, budget)) == wanted


def test_dominant_tokens_stay_as_they_are_and_frames_do_not_meddle():
    video = video_of(6, (5, 5), seed=2)
    kept = VisionZip()(video, 0.4)
    one = kept.size == 1
    assert torch.equal(kept.tokens[one], video.tokens[kept.frame[one], kept.cell[one]])
    turned = replace(
        video, tokens=video.tokens.flip(0), saliency=video.saliency.flip(0), keys=video.keys.flip(0).contiguous()
    )
    again = VisionZip()(turned, 0.4)
    torch.testing.assert_close(again.tokens.view(6, 10, -1).flip(0), kept.tokens.view(6, 10, -1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_precision_is_kept_and_budget_one_is_the_identity(dtype):
    video = video_of(5, dtype=dtype)
    kept = VisionZip()(video, 0.5)
    assert kept.tokens.dtype == dtype
    assert torch.equal(kept.tokens, VisionZip()(video, 0.5).tokens)
    torch.testing.assert_close(
        kept.tokens.float(), VisionZip()(replace(video, tokens=video.tokens.float()), 0.5).tokens, atol=2e-2, rtol=2e-2
    )
    for released in (False, True):
        assert torch.equal(VisionZip(released=released)(video, 1.0).tokens, video.tokens.flatten(0, 1))


@pytest.mark.parametrize("fill", [0.0, 1.0])
@pytest.mark.parametrize("frames", [1, 2, 33])
def test_equal_tokens_and_zeros_are_no_special_case(fill, frames):
    video = VideoFeatures(torch.full((frames, 12, 4), fill), (3, 4), torch.ones(frames, 12), torch.zeros(frames, 12, 3))
    kept = VisionZip()(video, 0.25)
    assert len(kept) == round(0.25 * (frames * 12))
    assert (kept.tokens == fill).all()


@pytest.mark.parametrize("budget", [0.1, 0.25, 0.9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_extra_memory_is_at_most_three_inputs(dtype, budget):
    video = video_of(32, (8, 8), 512, dtype=dtype)
    assert peak_bytes(lambda: VisionZip()(video, budget)) <= 3 * video.tokens.nbytes


def test_what_it_cannot_do_is_refused():
    video = video_of(4)
    assert isinstance(VisionZip(), Outer)
    assert VisionZip().fidelity == "port"
    assert VisionZip(released=True).fidelity == "golden"
    for missing in ("saliency", "keys"):
        with pytest.raises(BadUsage, match=f"VisionZip reads VideoFeatures.{missing}"):
            VisionZip()(replace(video, **{missing: None}), 0.5)
    with pytest.raises(BadUsage, match="dominant_ratio"):
        VisionZip(dominant_ratio=1.5)
    for name in ("tokens", "saliency", "keys"):
        broken = getattr(video, name).clone()
        broken[2].view(-1)[1] = torch.nan
        with pytest.raises(BadUsage, match=f"{name} hold a NaN or an infinity, first in frame 2"):
            VisionZip()(replace(video, **{name: broken}), 0.5)
