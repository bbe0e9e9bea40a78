"""Seconds between moments: nobody waits before they are read, and then once."""

import pytest
import torch

from holitom.moments import Moment, Seconds, Span, clock


class Event:
    def __init__(self, milliseconds):
        self.at, self.waited = milliseconds, 0

    def synchronize(self):
        self.waited += 1

    def elapsed_time(self, other):
        return other.at - self.at


def test_spans_add_up_without_waiting_until_they_are_read():
    start, saliency, read, end = (Event(ms) for ms in (0, 10, 25, 100))
    inside = 0.0 + (Moment(read) - Moment(saliency))
    seconds = Seconds({"vision": (Moment(end) - Moment(start)) - inside, "saliency": inside, "host": 1.5})
    assert isinstance(dict.__getitem__(seconds, "vision"), Span) and end.waited == 0
    assert dict(seconds.items()) == pytest.approx({"vision": 0.085, "saliency": 0.015, "host": 1.5})
    assert min(seconds.values()) > 0 and seconds.get("saliency") == pytest.approx(0.015) and seconds.get("no") is None
    waited = end.waited
    assert seconds["vision"] == pytest.approx(0.085) and end.waited == waited


def test_numbers_and_spans_mix():
    span = Moment(Event(30)) - Moment(Event(10))
    assert float(span - 0.005) == pytest.approx(0.015) and float(span + span) == pytest.approx(0.04)
    assert float(span - span) == 0


def test_on_a_cpu_it_is_a_number():
    assert isinstance(clock(torch.device("cpu")), float)
