"""The hosts of the seam tests, each a tiny random model of one family, and the stages of tests/attach."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "attach"))  # seam: stages that do exactly what a test needs

torch.set_num_threads(1)


def _hosts():
    from next_video_host import NextVideoHost
    from qwen_host import QwenHost
    from video_host import VideoHost

    return {"qwen2_5_vl": QwenHost, "llava_next_video": NextVideoHost, "llava_video": VideoHost}


@pytest.fixture(scope="session", params=["qwen2_5_vl", "llava_next_video", "llava_video"])
def host(request):
    return _hosts()[request.param]("sdpa").ready()


@pytest.fixture(scope="session", params=["sdpa", "eager"])
def qwen(request):
    return _hosts()["qwen2_5_vl"](request.param).ready()


@pytest.fixture(scope="session")
def next_video():
    return _hosts()["llava_next_video"]("sdpa").ready()
