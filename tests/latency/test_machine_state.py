"""What nvidia-smi says becomes numbers by name; what it does not say stays unknown."""

import pytest

from holitom_repro.latency import machine_state as state

LINE = "GPU-aa, 345, 3201, 1980, 31, 76.11, 0, 4"


@pytest.fixture
def smi(tmp_path, monkeypatch):
    """A command of that name that prints a line."""

    def prints(line, code=0):
        command = tmp_path / "nvidia-smi"
        command.write_text(f"#!/bin/sh\necho '{line}'\nexit {code}\n")
        command.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")

    return prints


def test_clocks_and_load_are_read(smi):
    smi(LINE)
    read = state.gpu_state()
    assert read["sm_mhz"] == 345 and read["max_sm_mhz"] == 1980 and read["watts"] == 76.11
    assert read["utilisation_pct"] == 0 and set(read) == set(state._ASKED) - {"uuid"}


def test_what_is_not_available_is_none(smi):
    smi("GPU-aa, [N/A], 3201, 1980, 31, [N/A], 60, 4")
    assert state.gpu_state()["sm_mhz"] is None
    found = state.machine_state("cuda", seconds=0.05)
    assert found["idle"] is False and "60 % busy" in found["reason"]
    smi("no devices were found", code=6)
    assert state.gpu_state() is None
    found = state.machine_state("cuda", seconds=0.05)
    assert found["idle"] is None and "nvidia-smi does not answer" in found["reason"]


def test_the_gpu_in_use_is_read_not_the_first_of_all(smi, monkeypatch):
    smi(f"{LINE}\nGPU-bb, 1980, 3201, 1980, 60, 600, 97, 40000")
    assert state.gpu_state()["sm_mhz"] == 345
    monkeypatch.setattr(state, "_own_uuid", lambda: "bb")
    assert state.gpu_state()["sm_mhz"] == 1980
