"""In which precision a stage computes."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch


def own_precision(device: torch.device) -> AbstractContextManager:
    """For a stage's call: the precision that the stage itself chooses. An autocast around the block would round the
    similarities that it takes in float32, and so keep other tokens."""
    if torch.amp.is_autocast_available(device.type) and torch.is_autocast_enabled(device.type):
        return torch.autocast(device.type, enabled=False)
    return nullcontext()
