"""The paper's figures and the pictures of the method, in one style, each with its tier, its sources and its data."""

from holitom_repro.figures.saving import Saved, Stamp, here, save, stamp_of
from holitom_repro.figures.style import DOUBLE, SINGLE, use_style

__all__ = ["DOUBLE", "SINGLE", "Saved", "Stamp", "here", "save", "stamp_of", "use_style"]
