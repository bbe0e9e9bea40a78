"""Read the golden files: parameters and arrays of each run. ``pytest tests/golden --golden DIR`` reads another folder
of the same format; what it has no file for is then skipped."""

import json
import math
from pathlib import Path

import numpy as np
import torch

OURS = Path(__file__).parent
folder = OURS  # set by tests/conftest.py from --golden


class Golden:
    """One file. ``runs``: the parameters of each run; ``file["features"]`` or ``file[2, "tokens"]``: a tensor."""

    def __init__(self, name: str):
        self.name = name
        self.arrays = np.load(folder / f"{name}.npz", allow_pickle=False)
        self.params = json.loads(str(self.arrays["params"]))
        self.runs = self.params["runs"] if "runs" in self.params else [{}] * self.params["n_runs"]

    def __getitem__(self, key):
        return torch.from_numpy(np.array(self.arrays[self._key(key)]))

    def __contains__(self, key):
        return self._key(key) in self.arrays.files

    def weights(self) -> dict[str, torch.Tensor]:
        """The stored model weights, as float32."""
        return {k.removeprefix("sd/"): self[k].float() for k in self.arrays.files if k.startswith("sd/")}

    @staticmethod
    def _key(key):
        return key if isinstance(key, str) else f"run{key[0]}/{key[1]}"


def cases(pattern: str, without: str | None = None) -> list[tuple[str, int]]:
    """(file, run) for every run of every file called ``pattern``, or ``pattern`` and more behind an underscore (but not
    ``without`` and more): the parameters of a test."""

    def called(name: str, start: str | None) -> bool:
        return start is not None and (name == start or name.startswith(start.rstrip("_*") + "_"))

    names = sorted(path.stem for path in folder.glob("*.npz"))
    names = [name for name in names if called(name, pattern) and not called(name, without)]
    assert names or folder != OURS, f"no golden file is called {pattern}"
    return [(name, run) for name in names for run in range(len(Golden(name).runs))]


def grid_of(cells: int) -> tuple[int, int]:
    """The square that the releases assume, or one row where the number of cells is no square."""
    side = math.isqrt(cells)
    return (side, side) if side * side == cells else (1, cells)
