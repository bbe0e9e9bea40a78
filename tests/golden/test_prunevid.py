"""PruneVid's merging stage against what the released code returned."""

import pytest
import torch
from loader import Golden, cases, grid_of

from holitom.methods.prunevid import PruneVid, refine_runs
from holitom.types import VideoFeatures


@pytest.mark.parametrize(("name", "run"), cases("prunevid_refine"))
def test_refined_runs(name, run):
    golden = Golden(name)
    assert refine_runs(golden[run, "labels"].numpy()).tolist() == golden[run, "refined"].tolist()


@pytest.mark.parametrize(("name", "run"), cases("prunevid_merge"))
def test_merging(name, run):
    golden = Golden(name)
    setting, features = golden.runs[run], golden[run, "features"]
    video = VideoFeatures(features, grid_of(features.shape[1]))
    method = PruneVid(setting["tau"], setting["temporal_segment_ratio"], setting["k"])
    assert method.frame_labels(video).tolist() == golden[run, "frame_labels"].tolist()
    windows = method.windows(video)
    assert windows.lengths.tolist() == golden[run, "window_sizes"].tolist()
    assert windows.static.tolist() == golden[run, "static_mask"].tolist()
    kept = method.merge(video, windows, setting["cluster_ratio"])
    torch.testing.assert_close(kept.tokens, golden[run, "tokens"], atol=1e-5, rtol=0)
