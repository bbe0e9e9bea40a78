"""Where the kit keeps things. Everything lives inside the checkout; nothing is written anywhere else by default."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from holitom.errors import CannotRun


@cache
def root() -> Path:
    """The checkout this package is used from. CannotRun when it was installed without one (data/ is not in the
    wheel)."""
    checkout = Path(__file__).resolve().parents[2]
    if (checkout / "pyproject.toml").is_file() and (checkout / "src" / "holitom").is_dir():
        return checkout
    raise CannotRun(
        f"the package is used from {Path(__file__).resolve().parent}, not from a checkout, so it has no data/",
        fix="clone the repository and install it in place: pip install -e .",
    )


def data(*parts: str) -> Path:
    """data/...: the papers' numbers, the tiny models, recorded measurements, the demonstration clip (all
    committed)."""
    return root().joinpath("data", *parts)


def figures(*parts: str) -> Path:
    """figures/...: rendered tables and figures, one folder per tier (committed for the tiny tier)."""
    return root().joinpath("figures", *parts)


def runs(*parts: str) -> Path:
    """runs/...: finished cells, executed notebooks and caches (never committed, safe to delete)."""
    return root().joinpath("runs", *parts)
