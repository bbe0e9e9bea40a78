"""A tiny model with random weights and a small cell of its own: the mechanics need no trained weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from holitom_repro import paths
from holitom_repro.tiny import benchmarks


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from holitom_repro.tiny.export import export
    from holitom_repro.tiny.model import build

    folder = tmp_path_factory.mktemp("models") / "random"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = build()
        for name, weight in model.named_parameters():  # so that answers depend on the video and the question
            if weight.ndim == 2 and "language_model" in name:
                weight.data.mul_(3)
        export(model, folder)
        export(build(), folder.parent / "tower", tower_only=True)
    return folder


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def own_cache(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Benchmark files go to a folder of the test session, not into the checkout."""
    own = benchmarks.folder

    def folder(name: str, root: Path | None = None) -> Path:
        return own(name, root or cache)

    monkeypatch.setattr(benchmarks, "folder", folder)
    assert paths.root() not in folder("tiny_ego").parents


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    torch.set_num_threads(1)
