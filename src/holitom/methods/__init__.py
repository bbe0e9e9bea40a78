"""The reduction methods, one file per paper, its stages together. Each stage is a frozen dataclass that works on
plain tensors; none knows a model library. The published settings are in ``holitom.methods.presets``."""

from holitom.methods.controls import AveragePool, RandomDrop, SaliencyTopK, UniformStride
from holitom.methods.dycoke import DyCoke, DyCokeDecode
from holitom.methods.early_tom import EarlyTom
from holitom.methods.fastv import FastV
from holitom.methods.fastvid import FastVID
from holitom.methods.flashvid import FlashVID
from holitom.methods.hieravid import HieraVid, HieraVidSelect
from holitom.methods.holitom import HoliTom, HoliTomMerge
from holitom.methods.mmg_vid import MMGVid
from holitom.methods.prunevid import PruneVid, PruneVidSelect
from holitom.methods.pyramiddrop import PyramidDrop, PyramidDropStage
from holitom.methods.tome import ToMe
from holitom.methods.unicomp import UniComp
from holitom.methods.unified_pool import UnifiedPool
from holitom.methods.vcast import VCast
from holitom.methods.visionzip import VisionZip

__all__ = [
    "AveragePool",
    "DyCoke",
    "DyCokeDecode",
    "EarlyTom",
    "FastV",
    "FastVID",
    "FlashVID",
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
    "UniComp",
    "UnifiedPool",
    "UniformStride",
    "VCast",
    "VisionZip",
]
