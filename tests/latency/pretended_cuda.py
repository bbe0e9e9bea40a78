"""A CUDA device on machines that have none: tensors claim to live on it and compute on the CPU, and what the kit asks
of torch.cuda is answered, as strictly as CUDA would: events that are compared before they have ended, waiting or
copying while a graph is captured, work of one stream read by another that did not wait for it.

What it cannot say: how fast anything is, which kernels exist (cuda_support.py), how they round, and how much memory
there is.
"""

from __future__ import annotations

import ctypes
import itertools
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
import torch
from pretended_streams import Event, Graph, Stream, Streams
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from holitom_repro.latency.crossings import Crossings
from holitom_repro.latency.pretending import OnDevice, crossings_of, leaves, mapped, pretended_device, put
from holitom_repro.latency.static_decoding import _side_stream

CUDA = torch.device("cuda", 0)
_GUARDS = "_ZN3c104impl26device_guard_impl_registryE"
_CUDA_SLOT, _META_SLOT = 1, 14  # c10::DeviceType
UUID = "12345678-0000-0000-0000-000000000000"


class _Work(TorchDispatchMode):
    """Watches what reaches the device: between which streams, and during a capture."""

    def __init__(self, streams: Streams, operations: Operations) -> None:
        super().__init__()
        self.streams, self.operations = streams, operations

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs, graph = kwargs or {}, self.streams.capturing
        plain = mapped(lambda t: t.held if isinstance(t, OnDevice) else t, (args, kwargs))
        there = [t.held for t in leaves((args, kwargs)) if isinstance(t, OnDevice)]
        arguments = zip(func._schema.arguments, args, strict=False)
        written = [t for a, t in arguments if a.alias_info is not None and a.alias_info.is_write]
        written += [kwargs[a.name] for a in func._schema.arguments if a.kwarg_only and a.is_out and a.name in kwargs]
        written = [t.held for t in leaves(written) if isinstance(t, OnDevice)]
        if graph is not None:
            for tensor in written:
                graph.keep(tensor)
            if kwargs.get("pin_memory") or len(there) != len([t for t in leaves(plain) if isinstance(t, Tensor)]):
                self.streams.refuse(func._schema.name)
        views = any(r.alias_info is not None and not r.alias_info.is_write for r in func._schema.returns)
        if there and not views:
            self.operations.add(func, args, kwargs)
        if func is _FLASH:
            return _flash(*args, **kwargs)
        result = func(*args, **{name: value for name, value in kwargs.items() if name != "pin_memory"})
        made = [t.held for t in leaves(result) if isinstance(t, OnDevice)]
        if (there or made) and not views:
            if graph is None:
                self.streams.ran(there, [*written, *made])
            else:
                held = mapped(lambda t: t.held if isinstance(t, OnDevice) else t, result)
                plain[1].pop("device", None)
                graph.note(func, *plain, held)
        return result


_FLASH = torch.ops.aten._scaled_dot_product_flash_attention.default


def _flash(query: Tensor, key: Tensor, value: Tensor, *, scale: float | None = None) -> tuple[Any, ...]:
    """CUDA's kernel by that of the CPU, for what CUDA's takes: half precision, and widths that are multiples of 8."""
    assert query.dtype in (torch.bfloat16, torch.float16) and query.shape[-1] == key.shape[-1] == value.shape[-1]
    assert query.shape[-1] % 8 == 0 and query.shape[-1] <= 256
    assert all(t.is_cuda and t.stride(-1) == 1 for t in (query, key, value))
    out, sums = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(query, key, value, scale=scale)
    return out, sums, None, None, query.shape[2], key.shape[2], out.new_empty(2), out.new_empty(()), out.new_empty(0)


@dataclass
class Operations:
    """(aten operation, types of its tensors) -> who asked for it first."""

    seen: dict[tuple[str, tuple[torch.dtype, ...]], str] = field(default_factory=dict)

    def add(self, func: Any, args: tuple, kwargs: dict[str, Any]) -> None:
        from holitom_repro.latency.crossings import caller

        types = tuple(t.dtype for t in leaves((args, kwargs)) if isinstance(t, Tensor))
        made = kwargs.get("dtype")
        key = (func._schema.name.removeprefix("aten::"), (*types, *([made] if made is not None else [])))
        if key not in self.seen:
            self.seen[key] = caller(otherwise="the model's own code")


class _Names(TorchFunctionMode):
    """ "cuda" is the first device, also where torch would ask the library for the current one."""

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if func is Tensor.cuda:
            return args[0].to(CUDA)
        if func is torch.device:
            return func(*args, **(kwargs or {}))
        args, kwargs = mapped(_indexed, (args, kwargs or {}))
        return func(*args, **kwargs)


def _indexed(value: Any) -> Any:
    if isinstance(value, torch.device) and value.type == "cuda":
        return CUDA
    return CUDA if isinstance(value, str) and value in ("cuda", "cuda:0") else value


class _Watched(Crossings):
    """Nothing crosses while a graph is captured; in sync debug mode a crossing warns as CUDA's do."""

    def __init__(self, streams: Streams) -> None:
        super().__init__(CUDA)
        self.streams, self.debug = streams, 0

    def add(self, kind: str) -> None:
        self.streams.refuse(kind)
        super().add(kind)
        if self.debug:
            warnings.warn("called a synchronizing CUDA operation (Triggered internally)", UserWarning, stacklevel=1)


@dataclass
class Pretended:
    seen: Crossings
    operations: Operations
    streams: Streams

    def put(self, tensor: Tensor) -> Tensor:
        return put(tensor, self.seen)

    @contextmanager
    def model(self, module: nn.Module) -> Iterator[nn.Module]:
        """The module with its weights on the device."""
        with pretended_device(module, self.seen):
            yield module


@contextmanager
def _guard() -> Iterator[None]:
    """Switching to a CUDA device does nothing. Skips the test where there is one, and where this build of torch keeps
    no such table."""
    if torch.cuda.is_available():
        pytest.skip("a CUDA device is here: the tests marked gpu are for this machine")
    try:
        library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libc10.so"))
        slots = (ctypes.c_void_p * (_META_SLOT + 1)).in_dll(library, _GUARDS)
    except (OSError, ValueError):
        pytest.skip("this build of torch keeps its device guards elsewhere")
    before, slots[_CUDA_SLOT] = slots[_CUDA_SLOT], slots[_META_SLOT]
    try:
        yield
    finally:
        slots[_CUDA_SLOT] = before


@contextmanager
def pretended_cuda() -> Iterator[Pretended]:
    streams, operations, clock = Streams(), Operations(), itertools.count(1.0, 0.001)
    seen = _Watched(streams)
    graphs = lambda: Graph(streams)  # noqa: E731

    @contextmanager
    def stream(chosen: Stream) -> Iterator[None]:
        before, streams.current = streams.current, chosen
        try:
            yield
        finally:
            streams.current = before

    @contextmanager
    def capture(graph: Graph, stream: Stream) -> Iterator[None]:
        streams.settle()
        before, streams.current = streams.current, stream
        graph.begin()
        try:
            yield
        finally:
            graph.end()
            streams.current = before

    answers = {
        "_lazy_init": lambda: None,
        "is_available": lambda: True,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "get_device_name": lambda *_: "a pretended device",
        "get_device_properties": lambda *_: SimpleNamespace(uuid=UUID, name="a pretended device"),
        "synchronize": lambda *_: streams.settle(),
        "empty_cache": lambda: streams.refuse("cudaFree"),
        "memory_allocated": lambda *_: 2**30,
        "max_memory_allocated": lambda *_: 2**31,
        "reset_peak_memory_stats": lambda *_: None,
        "current_stream": lambda *_: streams.current,
        "set_stream": lambda chosen: setattr(streams, "current", chosen),
        "Stream": lambda *_: streams.another(),
        "stream": stream,
        "Event": lambda enable_timing=False: Event(streams, clock, enable_timing),
        "CUDAGraph": graphs,
        "graph": capture,
        "get_sync_debug_mode": lambda: seen.debug,
        "set_sync_debug_mode": lambda mode: setattr(seen, "debug", {"default": 0, "warn": 1}.get(mode, mode)),
    }
    generator = torch.Generator
    with ExitStack() as stack:
        stack.enter_context(_guard())
        for name, answer in answers.items():
            stack.enter_context(mock.patch.object(torch.cuda, name, answer))
        stack.enter_context(mock.patch.object(torch, "Generator", lambda *_, **__: generator()))
        stack.enter_context(mock.patch.object(torch._C, "_InferenceMode", lambda _: torch.no_grad()))
        stack.enter_context(mock.patch.object(torch.__future__, "_overwrite_module_params_on_conversion", True))
        for mode in (crossings_of(seen), _Work(streams, operations), _Names()):
            stack.enter_context(mode)
        _side_stream.cache_clear()
        stack.callback(_side_stream.cache_clear)
        yield Pretended(seen, operations, streams)
