"""A LLaVA-OneVision of 0.2 M random weights, large enough in scale that a wrong mask or position shows in the logits."""

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
