"""HoliTom's further options: a similarity threshold instead of the optimal cut, and clusters beside salient tokens."""

import numpy as np
import pytest
import shapes
import torch

from holitom.errors import BadUsage
from holitom.methods import HoliTom
from holitom.ops.selection import keep_count
from holitom.types import VideoFeatures


@pytest.mark.parametrize("shape", shapes.SHAPES, ids=str)
@pytest.mark.parametrize(
    "fields", [{"segmentation": "threshold"}, {"cluster_share": 0.3}, {"cluster_share": 0.5, "beta": None}], ids=str
)
def test_exact_counts_on_any_shape(shape, fields):
    video = shapes.scenes(*shape)
    method = HoliTom(counts="exact", **fields)
    left = video.frames * video.cells - method.segments(video).removed
    for budget in shapes.BUDGETS[:-1]:
        kept = method(video, budget)
        shapes.check(kept, video)
        assert shapes.same(kept, method(video, budget))
        assert len(kept) == min(left, max(1, round(budget * (video.frames * video.cells))))


def test_the_defaults_change_nothing():
    video = shapes.scenes(16, (4, 4), 32)
    assert shapes.same(HoliTom()(video, 0.2), HoliTom(min_similar=0.9, cluster_share=0.0)(video, 0.2))


def test_all_to_clusters_is_dynamic_by_cluster():
    video = shapes.scenes(16, (4, 4), 32)
    kept = HoliTom(cluster_share=1.0)(video, 0.3)
    assert shapes.same(kept, HoliTom(dynamic_by="cluster")(video, 0.3))
    assert not shapes.same(kept, HoliTom()(video, 0.3))


@pytest.mark.parametrize("share", [0.25, 0.5])
def test_a_share_of_every_frames_budget_goes_to_clusters_of_the_rest(share):
    """Without segments every token is dynamic: the most salient ones stay as they are, the others stand for all."""
    video = shapes.scenes(6, (3, 4), 16, seed=3)
    kept = HoliTom(segmentation="none", cluster_share=share)(video, 0.5)
    salient = keep_count(6, 1 - share, "round")
    for frame in range(6):
        mine = kept.frame == frame
        assert int(mine.sum()) == 6 and float(kept.size[mine].sum()) == 12 and kept.cell[mine].diff().min() > 0
        top = video.saliency[frame].topk(salient).indices
        rows = {int(c): row for c, row in zip(kept.cell[mine], kept.tokens[mine], strict=True)}
        assert set(top.tolist()) <= set(rows)
        for cell in top.tolist():
            assert torch.equal(rows[cell], video.tokens[frame, cell])


def test_the_threshold_cuts_where_the_picture_changes():
    still, other = torch.eye(4)[[0, 1]], torch.eye(4)[[2, 3]]
    video = VideoFeatures(torch.stack([still, still, other, other, other]), (1, 2), torch.rand(5, 2))
    method = HoliTom(segmentation="threshold")
    assert method.segments(video).pairs == [(0, 1), (2, 4)]
    assert method.segments(video).removed == 2 + 4
    assert len(HoliTom(segmentation="threshold", min_similar=0.0).segments(video)) == 1
    assert method.fidelity == HoliTom(cluster_share=0.5).fidelity == "reconstruction"


def test_the_optimum_is_never_below_the_threshold():
    for seed in range(10):
        video = shapes.scenes(24, (4, 4), 16, seed=seed)
        for share in (0.0, 0.4, 0.8, 1.0):
            other = HoliTom(segmentation="threshold", min_similar=share).segments(video).removed
            assert HoliTom().segments(video).removed >= other


@pytest.mark.parametrize("wrong", [{"cluster_share": 1.5}, {"min_similar": -0.1}, {"cluster_share": np.nan}])
def test_shares_outside_the_range_are_refused(wrong):
    with pytest.raises(BadUsage, match="is outside"):
        HoliTom(**wrong)
