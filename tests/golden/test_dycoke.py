import pytest
import torch
from loader import Golden, cases

from holitom.methods.dycoke import temporal_merging
from holitom.types import VideoFeatures


@pytest.mark.parametrize(("name", "run"), cases("dycoke_ttm"))
def test_token_temporal_merging_equals_the_release(name, run):
    golden = Golden(name)
    setting = golden.runs[run]
    video = VideoFeatures(golden[run, "features"], (1, setting["N"]))
    kept = temporal_merging(video, int((1 - setting["K"]) * setting["N"]))
    lost = setting["N"] if setting["T"] % 2 else 0  # the release drops an odd last frame, which stays whole here
    assert kept.frame[len(kept) - lost :].tolist() == [setting["T"] - 1] * lost
    for ours, theirs in (("frame", "token_frame"), ("cell", "token_cell"), ("tokens", "tokens")):
        assert torch.equal(getattr(kept, ours)[: len(kept) - lost], golden[run, theirs])
