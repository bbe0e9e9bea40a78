"""Shared by all areas: GPU tests are skipped where there is no CUDA device; no test fails for being slow; the golden
files may lie in another folder."""

import signal
from pathlib import Path

import loader
import pytest
import torch
from hypothesis import settings

settings.register_profile("kit", deadline=None)
settings.load_profile("kit")


def pytest_addoption(parser):
    parser.addoption("--golden", type=Path, help="folder of golden files in place of tests/golden")


def pytest_configure(config):
    signal.signal(signal.SIGINT, signal.default_int_handler)  # also where a shell has its background jobs ignore it
    if given := config.getoption("--golden"):
        loader.folder = given.resolve()


@pytest.fixture(autouse=True)
def _full_precision():
    """Convolutions on CUDA round to TF32 unless told otherwise, which no comparison with a CPU survives."""
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before


def pytest_collection_modifyitems(items):
    if not torch.cuda.is_available():
        for item in items:
            if "gpu" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="no CUDA device"))
