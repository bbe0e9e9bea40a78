"""What a pretended CUDA device knows of time: streams, events and graphs, as strict as CUDA's."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from holitom_repro.latency.pretending import leaves


class Streams:
    """Which work has been queued where, who has waited for whom, and whether a graph is being captured."""

    def __init__(self) -> None:
        self.count = itertools.count(1)
        self.default = Stream(self)
        self.current = self.default
        self.made: list[Stream] = [self.default]
        self.settled: dict[Stream, int] = {}
        self.capturing: Graph | None = None
        self.written: dict[int, tuple[Stream, int]] = {}

    def another(self) -> Stream:
        self.made.append(Stream(self))
        return self.made[-1]

    def settle(self) -> None:
        self.refuse("synchronize")
        self.settled = {stream: stream.last for stream in self.made}

    def refuse(self, what: str) -> None:
        if self.capturing is not None:
            raise RuntimeError(f"CUDA error: operation not permitted when stream is capturing ({what})")

    def ran(self, read: list[Tensor], wrote: list[Tensor]) -> None:
        """One operation on the current stream. RuntimeError if it reads what another stream may still be writing."""
        here = self.current
        here.last = next(self.count)
        here.waited[here] = here.last
        for tensor in read:
            stream, when = self.written.get(tensor.untyped_storage().data_ptr(), (here, 0))
            if here.waited.get(stream, 0) < when and self.settled.get(stream, 0) < when:
                raise RuntimeError("work of another stream is read by one that did not wait for it")
        for tensor in wrote:
            self.written[tensor.untyped_storage().data_ptr()] = (here, here.last)


class Stream:
    def __init__(self, streams: Streams) -> None:
        self.streams, self.last, self.waited = streams, 0, {}

    def wait_stream(self, other: Stream) -> None:
        for stream, when in (*other.waited.items(), (other, other.last)):
            self.waited[stream] = max(when, self.waited.get(stream, 0))

    def synchronize(self) -> None:
        self.streams.refuse("synchronize")
        self.streams.settled[self] = self.last


class Event(torch.cuda.Event):
    """Can be compared once the host has waited for it, or for the device."""

    def __new__(cls, *_: Any) -> Event:
        return object.__new__(cls) if torch.version.cuda is None else super().__new__(cls)

    def __init__(self, streams: Streams, clock: Iterator[float], enable_timing: bool = False) -> None:
        self.streams, self.clock, self.timing, self.when = streams, clock, enable_timing, 0

    def record(self, stream: Stream | None = None) -> None:
        self.stream = stream or self.streams.current
        self.when = self.stream.last = next(self.streams.count)
        self.at = next(self.clock)

    def synchronize(self) -> None:
        self.streams.refuse("synchronize")
        if self.when:
            settled = self.streams.settled
            settled[self.stream] = max(self.when, settled.get(self.stream, 0))

    def elapsed_time(self, end: Event) -> float:
        if not (self.timing and end.timing and self.when and end.when):
            raise ValueError("Both events must be recorded, and be created with enable_timing")
        if any(self.streams.settled.get(event.stream, 0) < event.when for event in (self, end)):
            raise RuntimeError("CUDA error: device not ready")
        return 1000 * (end.at - self.at)


class Graph:
    """What ran on tensors during a capture is undone, and done again on the same memory by every replay."""

    def __init__(self, streams: Streams) -> None:
        self.streams, self.work, self.before = streams, [], {}
        self.captured = False

    def note(self, func: Any, args: tuple, kwargs: dict[str, Any], result: Any) -> None:
        self.work.append((func, args, kwargs, result))

    def keep(self, tensor: Tensor) -> None:
        self.before.setdefault(id(tensor), (tensor, tensor.clone()))

    def begin(self) -> None:
        assert not self.captured, "one capture per graph"
        self.streams.capturing = self

    def end(self) -> None:
        self.streams.capturing = None
        for tensor, value in reversed(self.before.values()):
            tensor.copy_(value)
        self.before, self.captured = {}, True

    def replay(self) -> None:
        assert self.captured
        for func, args, kwargs, result in self.work:
            again = func(*args, **kwargs)
            for old, new in zip(leaves(result), leaves(again), strict=True):
                if isinstance(old, Tensor) and old.data_ptr() != new.data_ptr():
                    old.copy_(new)
