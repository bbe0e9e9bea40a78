"""Shared by the tests of the kit."""

from pathlib import Path

import pytest

from holitom_repro import paths


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Cells go to a folder of the test; the benchmarks' files stay where they are cached."""
    own = paths.runs
    monkeypatch.setattr(
        paths, "runs", lambda *parts: own(*parts) if parts[:1] == ("cache",) else tmp_path.joinpath(*parts)
    )
    return tmp_path
