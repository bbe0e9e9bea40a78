"""Both stages of HoliTom against what the released code returned."""

import numpy as np
import pytest
import torch
from loader import Golden, cases, grid_of

from holitom.methods.holitom import HoliTom, HoliTomMerge
from holitom.ops.clusters import density_peaks, merge_members
from holitom.ops.segments import above, cut
from holitom.ops.tensors import ids_of
from holitom.types import VideoFeatures


@pytest.mark.parametrize(("name", "run"), cases("holitom_outer"))
def test_outer_stage(name, run):
    golden = Golden(name)
    setting = golden.runs[run]
    video = VideoFeatures(golden["features"], grid_of(setting["N"]), golden["attn"])
    method = HoliTom(setting["tau"], setting["beta"], setting["K"], setting["max_window"])
    kept, segments = method(video, setting["ratio"]), method.segments(video)
    assert segments.pairs == [tuple(pair) for pair in golden[run, "segments"].tolist()]
    assert segments.removed == int(golden[run, "total_reduced"])
    assert torch.equal(torch.from_numpy(segments.static), golden[run, "static_mask"].bool())
    if (run, "token_frame") in golden:
        counts = [int(((kept.frame >= a) & (kept.frame <= b)).sum()) for a, b in segments.pairs]
        assert counts == golden[run, "per_segment_tokens"].tolist()
        torch.testing.assert_close(kept.tokens, golden[run, "tokens"], atol=1e-5, rtol=0)
        assert torch.equal(kept.frame, golden[run, "token_frame"].long())
        assert torch.equal(kept.cell, golden[run, "token_cell"].long())


@pytest.mark.parametrize(("name", "run"), cases("holitom_segments"))
def test_segments(name, run):
    golden = Golden(name)
    setting = golden.runs[run]
    found = cut(above(golden[run, "sim"], setting["tau"]).numpy(), setting["max_window"])
    assert found.pairs == [tuple(pair) for pair in golden[run, "segments"].tolist()]
    assert found.removed == int(golden[run, "total_reduced"])


@pytest.mark.parametrize(("name", "run"), cases("holitom_cluster"))
def test_clusters(name, run):
    golden = Golden(name)
    setting, rows = golden.runs[run], golden[run, "x"]
    count = setting["clusters"]
    if not count:
        assert len(golden[run, "tokens"]) == 0  # the outer stage leaves such a group out
        return
    centre, owner = density_peaks(rows, np.array([len(rows)]), np.array([count]), setting["K"])
    centres = ids_of(centre, count)
    assert torch.equal(centres, golden[run, "centres"].long())
    assert torch.equal(golden[run, "pos"][centres], golden[run, "token_pos"])
    merged, _ = merge_members(rows, owner, centres, None if setting["no_beta"] else setting["beta"])
    torch.testing.assert_close(merged, golden[run, "tokens"], atol=1e-5, rtol=0)


@pytest.mark.parametrize(("name", "run"), cases("holitom_inner_step"))
def test_inner_step(name, run):
    golden = Golden(name)
    setting, score = golden.runs[run], golden[run, "attn_last_row"].mean(0)
    visual = torch.arange(setting["image_start"], setting["image_start"] + setting["image_len"])
    keep, rows = HoliTomMerge(layer=3, ratio=setting["r"])(golden[run, "hidden"], score, visual, n0=len(visual))
    assert torch.equal(keep, golden[run, "keep_index"].long())
    torch.testing.assert_close(rows, golden[run, "merged"], atol=1e-5, rtol=0)
