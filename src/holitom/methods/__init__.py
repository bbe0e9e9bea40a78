"""The reduction methods, one file per paper. Each is a frozen dataclass; none knows a model library.

``holitom_repro.catalogue`` tells where each acts, what it reads, how faithful it is and what it costs, as one table.
"""

from holitom.methods.controls import AveragePool, RandomDrop, SaliencyTopK, UniformStride
from holitom.methods.dycoke import DyCoke, DyCokeDecode
from holitom.methods.fastv import FastV
from holitom.methods.fastvid import FastVID
from holitom.methods.hieravid import HieraVid, HieraVidSelect, hieravid, hieravid_stages
from holitom.methods.holitom import HoliTom
from holitom.methods.holitom_merge import HoliTomMerge
from holitom.methods.mmg_vid import MMGVid
from holitom.methods.prunevid import PruneVid
from holitom.methods.prunevid_select import PruneVidSelect
from holitom.methods.pyramiddrop import PyramidDrop, PyramidDropStage
from holitom.methods.tome import ToMe
from holitom.methods.visionzip import VisionZip

__all__ = [
    "AveragePool",
    "DyCoke",
    "DyCokeDecode",
    "FastV",
    "FastVID",
    "HieraVid",
    "HieraVidSelect",
    "HoliTom",
    "HoliTomMerge",
    "MMGVid",
    "PruneVid",
    "PruneVidSelect",
    "PyramidDrop",
    "PyramidDropStage",
    "RandomDrop",
    "SaliencyTopK",
    "ToMe",
    "UniformStride",
    "VisionZip",
    "hieravid",
    "hieravid_stages",
]
