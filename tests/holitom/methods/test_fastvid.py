"""FastVID against plain loops, and what stands in for SigLIP's head."""

from dataclasses import replace
from itertools import pairwise

import oracle
import pytest
import torch
from videos import equals, same, scenes

from holitom.methods.fastvid import FastVID


def segments_of(embed, count, tau):
    cosine = [float(torch.cosine_similarity(a[None], b[None])) for a, b in pairwise(embed)]
    cuts = {*sorted(range(len(cosine)), key=lambda t: (cosine[t], t))[: count - 1]}
    cuts |= {t for t, c in enumerate(cosine) if c < tau}
    starts = [0, *(t + 1 for t in sorted(cuts))]
    return list(zip(starts, [*(s - 1 for s in starts[1:]), len(embed) - 1], strict=True))


def peaks(rows, k):
    square = oracle.squared_distances(rows)
    spacing = oracle.spacings(square, k)
    return oracle.peak_scores(square.tolist(), (-spacing).tolist(), (-spacing).exp().tolist())


def loops(video, budget, method):
    """One cell, one anchor, one frame at a time -> {(frame, cell): (token, size)}."""
    x, cells, found = video.tokens.double(), video.cells, {}
    kept = max(1, int(cells * budget))
    context = int(kept * method.context)
    top = [oracle.best(row, kept - context) for row in video.head_saliency]
    found.update({(t, n): (x[t, n], 1) for t, row in enumerate(top) for n in row})
    rest = [[n for n in range(cells) if n not in row] for row in top]
    for first, last in segments_of(video.frame_embed, method.segments, method.tau):
        carriers = [t for t in range(first, last + 1) if (last - t) % method.step == 0]
        each = context * (last - first + 1) // len(carriers)
        for f in carriers if each else ():
            anchors = {rest[f][i]: [] for i in oracle.best(peaks(x[f, rest[f]], method.k), each)}
            for t in [f] if each == context else range(first, last + 1):
                for n in rest[t]:
                    cosine = torch.cosine_similarity(x[t, n][None], x[f, list(anchors)])
                    list(anchors.values())[int(cosine.argmax())].append(x[t, n])
            for n, joined in anchors.items():
                own = max(1 / (len(joined) + 1), method.beta) if joined else 1
                mean = torch.stack(joined).mean(0) if joined else 0
                found[f, n] = own * x[f, n] + (1 - own) * mean, max(1, len(joined))
    return dict(sorted(found.items()))


@pytest.mark.parametrize("seed", range(12))
def test_it_is_what_plain_loops_give(seed):
    video = scenes(1 + 2 * seed, (1 + seed % 3, 4), 12, seed)
    embed = video.frame_embed + 8 * torch.eye(6)[torch.arange(video.frames) // (1 + seed % 7) % 6]
    video = replace(video, frame_embed=embed)
    settings = {"segments": [8, 1, 3][seed % 3], "tau": [0.9, -1, 0.3][seed % 3], "step": [4, 1, 2, 3][seed % 4]}
    method = FastVID(**settings, context=[0.4, 0, 0.7, 1][seed % 4], beta=[0.6, 0, 1][seed % 3])
    for budget in (0.12, 0.35, 0.9):
        equals(method(video, budget), loops(video, budget, method))


@pytest.mark.parametrize(("budget", "count"), [(0.25, 1568), (0.20, 1248), (0.15, 928), (0.10, 608)])
def test_counts_at_the_papers_settings(budget, count):
    video = replace(scenes(32, (14, 14), 8), frame_embed=torch.eye(8).repeat_interleave(4, dim=0))
    assert len(FastVID()(video, budget)) == count


def test_the_substitute_reads_other_fields():
    assert FastVID().requires == {"frame_embed", "head_saliency"}
    assert FastVID(head="substitute").requires == {"saliency"}
    video = scenes(20, (4, 5), 8)
    with_means = replace(video, frame_embed=video.tokens.mean(1), head_saliency=video.saliency)
    assert same(FastVID(head="substitute")(video, 0.3), FastVID()(with_means, 0.3))
