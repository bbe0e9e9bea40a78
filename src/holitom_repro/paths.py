"""Where the kit keeps things. Everything lives inside the checkout; nothing is written anywhere else by default."""

import os
from functools import cache
from pathlib import Path

from holitom.errors import CannotRun

CACHES = {
    "HF_HOME": "huggingface",
    "XDG_CACHE_HOME": "xdg",
    "TORCH_HOME": "torch",
    "TORCHINDUCTOR_CACHE_DIR": "inductor",
    "TRITON_CACHE_DIR": "triton",
    "MPLCONFIGDIR": "matplotlib",
    "IPYTHONDIR": "ipython",
    "JUPYTER_CONFIG_DIR": "jupyter/config",
    "JUPYTER_DATA_DIR": "jupyter/data",
    "JUPYTER_RUNTIME_DIR": "jupyter/runtime",
}
"""What libraries read to find a folder that they would otherwise make in the home folder."""


@cache
def root() -> Path:
    """The checkout this package is used from. CannotRun when it was installed without one (data/ is not in the
    wheel)."""
    checkout = Path(__file__).resolve().parents[2]
    if (checkout / "pyproject.toml").is_file() and (checkout / "src" / "holitom_repro").is_dir():
        return checkout
    raise CannotRun(
        f"the package is used from {Path(__file__).resolve().parent}, not from a checkout, so it has no data/",
        fix="clone the repository and install it in place: pip install -e .",
    )


def data(*parts: str) -> Path:
    """data/...: the papers' numbers, the tiny models, recorded measurements, the demonstration clip (committed)."""
    return root().joinpath("data", *parts)


def figures(*parts: str) -> Path:
    """figures/...: figures and their numbers, one folder per tier (committed for the tiny tier)."""
    return root().joinpath("figures", *parts)


def runs(*parts: str) -> Path:
    """runs/...: finished cells, executed notebooks and caches (never committed, safe to delete)."""
    return root().joinpath("runs", *parts)


def caches() -> dict[str, str]:
    """CACHES below runs/cache, for the environment of a process that is to be started; what the user has set is left
    alone."""
    return {name: str(runs("cache", folder)) for name, folder in CACHES.items() if name not in os.environ}
