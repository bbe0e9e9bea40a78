"""The same generation in other circumstances: on a CUDA device, and in half precision."""

from __future__ import annotations

import copy

import pytest
import torch
from seam import batch, tiny_model

from holitom.attach import reduce_tokens
from holitom.errors import CannotRun
from holitom.versions import require_transformers


def on_cuda_as_on_cpu(model, reduction, inputs, generate):
    """Same tokens, and logits but for rounding. Returns the block on the device. Skipped where generate is refused."""
    try:
        require_transformers()
    except CannotRun as error:
        pytest.skip(str(error))
    with reduce_tokens(model, reduction=reduction):
        expected = model.generate(**inputs, **generate)
    moved = copy.deepcopy(model).cuda()
    with reduce_tokens(moved, reduction=reduction) as run:
        out = moved.generate(**{k: v.cuda() for k, v in inputs.items()}, **generate)
    assert torch.equal(out.sequences.cpu(), expected.sequences)
    torch.testing.assert_close(torch.stack(out.logits).cpu(), torch.stack(expected.logits), atol=2e-3, rtol=0)
    return run


def beams_in_half_precision(dtype, reduction, rows, clips, generate):
    """Finite logits from stages that acted. Returns what was generated, and the inputs."""
    half = tiny_model(dtype=dtype)
    inputs = {**batch(*rows), "pixel_values_videos": clips.to(dtype)}
    with reduce_tokens(half, reduction=reduction) as run:
        out = half.generate(**inputs, **generate, num_beams=2)
    assert all(torch.isfinite(step).all() for step in out.logits)
    assert run.stats.acted
    return out, inputs
