"""What a failed pass on a GPU was: lack of memory, which is a result, or a device that will answer nothing more."""

from __future__ import annotations

import torch

_MEMORY = ("out of memory", "cublas_status_alloc_failed", "cudahostalloc", "cuda_error_out_of_memory")
_LOST = ("device-side assert", "illegal memory access", "unspecified launch failure")


def out_of_memory(error: BaseException | None) -> bool:
    """Whether memory lacked: torch's own error, or those of CUDA's libraries, which say it in words; also behind an
    error that came on its way out (a graph's capture that is broken off raises one of its own)."""
    while error is not None:
        if isinstance(error, torch.OutOfMemoryError):
            return True
        if isinstance(error, RuntimeError) and any(words in str(error).lower() for words in _MEMORY):
            return True
        error = error.__context__
    return False


def device_lost(error: BaseException) -> bool:
    """Whether every further call on the device will fail, so that going on would record nothing but this."""
    return any(words in str(error).lower() for words in _LOST)
