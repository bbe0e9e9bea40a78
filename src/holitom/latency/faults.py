"""What a failed pass on a GPU was: lack of memory, which is a result, or a device that will answer nothing more."""

from __future__ import annotations

import torch

_MEMORY = ("out of memory", "cublas_status_alloc_failed", "cudahostalloc", "cuda_error_out_of_memory")
_LOST = ("device-side assert", "illegal memory access", "unspecified launch failure")


def out_of_memory(error: BaseException) -> bool:
    """torch's own error, and those of CUDA's libraries, which say it in words."""
    return isinstance(error, torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and any(words in str(error).lower() for words in _MEMORY)
    )


def device_lost(error: BaseException) -> bool:
    """Whether every further call on the device will fail, so that going on would record nothing but this."""
    return any(words in str(error).lower() for words in _LOST)
