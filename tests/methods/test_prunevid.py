import numpy as np
import pytest
import shapes
import torch

from golden.loader import HERE, Golden, cases
from holitom.errors import BadUsage
from holitom.methods.inputs import budget_tokens
from holitom.methods.prunevid import PruneVid, _pair_cosine, _sum_squares_together, refine_runs
from holitom.types import Outer, VideoFeatures

torch.set_num_threads(1)
REFINE = np.load(HERE / "prunevid_refine.npz")


@pytest.mark.parametrize("run", range(40))
def test_refining_runs_equals_the_release(run):
    refined = refine_runs(REFINE[f"run{run}/labels"])
    assert refined.tolist() == REFINE[f"run{run}/refined"].tolist()


@pytest.mark.parametrize(("name", "run"), cases("prunevid_merge"))
def test_released_mode_equals_the_release(name, run):
    golden = Golden(name)
    setting = golden.runs[run]
    features = golden[run, "features"]
    side = int(features.shape[1] ** 0.5)
    video = VideoFeatures(features, (side, side))
    method = PruneVid(setting["tau"], setting["temporal_segment_ratio"], setting["k"], setting["cluster_ratio"], True)
    assert method.frame_labels(video).tolist() == golden[run, "frame_labels"].tolist()
    windows = method.segments(video)
    assert windows.lengths.tolist() == golden[run, "window_sizes"].tolist()
    assert windows.static.tolist() == golden[run, "static_mask"].tolist()
    kept = method(video, 0.5)
    torch.testing.assert_close(kept.tokens, golden[run, "tokens"], atol=1e-5, rtol=0)
    assert len(kept.group) == len(kept)
    assert kept.size.sum() == video.frames * video.cells  # every source token is in exactly one cluster


def test_mean_cosine_of_pairs_equals_every_pair_either_way():
    tokens = torch.randn(9, 6, 5, generator=torch.Generator().manual_seed(3))
    tokens[4, 2] = 0
    first, length = np.array([0, 1, 5]), np.array([1, 4, 4])
    unit = torch.nn.functional.normalize(tokens, dim=-1)
    expected = torch.zeros(3, 6)
    for w, (begin, n) in enumerate(zip(first, length, strict=True)):
        pairs = [
            (unit[i] * unit[j]).sum(-1) for i in range(begin, begin + n) for j in range(begin, begin + n) if i != j
        ]
        expected[w] = sum(pairs) / max(1, len(pairs))
    norms = tokens.norm(dim=-1)
    torch.testing.assert_close(_pair_cosine(tokens, norms, first, length), expected, atol=1e-6, rtol=0)
    weight, sums = 1 / norms.clamp_min(1e-12), torch.zeros(3, 6)
    for w, (begin, n) in enumerate(zip(first, length, strict=True)):
        sums[w] = unit[begin : begin + n].sum(0).square().sum(-1)
    together = _sum_squares_together(tokens, weight, torch.from_numpy(first))
    torch.testing.assert_close(together, sums, atol=1e-5, rtol=0)


@pytest.mark.parametrize("shape", shapes.SHAPES, ids=str)
@pytest.mark.parametrize("released", [False, True])
def test_counts_and_shapes(shape, released):
    video = shapes.scenes(*shape)
    total = video.frames * video.cells
    for budget in shapes.BUDGETS:
        method = PruneVid(released=released)
        kept = method(video, budget)
        shapes.check(kept, video)
        assert shapes.same(kept, method(video, budget))
        if budget == 1.0:
            assert torch.equal(kept.tokens, video.tokens.flatten(0, 1))
        elif not released:
            left = total - method.segments(video).removed
            assert len(kept) == min(left, budget_tokens(video, budget))
        if budget < 1 and released:
            assert kept.size.sum() == total


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype):
    kept = PruneVid()(shapes.scenes(9, (4, 4), 16, dtype=dtype), 0.3)
    assert kept.tokens.dtype == dtype
    assert len(kept) == round(0.3 * 9 * 16)


@pytest.mark.parametrize("value", [0.0, 3.0])
@pytest.mark.parametrize("released", [False, True])
def test_equal_tokens_merge_to_themselves(value, released):
    video = shapes.equal(8, (4, 4), 8, value)
    kept = PruneVid(released=released)(video, 0.25)
    shapes.check(kept, video)
    assert torch.equal(kept.tokens, torch.full_like(kept.tokens, value))
    if not released:
        assert len(kept) == min(32, 8 * 16 - PruneVid().segments(video).removed)


def test_clean_order_is_windows_then_static_then_frames_by_cell():
    video = shapes.scenes(20, (4, 5), 16, seed=3)
    windows = PruneVid().segments(video)
    kept = PruneVid()(video, 0.4)
    assert (kept.group.diff() >= 0).all()
    owner = torch.from_numpy(np.repeat(np.arange(len(windows)), windows.lengths))
    assert (owner[kept.frame].diff() >= 0).all()
    for group in kept.group.unique():
        inside = kept.group == group
        assert (kept.cell[inside].diff() > 0).all()
        assert len(kept.frame[inside].unique()) == 1
    assert windows.static.any() and not windows.static.all()


def test_static_cells_are_those_alike_over_all_pairs_of_the_window():
    video = shapes.scenes(12, (3, 3), 8, seed=5)
    video.tokens[:, 4] = 0
    windows = PruneVid(tau=0.5).segments(video)
    unit = torch.nn.functional.normalize(video.tokens.double(), dim=-1)
    for (first, last), static in zip(windows.pairs, windows.static, strict=True):
        length = last - first + 1
        cosine = torch.einsum("tnd,und->ntu", unit[first : last + 1], unit[first : last + 1])
        mean = [sum(float(c[i, j]) for i in range(length) for j in range(length) if i != j) for c in cosine]
        expected = [m / (length * (length - 1)) > 0.5 if length > 1 else False for m in mean]
        assert static.tolist() == expected
    assert max(windows.lengths) > 1


def test_a_nan_is_refused_by_name_and_frame():
    video = shapes.scenes(6, (3, 3), 8)
    video.tokens[4, 2, 1] = float("nan")
    with pytest.raises(BadUsage, match="tokens hold a NaN or an infinity, first in frame 4"):
        PruneVid()(video, 0.5)


def test_settings_are_checked():
    with pytest.raises(BadUsage, match="set released=True"):
        PruneVid(cluster_ratio=0.5)
    with pytest.raises(BadUsage):
        PruneVid(k=0)
    with pytest.raises(BadUsage, match="budget"):
        PruneVid()(shapes.scenes(2, (2, 2), 4), 0.0)
    assert PruneVid(released=True).fidelity == "golden" and PruneVid().fidelity == "port"
    assert isinstance(PruneVid(), Outer)
