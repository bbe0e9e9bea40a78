"""HoliTom and its relatives: reduce the visual tokens of a video language model.

The public names load on first use, so that ``import holitom`` costs no torch import.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from holitom.attach import reduce_tokens
    from holitom.types import Reduction, TokenSet, VideoFeatures

__version__ = "0.1.0"
__all__ = ["Reduction", "TokenSet", "VideoFeatures", "reduce_tokens"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module("holitom.attach" if name == "reduce_tokens" else "holitom.types"), name)
