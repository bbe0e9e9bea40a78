"""FastVID against plain loops, and what stands in for SigLIP's head."""

import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from videos import same, scenes

from holitom.errors import BadUsage
from holitom.methods.fastvid import FastVID


def segments_of(embed, count, tau):
    cosine = [float(torch.cosine_similarity(a[None], b[None])) for a, b in pairwise(embed)]
    cuts = {*sorted(range(len(cosine)), key=lambda t: (cosine[t], t))[: count - 1]}
    cuts |= {t for t, c in enumerate(cosine) if c < tau}
    starts = [0, *(t + 1 for t in sorted(cuts))]
    return list(zip(starts, [*(s - 1 for s in starts[1:]), len(embed) - 1], strict=True))


def peaks(rows, k):
    """density * delta of every row."""
    square = (rows[:, None] - rows[None]).square().sum(-1) / rows.shape[1]
    spacing = square.sort(1).values[:, :k].mean(1)
    score = []
    for i in range(len(rows)):
        denser = [float(square[i, j]) for j in range(len(rows)) if (-spacing[j], -j) > (-spacing[i], -i)]
        score.append(math.exp(-float(spacing[i])) * math.sqrt(min(denser) if denser else float(square.max())))
    return score


def loops(video, budget, method):
    """One cell, one anchor, one frame at a time -> {(frame, cell): (token, size)}."""
    x, cells, found = video.tokens.double(), video.cells, {}
    kept = max(1, int(cells * budget))
    context = int(kept * method.context)
    ranked = [sorted(range(cells), key=lambda n: (-float(row[n]), n)) for row in video.head_saliency]
    found.update({(t, n): (x[t, n], 1) for t, row in enumerate(ranked) for n in row[: kept - context]})
    rest = [sorted(row[kept - context :]) for row in ranked]
    for first, last in segments_of(video.frame_embed, method.segments, method.tau):
        carriers = [t for t in range(first, last + 1) if (last - t) % method.step == 0]
        each = context * (last - first + 1) // len(carriers)
        for f in carriers if each else ():
            score = peaks(x[f, rest[f]], method.k)
            order = sorted(range(len(score)), key=lambda i: (-score[i], i))
            anchors = {n: [] for n in sorted(rest[f][i] for i in order[:each])}
            for t in [f] if each == context else range(first, last + 1):
                for n in rest[t]:
                    cosine = torch.cosine_similarity(x[t, n][None], x[f, list(anchors)])
                    list(anchors.values())[int(cosine.argmax())].append(x[t, n])
            for n, joined in anchors.items():
                own = max(1 / (len(joined) + 1), method.beta) if joined else 1
                mean = torch.stack(joined).mean(0) if joined else 0
                found[f, n] = own * x[f, n] + (1 - own) * mean, max(1, len(joined))
    return found


@pytest.mark.parametrize("seed", range(12))
def test_it_is_what_plain_loops_give(seed):
    video = scenes(1 + 2 * seed, (1 + seed % 3, 4), 12, seed)
    embed = video.frame_embed + 8 * torch.eye(6)[torch.arange(video.frames) // (1 + seed % 7) % 6]
    video = replace(video, frame_embed=embed)
    settings = {"segments": [8, 1, 3][seed % 3], "tau": [0.9, -1, 0.3][seed % 3], "step": [4, 1, 2, 3][seed % 4]}
    method = FastVID(**settings, context=[0.4, 0, 0.7, 1][seed % 4], beta=[0.6, 0, 1][seed % 3])
    for budget in (0.12, 0.35, 0.9):
        expected, kept = loops(video, budget, method), method(video, budget)
        places = list(zip(kept.frame.tolist(), kept.cell.tolist(), strict=True))
        assert places == sorted(expected)
        assert kept.size.tolist() == [expected[place][1] for place in places]
        rows = torch.stack([expected[place][0] for place in places])
        torch.testing.assert_close(kept.tokens.double(), rows, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("budget", "count"), [(0.25, 1568), (0.20, 1248), (0.15, 928), (0.10, 608)])
def test_counts_at_the_papers_settings(budget, count):
    video = replace(scenes(32, (14, 14), 8), frame_embed=torch.eye(8).repeat_interleave(4, dim=0))
    assert len(FastVID()(video, budget)) == count


def test_the_substitute_reads_other_fields_and_wrong_settings():
    assert (FastVID().fidelity, FastVID().requires) == ("golden", {"frame_embed", "head_saliency"})
    assert (FastVID(head="substitute").fidelity, FastVID(head="substitute").requires) == ("port", {"saliency"})
    video = scenes(20, (4, 5), 8)
    with_means = replace(video, frame_embed=video.tokens.mean(1), head_saliency=video.saliency)
    assert same(FastVID(head="substitute")(video, 0.3), FastVID()(with_means, 0.3))
    for wrong in ({"segments": 0}, {"step": 0}, {"context": 1.1}, {"beta": -1.0}, {"k": 0}, {"head": "mean"}):
        with pytest.raises(BadUsage, match=next(iter(wrong))):
            FastVID(**wrong)
