import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from golden.loader import Golden, cases
from holitom_repro.bench import peak_bytes
from holitom.errors import BadUsage
from holitom.methods.dycoke import DyCoke, DyCokeDecode
from holitom.types import Decode, Outer, VideoFeatures


def video_of(frames, grid=(3, 4), dim=6, seed=0, dtype=torch.float32):
    draw = torch.Generator().manual_seed(seed)
    return VideoFeatures(torch.randn(frames, grid[0] * grid[1], dim, generator=draw).to(dtype), grid)


def budget_of(removed):
    """The budget whose compressed frames lose the share ``removed`` (the paper's K)."""
    return (1 + 3 * (1 - removed)) / 4


@pytest.mark.parametrize(("name", "run"), cases("dycoke_ttm"))
def test_released_mode_equals_the_released_code(name, run):
    golden = Golden(name)
    setting = golden.runs[run]
    side = math.isqrt(setting["N"])
    kept = DyCoke(released=True)(VideoFeatures(golden[run, "features"], (side, side)), budget_of(setting["K"]))
    assert torch.equal(kept.frame, golden[run, "token_frame"])
    assert torch.equal(kept.cell, golden[run, "token_cell"])
    assert torch.equal(kept.tokens, golden[run, "tokens"])


def test_released_counts_at_32_frames():
    video = video_of(32, (14, 14))
    assert len(DyCoke(released=True)(video, 0.25)) == 1764  # 28.1 %: the last window keeps two whole frames
    assert len(DyCoke()(video, 0.25)) == 1568
    assert len(DyCoke(released=True)(video, budget_of(0.7))) == 3098


def test_both_readings_keep_the_same_cells_but_for_the_last_window():
    video = video_of(16, (5, 5), seed=3)
    clean, released = DyCoke()(video, budget_of(0.6)), DyCoke(released=True)(video, budget_of(0.6))
    ours, theirs = (
        {(f, c) for f, c in zip(k.frame.tolist(), k.cell.tolist(), strict=True) if f != 14} for k in (clean, released)
    )
    assert ours == theirs
    assert (released.frame == 14).sum() == 25
    assert (clean.frame == 14).sum() == 10


def test_kept_cells_are_the_ones_that_changed():
    still = torch.eye(4)  # four cells that differ from one another
    changed = still.clone()
    changed[2] = -still[2]
    tokens = torch.stack([still, changed, still, still])
    kept = DyCoke()(VideoFeatures(tokens, (2, 2)), 0.45)  # 7 of 16: one cell of each compressed frame
    assert kept.frame.tolist() == [0, 0, 0, 0, 1, 2, 3]
    assert kept.cell.tolist() == [0, 1, 2, 3, 2, 0, 0]  # equal similarities: the lowest cell


def test_a_static_video_at_the_least_budget_keeps_every_fourth_frame():
    picture = torch.randn(9, 5)
    kept = DyCoke()(VideoFeatures(picture.expand(12, 9, 5), (3, 3)), 0.25)
    assert torch.equal(kept.tokens, picture.repeat(3, 1))
    assert kept.frame.unique().tolist() == [0, 4, 8]


@settings(deadline=None, max_examples=40)
@given(
    st.integers(1, 64),
    st.integers(1, 14),
    st.integers(1, 14),
    st.integers(4, 64),
    st.floats(0.25, 1.0),
    st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
)
def test_counts_are_exact_and_tokens_stay_as_they_are(frames, height, width, dim, budget, dtype):
    video = video_of(frames, (height, width), dim, seed=frames, dtype=dtype)
    kept = DyCoke()(video, budget)
    cells = video.cells
    least = cells if frames < 4 else 1
    assert len(kept) == max(least, round(budget * (frames * cells)))
    places = kept.frame * cells + kept.cell
    assert (places.diff() > 0).all()
    assert torch.equal(kept.tokens, video.tokens.flatten(0, 1)[places])


@pytest.mark.parametrize("fill", [0.0, 1.0])
@pytest.mark.parametrize("frames", [1, 2, 5, 33])
def test_equal_tokens_and_zeros_are_no_special_case(fill, frames):
    video = VideoFeatures(torch.full((frames, 6, 4), fill), (2, 3))
    assert len(DyCoke()(video, 0.5)) == max(6, round(0.5 * (frames * 6)))
    assert torch.equal(DyCoke()(video, 0.5).cell, DyCoke()(video, 0.5).cell)


def test_what_it_cannot_do_is_refused():
    video = video_of(16)
    with pytest.raises(BadUsage, match=r"below what it can reach.*window=10"):
        DyCoke()(video, 0.1)
    assert len(DyCoke(window=10)(video_of(20), 0.1)) == 24
    with pytest.raises(BadUsage, match="fails on 4 frames"):
        DyCoke(released=True)(video_of(4), 0.5)
    with pytest.raises(BadUsage, match="windows of 4"):
        DyCoke(window=8, released=True)
    with pytest.raises(BadUsage, match="outside"):
        DyCoke()(video, 0.0)
    video.tokens[7, 3, 1] = torch.nan
    with pytest.raises(BadUsage, match="tokens hold a NaN or an infinity, first in frame 7"):
        DyCoke()(video, 0.5)


@pytest.mark.parametrize("budget", [0.1, 0.25, 0.9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_extra_memory_is_at_most_three_inputs(dtype, budget):
    video = video_of(32, (8, 8), 512, dtype=dtype)
    assert peak_bytes(lambda: DyCoke(window=10)(video, budget)) <= 3 * video.tokens.nbytes


def test_it_says_how_faithful_it_is():
    assert isinstance(DyCoke(), Outer)
    assert [DyCoke().fidelity, DyCoke(released=True).fidelity, DyCoke(window=8).fidelity] == [
        "port",
        "golden",
        "reconstruction",
    ]
    video = video_of(6)
    assert torch.equal(DyCoke()(video, 1.0).tokens, video.tokens.flatten(0, 1))


def test_decode_reads_what_the_newest_token_attends_to():
    stage = DyCokeDecode(layer=3, ratio=0.5)
    assert isinstance(stage, Decode)
    row = torch.tensor([9.0, 0.1, 0.4, 0.2, 0.4, 0.3, 9.0])
    visual = torch.arange(1, 6)
    assert stage(row, visual).tolist() == [2, 4]
    assert stage(row.half(), visual).tolist() == [2, 4]
    assert DyCokeDecode(ratio=0.9)(row, visual).tolist() == [2]  # at least one
    assert DyCokeDecode(ratio=0.0)(row, visual) is None
    assert stage(row, visual[:0]) is None


def test_decode_as_released_always_reads_the_last_and_stops_selecting_while_attention_stays():
    stage = DyCokeDecode(ratio=0.5, released=True)
    row = torch.tensor([9.0, 0.1, 0.4, 0.2, 0.5, 0.3, 9.0])
    visual = torch.arange(1, 6)
    assert stage(row, visual).tolist() == [2, 4, 5]
    assert stage(row, visual, previous=row[:-1]) is None
    assert stage(row, visual, previous=torch.tensor([9.0, 1.0, 0, 0, 0, 0])).tolist() == [2, 4, 5]
    clean = DyCokeDecode(ratio=0.5)
    assert clean(row, visual, previous=row[:-1]).tolist() == clean(row, visual).tolist()


@pytest.mark.parametrize("released", [False, True])
def test_decode_refuses_a_nan_by_name(released):
    stage, row = DyCokeDecode(ratio=0.5, released=released), torch.rand(8)
    row[3] = float("nan")
    with pytest.raises(BadUsage, match="DyCokeDecode at layer 3 hold a NaN"):
        stage(row, torch.arange(1, 6))


def test_only_the_release_compares_with_the_step_before():
    assert DyCokeDecode(released=True).reads_previous and not DyCokeDecode().reads_previous
    assert DyCokeDecode(ratio=0.0).identity and not DyCokeDecode().identity


@pytest.mark.parametrize("wrong", [{"layer": 0}, {"ratio": 1.0}, {"ratio": -0.1}])
def test_decode_settings_outside_their_range_are_refused(wrong):
    with pytest.raises(BadUsage):
        DyCokeDecode(**wrong)
