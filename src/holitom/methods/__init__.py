"""The reduction methods, one file per paper. Each is a frozen dataclass; none knows a model library."""

from holitom.methods.controls import AveragePool, RandomDrop, SaliencyTopK, UniformStride
from holitom.methods.fastv import FastV
from holitom.methods.holitom import HoliTom
from holitom.methods.holitom_merge import HoliTomMerge

__all__ = ["AveragePool", "FastV", "HoliTom", "HoliTomMerge", "RandomDrop", "SaliencyTopK", "UniformStride"]
