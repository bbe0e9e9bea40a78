"""Boundaries: every moment belongs to one stage, so the stages add up whatever is marked."""

import pytest
from ticking import Ticking

from holitom.errors import BadUsage
from holitom_repro.latency.timeline import HostClock, Timeline


def test_stages_add_up_to_the_total():
    line = Timeline(Ticking())
    for stage in ("tower", "saliency", "tower", "prefill", "inner", "prefill"):
        line.enter(stage)
    line.close()
    assert line.seconds() == {"tower": 2, "saliency": 1, "prefill": 2, "inner": 1}
    assert sum(line.seconds().values()) == line.total() == 6


def test_only_some_boundaries_can_be_marked():
    clock = Ticking()
    line = Timeline(clock, only=("tower",))
    for stage in ("tower", "saliency", "prefill"):
        line.enter(stage)
    line.close()
    assert line.seconds() == {"tower": 1} and clock.now == 2


def test_a_pass_needs_a_beginning_and_an_end():
    line = Timeline(Ticking())
    with pytest.raises(BadUsage, match="no beginning"):
        line.total()
    line.enter("tower")
    with pytest.raises(BadUsage, match="no end"):
        line.seconds()
    line.close()
    with pytest.raises(BadUsage, match="after the pass was closed"):
        line.enter("prefill")


def test_the_host_clock_runs_forward():
    clock = HostClock()
    assert clock.between(clock.mark(), clock.mark()) >= 0
