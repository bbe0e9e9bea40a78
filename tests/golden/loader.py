"""Read the golden files: parameters and arrays of each run."""

import json
from pathlib import Path

import numpy as np
import torch

HERE = Path(__file__).parent


class Golden:
    """One file. ``runs``: the parameters of each run; ``file["features"]`` or ``file[2, "tokens"]``: a tensor."""

    def __init__(self, name: str):
        self.name = name
        self.arrays = np.load(HERE / f"{name}.npz", allow_pickle=False)
        self.params = json.loads(str(self.arrays["params"]))
        self.runs = self.params["runs"]

    def __getitem__(self, key):
        return torch.from_numpy(np.array(self.arrays[self._key(key)]))

    def __contains__(self, key):
        return self._key(key) in self.arrays.files

    def weights(self, prefix: str = "sd/") -> dict[str, torch.Tensor]:
        """The stored model weights, as float32."""
        return {k.removeprefix(prefix): self[k].float() for k in self.arrays.files if k.startswith(prefix)}

    @staticmethod
    def _key(key):
        return key if isinstance(key, str) else f"run{key[0]}/{key[1]}"


def cases(pattern: str) -> list[tuple[str, int]]:
    """(file, run) for every run of every file that matches: the parameters of a test."""
    names = sorted(path.stem for path in HERE.glob(f"{pattern}.npz"))
    assert names, f"no golden file matches {pattern}"
    return [(name, run) for name in names for run in range(len(Golden(name).runs))]
