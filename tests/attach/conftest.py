"""A tiny LLaVA-OneVision whose random weights are large enough for a wrong mask or position to show in the logits."""

from __future__ import annotations

import pytest
import torch
from seam import tiny_model

torch.set_num_threads(1)


@pytest.fixture(scope="session", params=["sdpa", "eager"])
def model(request):
    return tiny_model(request.param)


@pytest.fixture(scope="session")
def sdpa():
    return tiny_model("sdpa")
