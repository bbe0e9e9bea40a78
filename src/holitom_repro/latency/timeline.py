"""Boundaries between the stages of one pass. Every moment belongs to exactly one stage, so the stages add up."""

from __future__ import annotations

import time
from collections import defaultdict
from typing import Any, Protocol, runtime_checkable

import torch

from holitom.errors import BadUsage


@runtime_checkable
class Clock(Protocol):
    """Takes marks without making anybody wait; ``settle`` waits once, after which marks can be compared."""

    def mark(self) -> Any: ...

    def settle(self) -> None: ...

    def between(self, first: Any, second: Any) -> float:
        """Seconds."""
        ...


class HostClock:
    """``time.perf_counter``: for a CPU, where an operation has ended when its call returns."""

    name = "perf_counter"

    def mark(self) -> float:
        return time.perf_counter()

    def settle(self) -> None:
        pass

    def between(self, first: float, second: float) -> float:
        return second - first


class ProcessClock(HostClock):
    """``time.process_time``: the CPU seconds of this process, which a busy machine does not stretch. With one thread
    they are what the work would take on an idle machine; with several they count each."""

    name = "process_time (CPU seconds, one thread)"

    def mark(self) -> float:
        return time.process_time()


class EventClock:
    """CUDA events on the current stream: marks are queued like the work between them, and nobody waits for them."""

    name = "CUDA events"

    def mark(self) -> torch.cuda.Event:
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def settle(self) -> None:
        torch.cuda.synchronize()

    def between(self, first: torch.cuda.Event, second: torch.cuda.Event) -> float:
        return first.elapsed_time(second) / 1000.0


def clock_for(device: torch.device) -> HostClock | EventClock:
    return EventClock() if device.type == "cuda" else HostClock()


class Timeline:
    """The stages of one pass, in the order in which they were entered; a stage may be entered several times.

    ``enter`` ends the stage before and begins the next, ``close`` ends the last. ``only`` restricts what is marked to
    those names (and the end), so that the same code can be timed without boundaries inside it.
    """

    def __init__(self, clock: Clock, only: tuple[str, ...] | None = None) -> None:
        self._clock, self._only = clock, only
        self._marks: list[tuple[str, Any]] = []
        self._end: Any = None

    def enter(self, stage: str) -> None:
        if self._end is not None:
            raise BadUsage(f"{stage} begins after the pass was closed", fix="make a Timeline for every pass")
        if self._only is None or stage in self._only:
            self._marks.append((stage, self._clock.mark()))

    def close(self) -> None:
        self._end = self._clock.mark()

    @property
    def current(self) -> str:
        """The stage that is under way; "" before the first."""
        return self._marks[-1][0] if self._marks else ""

    def seconds(self) -> dict[str, float]:
        """Seconds per stage, in the order of their first boundary. Waits for the device."""
        spent: defaultdict[str, float] = defaultdict(float)
        for stage, begin, end in self.spans():
            spent[stage] += self._clock.between(begin, end)
        return dict(spent)

    def spans(self) -> list[tuple[str, Any, Any]]:
        """Every stretch of the pass: its stage, and the marks at its two ends. Waits for the device."""
        self._closed()
        ends = [mark for _, mark in self._marks[1:]] + [self._end]
        return [(stage, begin, end) for (stage, begin), end in zip(self._marks, ends, strict=True)]

    def total(self) -> float:
        """Seconds from the first boundary to the end, taken from these two marks alone. Waits for the device."""
        self._closed()
        return self._clock.between(self._marks[0][1], self._end)

    def _closed(self) -> None:
        if self._end is None or not self._marks:
            raise BadUsage("the pass has no beginning or no end yet", fix="call enter(...) first and close() last")
        self._clock.settle()
