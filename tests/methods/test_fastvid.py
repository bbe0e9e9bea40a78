import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from golden.loader import Golden, cases
from holitom_repro.bench import peak_bytes
from holitom.errors import BadUsage
from holitom.methods.fastvid import FastVID
from holitom.types import Outer, VideoFeatures

BUDGETS = st.one_of(st.sampled_from([0.01, 0.1, 0.15, 0.2, 0.25, 0.6, 1.0]), st.floats(0.01, 1.0))


def video_of(frames, grid=(3, 4), dim=6, seed=0, dtype=torch.float32):
    draw = torch.Generator().manual_seed(seed)
    cells = grid[0] * grid[1]
    tokens = torch.randn(frames, cells, dim, generator=draw).to(dtype)
    saliency = torch.rand(frames, cells, generator=draw)
    return VideoFeatures(tokens, grid, saliency, frame_embed=torch.randn(frames, 7, generator=draw))


def stage_of(setting, **fields):
    named = {"segments": "DySeg_c", "tau": "DySeg_tau", "context": "STPrune_d", "step": "DTM_p", "beta": "DTM_beta"}
    return FastVID(**{ours: setting[theirs] for ours, theirs in named.items()}, k=setting["k"], head="siglip", **fields)


def golden_video(golden, run):
    side = math.isqrt(golden.runs[run]["N"])
    embed = golden[run, "frame_global_features"]
    return VideoFeatures(golden[run, "features"], (side, side), golden[run, "attn"], frame_embed=embed)


@pytest.mark.parametrize(("name", "run"), cases("fastvid_ov"))
def test_released_mode_equals_the_released_code(name, run):
    golden = Golden(name)
    setting, video = golden.runs[run], golden_video(golden, run)
    stage = stage_of(setting, released=True)
    first, _ = stage._cut(video, video.saliency)
    assert np.unique(first, return_counts=True)[1].tolist() == golden[run, "segment_sizes"].tolist()
    kept = stage(video, setting["retention_ratio"])
    assert torch.equal(kept.frame * video.cells + kept.cell, golden[run, "token_index"])
    torch.testing.assert_close(kept.tokens, golden[run, "tokens"], atol=1e-5, rtol=0)


@pytest.mark.parametrize(("budget", "count"), [(0.25, 1568), (0.20, 1248), (0.15, 928), (0.10, 608)])
def test_released_counts_at_the_papers_settings(budget, count):
    video = video_of(32, (14, 14))
    embed = torch.eye(8).repeat_interleave(4, dim=0)  # eight scenes of four frames
    video = replace(video, frame_embed=embed)
    assert len(FastVID(head="siglip", released=True)(video, budget)) == count
    assert len(FastVID(head="siglip")(video, budget)) == round(budget * 6272)


def oracle(video, budget, stage, first, last):
    """The clean reading in plain loops, where budget * N and the anchors' shares come out whole and all anchors fit."""
    rows, cells = {}, video.cells
    kept = round(budget * cells)
    context = int(kept * stage.context)
    salient = []
    for t in range(video.frames):
        ranked = sorted(range(cells), key=lambda n: (-float(video.saliency[t, n]), n))
        salient.append(set(ranked[: kept - context]))
        rows.update({(t, n): video.tokens[t, n] for n in salient[t]})
    for start in sorted(set(first.tolist())):
        end = int(last[start])
        carriers = [t for t in range(start, end + 1) if (end - t) % stage.step == 0]
        for f in carriers:
            rest = [n for n in range(cells) if n not in salient[f]]
            distance = torch.cdist(video.tokens[f, rest].double(), video.tokens[f, rest].double())
            distance = distance / math.sqrt(video.tokens.shape[-1])
            density = (-distance.square().sort(dim=1).values[:, : stage.k].mean(1)).exp()
            score = []
            for i in range(len(rest)):
                denser = [float(distance[i, j]) for j in range(len(rest)) if (density[j], -j) > (density[i], -i)]
                score.append(float(density[i]) * (min(denser) if denser else float(distance.max())))
            order = sorted(range(len(rest)), key=lambda i: -score[i])
            if not context:
                continue
            anchors = sorted(rest[i] for i in order[: context * (end - start + 1) // len(carriers)])
            joined = {n: [] for n in anchors}
            for t in range(start, end + 1):
                for n in range(cells):
                    if n in salient[t] or (t == f and n in joined):
                        continue
                    near = torch.cosine_similarity(video.tokens[t, n][None], video.tokens[f, anchors])
                    joined[anchors[int(near.argmax())]].append(video.tokens[t, n])
            for n in anchors:
                token, others = video.tokens[f, n], joined[n]
                weight = max(1 / (len(others) + 1), stage.beta)
                rows[f, n] = weight * token + (1 - weight) * torch.stack(others).mean(0) if others else token
    places = sorted(rows)
    return torch.stack([rows[p] for p in places]), [t * cells + n for t, n in places]


@pytest.mark.parametrize(("step", "beta", "context"), [(4, 0.6, 0.4), (1, 0.0, 0.4), (2, 0.9, 0.2), (4, 0.6, 0.0)])
def test_it_is_what_plain_loops_give(step, beta, context):
    video = replace(video_of(10, (4, 5), dim=8, seed=1), frame_embed=torch.eye(3).repeat_interleave(4, 0)[:10])
    stage = FastVID(segments=2, tau=0.5, step=step, beta=beta, context=context, head="siglip")
    first, last = stage._cut(video, video.saliency)
    assert first.tolist() == [0] * 4 + [4] * 4 + [8] * 2
    rows, places = oracle(video, 0.25, stage, first, last)
    kept = stage(video, 0.25)
    assert (kept.frame * 20 + kept.cell).tolist() == places
    torch.testing.assert_close(kept.tokens, rows, atol=1e-5, rtol=0)


@pytest.mark.parametrize("head", ["siglip", "substitute"])
@settings(deadline=None, max_examples=50)
@given(
    st.integers(1, 64),
    st.integers(1, 14),
    st.integers(1, 14),
    st.integers(4, 64),
    BUDGETS,
    st.sampled_from([(8, 4, 0.4), (1, 1, 1.0), (3, 2, 0.7), (64, 9, 0.1)]),
)
def test_counts_are_exact_and_order_is_raster(head, frames, height, width, dim, budget, setting):
    segments, step, context = setting
    video = video_of(frames, (height, width), dim, seed=frames)
    kept = FastVID(segments=segments, step=step, context=context, head=head)(video, budget)
    assert len(kept) == max(1, round(budget * (frames * video.cells)))
    assert ((kept.frame * video.cells + kept.cell).diff() > 0).all()
    one = kept.size == 1
    assert torch.equal(kept.tokens[one], video.tokens[kept.frame[one], kept.cell[one]])
    assert kept.tokens.isfinite().all()


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 40), st.integers(1, 8), st.integers(1, 8), BUDGETS)
def test_the_released_reading_survives_what_the_release_does_not(frames, height, width, budget):
    video = video_of(frames, (height, width), seed=frames)
    kept = FastVID(released=True)(video, budget)
    if budget < 1:
        assert 1 <= len(kept) <= frames * max(1, int(video.cells * budget))


def test_cuts_are_the_least_similar_pairs_and_all_below_tau():
    angle = torch.tensor([0, 1, 2, 40, 41, 100, 100.5, 160]) * math.pi / 180
    video = replace(video_of(8), frame_embed=torch.stack([angle.cos(), angle.sin()], dim=1))
    first, last = FastVID(segments=1, tau=0.9, head="siglip")._cut(video, video.saliency)
    assert sorted(set(first.tolist())) == [0, 3, 5, 7]
    assert last.tolist() == [2, 2, 2, 4, 4, 6, 6, 7]
    first, _ = FastVID(segments=6, tau=0.9, head="siglip")._cut(video, video.saliency)
    assert len(set(first.tolist())) == 6
    first, _ = FastVID(segments=99, tau=0.9, head="siglip")._cut(video, video.saliency)
    assert first.tolist() == list(range(8))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_precision_is_kept_and_budget_one_is_the_identity(dtype):
    video = video_of(9, dtype=dtype)
    for stage in (FastVID(), FastVID(head="siglip"), FastVID(released=True)):
        kept = stage(video, 0.5)
        assert kept.tokens.dtype == dtype
        assert torch.equal(kept.tokens, stage(video, 0.5).tokens)
        exact = stage(replace(video, tokens=video.tokens.float()), 0.5)
        torch.testing.assert_close(kept.tokens.float(), exact.tokens, atol=2e-2, rtol=2e-2)
        assert torch.equal(stage(video, 1.0).tokens, video.tokens.flatten(0, 1))


@pytest.mark.parametrize("fill", [0.0, 1.0])
@pytest.mark.parametrize("frames", [1, 2, 33])
def test_equal_tokens_and_zeros_are_no_special_case(fill, frames):
    video = VideoFeatures(torch.full((frames, 12, 4), fill), (3, 4), torch.ones(frames, 12))
    kept = FastVID()(video, 0.25)
    assert len(kept) == round(0.25 * (frames * 12))
    torch.testing.assert_close(kept.tokens, torch.full_like(kept.tokens, fill))


@pytest.mark.parametrize("segments", [1, 8, 32])
@pytest.mark.parametrize("budget", [0.1, 0.25, 0.9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_extra_memory_is_at_most_three_inputs(dtype, budget, segments):
    video = video_of(32, (8, 8), 512, dtype=dtype)
    assert peak_bytes(lambda: FastVID(segments=segments, tau=0.0)(video, budget)) <= 3 * video.tokens.nbytes


def test_it_says_what_stands_in_for_the_head():
    stage, with_head = FastVID(), FastVID(head="siglip", released=True)
    assert isinstance(stage, Outer)
    assert (stage.head, stage.fidelity, stage.requires) == ("substitute", "port", {"saliency"})
    assert (with_head.fidelity, with_head.requires) == ("golden", {"saliency", "frame_embed"})
    assert FastVID(released=True).fidelity == "port"
    assert stage.positions == "original"
    video = video_of(9)
    passed_off = replace(video, frame_embed=video.tokens.mean(1))
    with pytest.raises(BadUsage, match="not the output of SigLIP's pooling head"):
        FastVID(head="siglip")(passed_off, 0.5)
    assert torch.equal(stage(passed_off, 0.5).tokens, stage(video, 0.5).tokens)


def test_what_it_cannot_do_is_refused():
    video = video_of(4)
    for missing in ("saliency", "frame_embed"):
        with pytest.raises(BadUsage, match=f"FastVID reads VideoFeatures.{missing}"):
            FastVID(head="siglip")(replace(video, **{missing: None}), 0.5)
    for wrong in ({"segments": 0}, {"step": 0}, {"context": 1.1}, {"beta": -1.0}):
        with pytest.raises(BadUsage):
            FastVID(**wrong)
    for name in ("tokens", "saliency", "frame_embed"):
        broken = getattr(video, name).clone()
        broken[3].view(-1)[1] = torch.nan
        with pytest.raises(BadUsage, match=f"{name} hold a NaN or an infinity, first in frame 3"):
            FastVID(head="siglip")(replace(video, **{name: broken}), 0.5)
