"""Lack of memory is a result whoever says it; a lost device is not."""

import pytest
import torch

from holitom.errors import BadUsage
from holitom.latency import backends, shapes
from holitom.latency.faults import device_lost, out_of_memory
from holitom.latency.inputs import make_inputs
from holitom.latency.timeline import HostClock


@pytest.mark.parametrize(
    ("error", "memory", "lost"),
    [
        (torch.OutOfMemoryError("CUDA out of memory."), True, False),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True, False),
        (RuntimeError("CUDA error: device-side assert triggered"), False, True),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), False, True),
        (RuntimeError("shapes cannot be multiplied"), False, False),
        (ValueError("out of memory"), False, False),
    ],
)
def test_what_an_error_says(error, memory, lost):
    assert (out_of_memory(error), device_lost(error)) == (memory, lost)


def test_no_backend_is_tried_on_a_lost_device(monkeypatch):
    def lost(*args, **more):
        raise RuntimeError("CUDA error: device-side assert triggered")

    loaded = shapes.load("tiny", dtype="float32")
    monkeypatch.setattr(backends, "run_pass", lost)
    with pytest.raises(RuntimeError, match="device-side assert"):
        backends.choose_backend(loaded, make_inputs(loaded, 2, 1, None), HostClock())


def test_another_gpu_is_chosen_by_the_environment():
    with pytest.raises(BadUsage, match="CUDA_VISIBLE_DEVICES=1"):
        shapes.load("tiny", device="cuda:1")
