import math

import pytest
import torch
from loader import Golden, cases

from holitom.methods.visionzip import VisionZip
from holitom.types import VideoFeatures


@pytest.mark.parametrize(("name", "run"), cases("visionzip_port"))
def test_tokens_and_cells_equal_the_port_to_video(name, run):
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
    torch.testing.assert_close(prompt, golden[run, "prompt_tokens"], atol=1e-5, rtol=0)


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
