"""The released code's loader, on a miniature of its two files: what is taken, what is stubbed, what is refused."""

import sys

import pytest
import torch

from holitom.errors import CannotRun
from holitom_repro.latency.release_code import Released

ARCH = """
from abc import ABC
from llava.constants import IGNORE_INDEX
from llava.mm_utils import get_anyres_image_grid_shape
from llava.utils import rank0_print, rank_print

class Meta(ABC):
    def select_static_windows(self, similarity, frames, tau, longest):
        return [(0, frames - 1)], 0
    def get_static_dynamic_features(self, tokens, attention, windows, similarity, tau):
        return [tokens[:, :1].mean(0)], [tokens[:, 1:]], None, [attention], [None], [None]
    def holitom(self, static, dynamic, attention, static_at, dynamic_at, length, ratio, D, beta, k, dtype, newline):
        return torch.cat([static, dynamic.flatten(0, 1)])[: round(ratio * 100)]

import torch
"""
DECODER = """
from transformers.nowhere import Gone

class Model:
    def forward(self):
        for layer_idx in range(9):
            if layer_idx < HOLITOM_k:
                pass
            elif layer_idx == HOLITOM_k and position_ids.size(1) > 1:
                print("noise")
                non_topk_states = hidden_states
                keep = torch.arange(HOLITOM_image_token_start_index + round(HOLITOM_image_token_length * HOLITOM_r))
                hidden_states = hidden_states[:, keep]
"""


@pytest.fixture
def checkout(tmp_path):
    folder = tmp_path / "holitom"
    folder.mkdir()
    (folder / "llava_arch.py").write_text(ARCH)
    (folder / "modeling_qwen2.py").write_text(DECODER)
    return tmp_path


def test_both_stages_run_without_their_packages(checkout, capsys):
    from holitom_repro.latency.content import drawn_video, forced

    before = sys.modules.get("llava")
    released = Released(checkout)
    assert sys.modules.get("llava") is before and "llava.constants" not in sys.modules
    video = drawn_video(forced(0.5), 3, (2, 2), 8, requires=("saliency",))
    assert released.outer(video, 0.05, 0.8).shape == (5, 8)
    assert released.inner(torch.zeros(1, 20, 8), torch.zeros(1, 2, 20, 20), 4, 10, 0.5).shape == (1, 9, 8)
    assert capsys.readouterr().out == ""


def test_what_is_not_the_release_is_refused(checkout):
    (checkout / "holitom" / "modeling_qwen2.py").write_text("x = 1")
    with pytest.raises(CannotRun, match="no merging block"):
        Released(checkout)
    (checkout / "holitom" / "llava_arch.py").write_text("x = 1")
    with pytest.raises(CannotRun, match="select_static_windows"):
        Released(checkout)
    (checkout / "holitom" / "llava_arch.py").unlink()
    with pytest.raises(CannotRun, match="Git clone"):
        Released(checkout)
