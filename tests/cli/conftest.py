"""Run the command line as a user does: in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def own_environment():
    """The command line points caches into the checkout; other tests keep the environment they had."""
    kept = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(kept)


@pytest.fixture
def root() -> Path:
    return ROOT


@pytest.fixture
def holitom():
    """holitom("list", "--json") -> CompletedProcess; env adds to the environment, cwd and stdout are passed on."""

    def call(*words: str, env: dict[str, str] | None = None, **options) -> subprocess.CompletedProcess:
        options.setdefault("stdout", subprocess.PIPE)
        return subprocess.run(
            [sys.executable, "-P", "-m", "holitom_repro", *words],
            stderr=subprocess.PIPE,
            text=True,
            timeout=300,
            env={**os.environ, "OMP_NUM_THREADS": "1", **(env or {})},
            **options,
        )

    return call
