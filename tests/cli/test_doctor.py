"""What the doctor says of a machine: memory as systems count it."""

from __future__ import annotations

import pytest

from holitom_repro import doctor, machine


@pytest.mark.parametrize(("gib", "lacking"), [(3.83, ("speed", "paper")), (3.5, ("tiny", "speed", "paper")), (31, ())])
def test_memory_that_is_sold_as_enough_is_enough(monkeypatch, gib, lacking):
    monkeypatch.setattr(machine, "memory_gib", lambda: gib)
    check = doctor._memory()
    assert check.blocks == lacking and check.ok == (not lacking)
    assert check.found.startswith(f"{gib:.1f} GiB (needed: tiny 4")
