"""FastVID against what the released code for LLaVA-OneVision returned."""

import pytest
import torch
from loader import Golden, cases, grid_of

from holitom.methods.fastvid import FastVID
from holitom.types import VideoFeatures

NAMES = {
    "segments": "DySeg_c",
    "tau": "DySeg_tau",
    "context": "STPrune_d",
    "step": "DTM_p",
    "beta": "DTM_beta",
    "k": "k",
}


@pytest.mark.parametrize(("name", "run"), cases("fastvid_ov"))
def test_tokens_and_their_places(name, run):
    golden = Golden(name)
    setting, features = golden.runs[run], golden[run, "features"]
    embed, attention = golden[run, "frame_global_features"], golden[run, "attn"]
    video = VideoFeatures(features, grid_of(features.shape[1]), frame_embed=embed, head_saliency=attention)
    method = FastVID(**{ours: setting[theirs] for ours, theirs in NAMES.items()})
    edges = torch.cat([torch.tensor([-1]), method.ends(embed).nonzero()[:, 0], torch.tensor([len(embed) - 1])])
    assert torch.equal(edges.diff(), golden[run, "segment_sizes"])
    kept = method(video, setting["retention_ratio"])
    assert torch.equal(kept.frame * video.cells + kept.cell, golden[run, "token_index"])
    torch.testing.assert_close(kept.tokens, golden[run, "tokens"], atol=1e-5, rtol=0)
