"""What can be reproduced: the registry of experiments, the cells each one measures, and its status on this machine."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from holitom_repro.experiments.registry import EXPERIMENTS, ORDER, TIERS, Cost, Experiment, find, target

if TYPE_CHECKING:
    from holitom_repro.experiments.grids import cells

__all__ = ["EXPERIMENTS", "ORDER", "TIERS", "Cost", "Experiment", "cells", "find", "target"]


def __getattr__(name: str) -> Any:
    if name == "cells":  # needs the methods, and with them torch: loaded on first use
        from holitom_repro.experiments.grids import cells

        return cells
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
