"""HoliTom and its relatives: reduce the visual tokens of a video language model.

The public names load on first use, so that ``import holitom`` costs no torch import.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from holitom.attach import reduce_tokens
    from holitom.types import Reduction, TokenSet, VideoFeatures

__version__ = "0.1.0"
__all__ = ["Reduction", "TokenSet", "VideoFeatures", "reduce_tokens"]

_HOME = {
    "Reduction": "holitom.types",
    "TokenSet": "holitom.types",
    "VideoFeatures": "holitom.types",
    "reduce_tokens": "holitom.attach",
}


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
