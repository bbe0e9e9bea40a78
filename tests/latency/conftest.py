"""The shipped tiny model, loaded once, and a small protocol."""

from __future__ import annotations

import pytest

from holitom_repro.latency.content import forced
from holitom_repro.latency.inputs import make_inputs
from holitom_repro.latency.measuring import Protocol
from holitom_repro.latency.shapes import load


@pytest.fixture(scope="session")
def tiny():
    return load("tiny", dtype="float32")


@pytest.fixture(scope="session")
def inputs(tiny):
    return make_inputs(tiny, 6, 1, forced(0.5))


@pytest.fixture
def quick():
    return Protocol(repeats=2, warmup=1, new_tokens=2, decode_repeats=1)
