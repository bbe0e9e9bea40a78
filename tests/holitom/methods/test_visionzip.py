from dataclasses import replace

import oracle
import torch
from hypothesis import given
from hypothesis import strategies as st
from videos import DTYPES, equals, scenes

from holitom.methods.base import frame_counts
from holitom.methods.visionzip import VisionZip


def loops(video, counts, ratio):
    """One frame and one cell at a time -> {(frame, cell): (token, size)}."""
    found = {}
    for t, count in enumerate(counts.tolist()):
        x, top = video.tokens[t].float(), oracle.best(video.saliency[t], int(count * ratio))
        rest = [n for n in range(video.cells) if n not in top]
        wanted = count - len(top)
        starts = rest[:: max(1, len(rest) // max(1, wanted))][:wanted]
        members = {n: [] for n in starts}
        for n in rest if starts else ():
            if n not in members:
                alike = torch.cosine_similarity(video.keys[t, n][None].float(), video.keys[t, starts].float())
                members[starts[int(alike.argmax())]].append(n)
        found |= {(t, n): (x[n], 1) for n in top}
        found |= {(t, n): (x[n] + (x[m].mean(0) if m else 0), 1 + len(m)) for n, m in members.items()}
    return found


@given(st.integers(1, 5), st.integers(1, 30), st.floats(0.01, 0.999), st.sampled_from([0.0, 0.5, 54 / 64]), DTYPES)
def test_it_is_what_plain_loops_give(frames, cells, budget, ratio, dtype):
    video, step = scenes(frames, (1, cells), 6, frames, dtype), torch.finfo(dtype).eps
    ties = torch.randint(0, 9, (frames, cells), generator=torch.Generator().manual_seed(frames))
    video = replace(video, saliency=ties)
    expected = loops(video, frame_counts(video, budget), ratio)
    equals(VisionZip(ratio)(video, budget), expected, atol=8 * step, rtol=2 * step)
