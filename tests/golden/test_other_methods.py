"""DyCoke, FastVID, PruneVid, ToMe and VisionZip before the language model, against what the released codes returned."""

import math

import pytest
import torch
from loader import Golden, cases, grid_of

from holitom.methods.dycoke import temporal_merging
from holitom.methods.fastvid import FastVID
from holitom.methods.prunevid import PruneVid, refine_runs
from holitom.methods.tome import bipartite_matching
from holitom.methods.visionzip import VisionZip
from holitom.types import VideoFeatures

NEAR = {"atol": 1e-5, "rtol": 0}
FASTVID = {
    "segments": "DySeg_c",
    "tau": "DySeg_tau",
    "context": "STPrune_d",
    "step": "DTM_p",
    "beta": "DTM_beta",
    "k": "k",
}
"""Our fields and the release's names."""


@pytest.mark.parametrize(("name", "run"), cases("dycoke_ttm"))
def test_dycokes_temporal_merging(name, run):
    golden = Golden(name)
    setting = golden.runs[run]
    video = VideoFeatures(golden[run, "features"], (1, setting["N"]))
    kept = temporal_merging(video, int((1 - setting["K"]) * setting["N"]))
    lost = setting["N"] if setting["T"] % 2 else 0  # the release drops an odd last frame, which stays whole here
    assert kept.frame[len(kept) - lost :].tolist() == [setting["T"] - 1] * lost
    for ours, theirs in (("frame", "token_frame"), ("cell", "token_cell"), ("tokens", "tokens")):
        assert torch.equal(getattr(kept, ours)[: len(kept) - lost], golden[run, theirs])


@pytest.mark.parametrize(("name", "run"), cases("fastvid_ov"))
def test_fastvid(name, run):
    golden = Golden(name)
    setting, features = golden.runs[run], golden[run, "features"]
    embed, attention = golden[run, "frame_global_features"], golden[run, "attn"]
    video = VideoFeatures(features, grid_of(features.shape[1]), frame_embed=embed, head_saliency=attention)
    method = FastVID(**{ours: setting[theirs] for ours, theirs in FASTVID.items()})
    edges = torch.cat([torch.tensor([-1]), method.ends(embed).nonzero()[:, 0], torch.tensor([len(embed) - 1])])
    assert torch.equal(edges.diff(), golden[run, "segment_sizes"])
    kept = method(video, setting["retention_ratio"])
    assert torch.equal(kept.frame * video.cells + kept.cell, golden[run, "token_index"])
    torch.testing.assert_close(kept.tokens, golden[run, "tokens"], **NEAR)


@pytest.mark.parametrize(("name", "run"), cases("prunevid_refine"))
def test_prunevids_refined_runs(name, run):
    golden = Golden(name)
    assert refine_runs(golden[run, "labels"].numpy()).tolist() == golden[run, "refined"].tolist()


@pytest.mark.parametrize(("name", "run"), cases("prunevid_merge"))
def test_prunevids_merging(name, run):
    golden = Golden(name)
    setting, features = golden.runs[run], golden[run, "features"]
    video = VideoFeatures(features, grid_of(features.shape[1]))
    method = PruneVid(setting["tau"], setting["temporal_segment_ratio"], setting["k"])
    assert method.frame_labels(video).tolist() == golden[run, "frame_labels"].tolist()
    windows = method.windows(video)
    assert windows.lengths.tolist() == golden[run, "window_sizes"].tolist()
    assert windows.static.tolist() == golden[run, "static_mask"].tolist()
    kept = method.merge(video, windows, setting["cluster_ratio"])
    torch.testing.assert_close(kept.tokens, golden[run, "tokens"], **NEAR)


@pytest.mark.parametrize(("name", "run"), cases("tome_merge"))
def test_tomes_rounds(name, run):
    golden = Golden(name)
    setting, guarded = golden.runs[run], golden.runs[run]["class_token"]
    values = {part: golden[run, part] for part in ("x", "metric")}
    size, source = golden[run, "size"], torch.eye(len(values["x"]))
    for j, wanted in enumerate(setting["r"]):
        away = max(0, min(wanted, (len(size) - guarded) // 2))  # a round merges half at most
        into, order = bipartite_matching(values["metric"][None], torch.tensor([away]), class_token=guarded)
        belongs = (order[0, : len(size) - away, None] == into[0]).float()
        weight = belongs * size
        size, source = weight.sum(1), belongs @ source
        values = {part: weight @ value / size[:, None] for part, value in values.items()}
        for part, value in {**values, "size": size}.items():
            torch.testing.assert_close(value, golden[run, f"round{j}/{part}"], **NEAR)
    assert torch.equal(source.to(torch.uint8), golden[run, "source"])


@pytest.mark.parametrize(("name", "run"), cases("visionzip_port"))
def test_visionzips_port_to_video(name, run):
    golden = Golden(name)
    setting = golden.runs[run]
    features, saliency, keys = (golden[run, part] for part in ("features", "attn", "metric"))
    stage = VisionZip(dominant_ratio=setting["DOMINANT_RATIO"])
    kept = stage(VideoFeatures(features, (1, setting["N"]), saliency, keys), setting["SPATIAL_TOKENS"] / setting["N"])
    cells = torch.cat([golden[run, "dominant_cells"], golden[run, "contextual_cells"]], dim=1)
    assert torch.equal(kept.cell.view_as(cells), cells)
    assert torch.equal(kept.frame, torch.arange(setting["T"]).repeat_interleave(cells.shape[1]))
    newline = golden[run, "image_newline"][None]
    grid = setting["newline"] == "grid"
    prompt = in_rows(kept, saliency, setting, newline) if grid else torch.cat([kept.tokens, newline])
    torch.testing.assert_close(prompt, golden[run, "prompt_tokens"], **NEAR)


def in_rows(kept, saliency, setting, newline):
    """With a newline per row the port puts dominant tokens, in raster order, at the dominant cells in order of
    saliency, and ends empty rows with a newline as well. No method offers that; rebuilt here from the tokens."""
    side, dominant, out = math.isqrt(setting["N"]), setting["dominant"], []
    ranked = saliency.sort(dim=1, descending=True).indices[:, :dominant]
    for t in range(setting["T"]):
        mine = kept.frame == t
        cells = torch.cat([ranked[t], kept.cell[mine][dominant:]])
        for row in range(side):
            there = (cells // side == row).nonzero().flatten()
            out += [kept.tokens[mine][there[cells[there].argsort()]], newline]
    return torch.cat(out)
