"""Every stage that the package offers: as ``bench ops`` measures it, and in further settings."""

from holitom_repro.bench.methods import INNER as MEASURED_INNER
from holitom_repro.bench.methods import OUTER as MEASURED_OUTER
from holitom.methods import (
    DyCoke,
    FastVID,
    HieraVid,
    HieraVidSelect,
    HoliTom,
    HoliTomMerge,
    MMGVid,
    PruneVid,
    PruneVidSelect,
    PyramidDropStage,
    SaliencyTopK,
    ToMe,
    VisionZip,
)

OUTER = [
    *MEASURED_OUTER.values(),
    HoliTom(counts="exact"),
    HoliTom(tau=0.65, segmentation="fixed", max_window=4, static_by="saliency", dynamic_by="cluster", counts="exact"),
    FastVID(head="siglip"),
    FastVID(released=True),
    PruneVid(released=True),
    MMGVid(exact=False, uniqueness="frame", frame_share="novelty"),
    HieraVid(scope="segment"),
    VisionZip(released=True),
    DyCoke(window=9),
    ToMe(metric="tokens", rounds=3),
    ToMe(released=True),
    SaliencyTopK(lowest=True),
]
INNER = [
    *(stage for stage, _ in MEASURED_INNER.values()),
    HoliTomMerge(3, 0.8, "mean"),
    PyramidDropStage(2, 0.25, released=True),
    PruneVidSelect(2, 0.9),
    HieraVidSelect(2, 0.9, relevance=1),
    HieraVidSelect(2, 0.57, released=True),
]


def reach(method, budget):
    """The budget, raised where a method refuses less by its nature."""
    return max(budget, 1 / method.window) if isinstance(method, DyCoke) else budget


def call(stage, prompt, grouped=True):
    hidden, score, visual, group, gain = prompt
    score = score if stage.query == "text" else score[:, -1].mean(0)
    extra = {"group": group, "gain": gain} if grouped and getattr(stage, "reads_groups", False) else {}
    return stage(hidden, score, visual, len(visual), **extra)
