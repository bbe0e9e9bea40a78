"""Every stage that the package offers, in the settings that the shared tests run."""

from holitom.methods import (
    AveragePool,
    DyCoke,
    FastV,
    FastVID,
    HieraVid,
    HieraVidSelect,
    HoliTom,
    HoliTomMerge,
    MMGVid,
    PruneVid,
    PruneVidSelect,
    PyramidDropStage,
    RandomDrop,
    SaliencyTopK,
    ToMe,
    UniformStride,
    VisionZip,
)

OUTER = [
    HoliTom(),
    HoliTom(counts="exact"),
    HoliTom(tau=0.65, segmentation="fixed", max_window=4, static_by="saliency", dynamic_by="cluster", counts="exact"),
    FastVID(),
    FastVID(head="siglip"),
    FastVID(released=True),
    PruneVid(),
    PruneVid(released=True),
    MMGVid(),
    MMGVid(exact=False, uniqueness="frame", frame_share="novelty"),
    HieraVid(),
    HieraVid(scope="segment"),
    VisionZip(),
    VisionZip(released=True),
    DyCoke(),
    DyCoke(window=9),
    ToMe(),
    ToMe(metric="tokens", rounds=3),
    ToMe(released=True),
    RandomDrop(),
    UniformStride(),
    SaliencyTopK(),
    SaliencyTopK(lowest=True),
    AveragePool(),
]
INNER = [
    FastV(2, 0.5),
    HoliTomMerge(3, 0.5),
    HoliTomMerge(3, 0.8, "mean"),
    PyramidDropStage(2, 0.5),
    PyramidDropStage(2, 0.25, released=True),
    PruneVidSelect(2),
    PruneVidSelect(2, 0.9),
    HieraVidSelect(2, 0.3),
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
