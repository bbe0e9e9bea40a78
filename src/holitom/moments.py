"""Moments between which seconds are counted, without making anybody wait: on CUDA they are events in the stream.

A synchronisation at every boundary would be part of what it measures. Here the host goes on; it waits when somebody
reads the number.
"""

from __future__ import annotations

import time
from typing import Any

import torch


class Moment:
    """A place in the work queued on a CUDA device."""

    def __init__(self, event: Any) -> None:
        self.event = event

    def __sub__(self, earlier: Moment) -> Span:
        return Span([(earlier.event, self.event, 1)])


class Span:
    """Seconds between moments, added and subtracted; ``float(span)`` waits for the last of them."""

    def __init__(self, parts: list[tuple[Any, Any, int]], rest: float | int = 0.0) -> None:
        self._parts, self._rest = parts, rest

    def __add__(self, other: Span | float | int) -> Span:
        if isinstance(other, Span):
            return Span(self._parts + other._parts, self._rest + other._rest)
        return Span(self._parts, self._rest + other)

    __radd__ = __add__

    def __sub__(self, other: Span | float | int) -> Span:
        if isinstance(other, Span):
            return self + Span([(a, b, -sign) for a, b, sign in other._parts], -other._rest)
        return self + -other

    def __float__(self) -> float:
        for _, end, _ in self._parts:
            end.synchronize()
        return float(self._rest + sum(sign * a.elapsed_time(b) for a, b, sign in self._parts) / 1000.0)


class Seconds(dict):
    """Seconds by name; spans become numbers when they are read."""

    def __getitem__(self, name: str) -> float:
        value = super().__getitem__(name)
        if isinstance(value, Span):
            value = float(value)
            self[name] = value
        return value

    def get(self, name: str, default: Any = None) -> Any:
        return self[name] if name in self else default  # noqa: SIM401  (that would be dict.get again)

    def values(self) -> list[float]:  # type: ignore[override]
        return [self[name] for name in self]

    def items(self) -> list[tuple[str, float]]:  # type: ignore[override]
        return [(name, self[name]) for name in self]


def clock(device: torch.device) -> Any:
    """This moment: seconds on a CPU; on CUDA an event behind the work queued so far. Differences are seconds."""
    if device.type == "cuda":
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(device))
        return Moment(event)
    return time.perf_counter()
