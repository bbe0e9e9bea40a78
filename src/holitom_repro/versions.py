"""Which versions the kit was tested with, as data, and whether those installed here are among them.

Standard library only at import, so that it can speak where nothing else imports."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from functools import lru_cache

from holitom_repro import paths
from holitom_repro.pins import installed


@dataclass(frozen=True)
class Tested:
    """One environment that the tests ran in. host: "transformers" or "llava" (the original package)."""

    host: str
    python: str
    torch: str
    transformers: str
    date: str
    ran: str
    result: str


@lru_cache
def matrix() -> tuple[Tested, ...]:
    """Every tested environment, in the order of the file."""
    import yaml

    return tuple(Tested(**row) for row in yaml.safe_load(paths.data("versions.yaml").read_text())["tested"])


def standing() -> tuple[bool, str]:
    """Whether this environment was tested, and what to say about it."""
    python = ".".join(map(str, sys.version_info[:2]))
    here = (python, installed("torch"), installed("transformers"))
    said = f"Python {here[0]}, torch {here[1]}, transformers {here[2]}"
    rows = matrix()
    passed = next((row for row in rows if (row.python, row.torch, row.transformers) == here), None)
    if passed is not None:
        return True, f"{said}: tested {passed.date}"
    others = ", ".join(f"{row.python} / {row.torch} / {row.transformers}" for row in rows)
    return False, f"{said}: not among those tested ({others})"
