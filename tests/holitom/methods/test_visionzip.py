import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from holitom.errors import BadUsage
from holitom.methods.base import frame_counts
from holitom.methods.visionzip import VisionZip
from holitom.types import VideoFeatures

GRIDS = st.tuples(st.integers(1, 6), st.integers(1, 6))
DTYPES = st.sampled_from([torch.float32, torch.bfloat16, torch.float16])


def video_of(frames, grid, dtype=torch.float32):
    draw, cells = torch.Generator().manual_seed(frames), grid[0] * grid[1]
    tokens, keys = (torch.randn(frames, cells, dim, generator=draw) for dim in (6, 5))
    return VideoFeatures(tokens.to(dtype), grid, torch.randint(0, 9, (frames, cells), generator=draw), keys)


def loops(video, counts, ratio):
    """One frame and one cell at a time: the tokens, and (frame, cell, size) of each."""
    rows, places = [], []
    for t, count in enumerate(counts.tolist()):
        ranked = sorted(range(video.cells), key=lambda n: (-float(video.saliency[t, n]), n))
        top = sorted(ranked[: int(count * ratio)])
        rest = [n for n in range(video.cells) if n not in top]
        wanted = count - len(top)
        starts = rest[:: max(1, len(rest) // max(1, wanted))][:wanted]
        members = {n: [] for n in starts}
        for n in rest if starts else ():
            if n not in members:
                alike = torch.cosine_similarity(video.keys[t, n][None], video.keys[t, starts])
                members[starts[int(alike.argmax())]].append(n)
        x = video.tokens[t].float()
        rows += [x[n] for n in top]
        rows += [x[n] + (x[members[n]].mean(0) if members[n] else 0) for n in starts]
        places += [(t, n, 1) for n in top] + [(t, n, 1 + len(members[n])) for n in starts]
    return torch.stack(rows), places


@given(st.integers(1, 5), GRIDS, st.floats(0.01, 0.999), st.sampled_from([0.0, 0.5, 54 / 64]), DTYPES)
def test_it_is_what_plain_loops_give_at_the_exact_budget(frames, grid, budget, ratio, dtype):
    video = video_of(frames, grid, dtype)
    kept = VisionZip(ratio)(video, budget)
    rows, places = loops(video, frame_counts(video, budget), ratio)
    assert list(zip(kept.frame.tolist(), kept.cell.tolist(), kept.size.tolist(), strict=True)) == places
    assert len(kept) == max(1, round(budget * (frames * video.cells))) and kept.tokens.dtype == dtype
    step = torch.finfo(dtype).eps
    torch.testing.assert_close(kept.tokens.float(), rows, atol=8 * step, rtol=2 * step)


def test_a_frame_without_contextual_tokens_is_refused():
    with pytest.raises(BadUsage, match="dominant_ratio 1"):
        VisionZip(dominant_ratio=1)
