"""Lack of memory is a result whoever says it; a lost device is not."""

import pytest
import torch

from holitom.errors import BadUsage
from holitom_repro.latency import backends, shapes
from holitom_repro.latency.faults import device_lost, out_of_memory
from holitom_repro.latency.inputs import make_inputs
from holitom_repro.latency.timeline import HostClock


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


def test_lack_of_memory_is_seen_behind_the_error_of_a_broken_off_capture():
    def capture(fault):
        try:
            raise fault
        finally:  # as torch.cuda.graph ends a capture
            raise RuntimeError("CUDA error: operation failed due to a previous error during capture")

    with pytest.raises(RuntimeError, match="during capture") as lack:
        capture(torch.OutOfMemoryError("CUDA out of memory."))
    with pytest.raises(RuntimeError, match="during capture") as other:
        capture(RuntimeError("operation not permitted when stream is capturing"))
    assert out_of_memory(lack.value) and not out_of_memory(other.value)


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
