import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from videos import places

from holitom.errors import BadUsage
from holitom.methods.dycoke import DyCoke, DyCokeDecode
from holitom.types import VideoFeatures


def loops(tokens, kept):
    """One frame at a time, as the release walks through them, without losing an odd last frame: (frame, cell)."""
    found = {t: list(range(tokens.shape[1])) for t in range(len(tokens))}
    pairs = [(t, t - 1) for t in range(1, len(tokens), 2)] + [(t + 2, t) for t in range(0, len(tokens) - 4, 4)]
    for t, other in pairs:
        alike = torch.cosine_similarity(tokens[t].float(), tokens[other].float(), dim=-1).tolist()
        found[t].sort(key=alike.__getitem__)
        del found[t][kept:]
    return [(t, n) for t, cells in found.items() for n in cells]


@given(st.integers(1, 21), st.integers(1, 25), st.floats(0.25, 0.999), st.sampled_from([torch.float32, torch.bfloat16]))
def test_the_cells_that_changed_most_stay(frames, cells, budget, dtype):
    tokens = torch.randn(frames, cells, 16, generator=torch.Generator().manual_seed(frames)).to(dtype)
    kept = DyCoke()(VideoFeatures(tokens, (1, cells)), budget)
    assert places(kept) == loops(tokens, int((4 * budget - 1) / 3 * cells + 1e-9))


def test_ties_counts_at_32_frames_and_less_than_a_quarter():
    still, video = VideoFeatures(torch.ones(6, 4, 3), (2, 2)), VideoFeatures(torch.randn(32, 196, 4), (14, 14))
    assert DyCoke()(still, 0.625).cell.tolist() == [*range(4), 0, 1, 0, 1, 0, 1, *range(4), 0, 1]
    assert [len(DyCoke()(video, budget)) for budget in (0.25, (1 + 3 * 0.3) / 4)] == [1764, 3098]
    with pytest.raises(BadUsage, match="below what it can reach"):
        DyCoke()(video, 0.2)


def test_decoding_reads_what_the_newest_token_attends_to_and_the_last_one():
    row, visual = torch.tensor([9.0, 0.1, 0.4, 0.2, 0.4, 0.3, 9.0]), torch.arange(1, 6)
    assert DyCokeDecode(ratio=0.5)(row.half(), visual).tolist() == [2, 4, 5]
    assert DyCokeDecode(ratio=0.7)(row, visual).tolist() == [2, 5]
    assert DyCokeDecode(ratio=0.9)(row, visual).tolist() == [5]
    assert DyCokeDecode(ratio=0.0)(row, visual) is DyCokeDecode()(row, visual[:0]) is None
    with pytest.raises(BadUsage, match="DyCokeDecode at layer 3 hold a NaN"):
        DyCokeDecode()(row / 0 * 0, visual)
