"""How much memory a call holds at its peak."""

from __future__ import annotations

import tracemalloc
import weakref
from collections.abc import Callable

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


def peak_bytes(call: Callable[[], object], device: str | torch.device = "cpu") -> int:
    """Most bytes held at once by what ``call`` allocates, its result included. CUDA: the allocator's own peak; CPU: the
    storages behind every operation's outputs, plus numpy's peak. Scratch space inside one operation is not seen."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    with _LiveBytes():
        call()  # once before, so that what torch imports on the way is not counted
    tracemalloc.start()
    try:
        with _LiveBytes() as live:
            call()
        return live.peak + tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


class _LiveBytes(TorchDispatchMode):
    """Counts the bytes of storages that operations create, from creation until Python lets go of them."""

    def __init__(self) -> None:
        super().__init__()
        self.held = self.peak = 0
        self.known: set[int] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        given = {t.untyped_storage().data_ptr() for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)}
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                if storage.data_ptr() not in given | self.known:
                    self._hold(storage, storage.data_ptr(), storage.nbytes())
        return result

    def _hold(self, storage: torch.UntypedStorage, address: int, size: int) -> None:
        self.known.add(address)
        self.held += size
        self.peak = max(self.peak, self.held)
        weakref.finalize(storage, self._drop, address, size)

    def _drop(self, address: int, size: int) -> None:
        self.known.discard(address)
        self.held -= size
