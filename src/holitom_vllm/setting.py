"""What is asked of the engine: a method with an exact count, a budget. No import of vLLM: this runs without an engine.

The count of a video's tokens is decided twice, by different processes: where the prompt gets its placeholders, from the
number of frames alone, and where the tower has run. Two counts that differ end the engine and every request in it. So
only methods are taken whose count follows from T, N and the budget, and where one fails all the same (features with a
NaN), evenly spaced tokens stand in: that costs one answer.
"""

import dataclasses
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from holitom import methods
from holitom.errors import BadUsage, KitError, UnsupportedModel
from holitom.types import Outer, VideoFeatures, check_budget

EXACT = ("HoliTom", "VisionZip", "ToMe", "SaliencyTopK", "AveragePool", "RandomDrop", "UniformStride")
"""Methods that keep ``Setting.count`` tokens of every video, whatever it shows, numbered afresh."""
FIELDS = frozenset({"saliency", "keys"})
"""What the model computes for a method beside the tokens."""
_ONLY = {
    "mm_newline_position": ("one_token", "vLLM puts one newline behind a video"),
    "mm_spatial_pool_mode": ("bilinear", "vLLM pools bilinearly"),
    "vision_feature_select_strategy": ("full", "SigLIP has no class token to leave out"),
}

log = logging.getLogger("vllm.holitom")


@dataclass(frozen=True)
class Setting:
    """method None: whole videos (reduced ones may come in as embeddings). budget: the share of the tokens that stays,
    1 - ``video_pruning_rate``."""

    method: Outer | None = None
    budget: float = 1.0

    def __post_init__(self) -> None:
        check_budget(self.budget)

    def count(self, frames: int, cells: int) -> int:
        """Tokens of a video of ``frames`` x ``cells``, without its newline: round(budget * T * N), one at least."""
        return frames * cells if self.method is None else max(1, round(self.budget * (frames * cells)))

    def reduce(self, video: VideoFeatures) -> Tensor:
        """[T, N, D] -> [count(T, N), D], always as many."""
        flat = video.tokens.flatten(0, 1)
        if self.method is None:
            return flat
        wanted = self.count(video.frames, video.cells)
        try:
            tokens, why = self.method(video, self.budget).tokens, "another count"
        except KitError as error:
            tokens, why = flat[:0], str(error)
        if len(tokens) == wanted:
            return tokens
        log.error("%s left %d tokens where %d are due (%s): evenly spaced ones", self.method, len(tokens), wanted, why)
        return flat[torch.arange(wanted, device=flat.device) * len(flat) // wanted]


def setting_of(config: Any, rate: float | None, pruning: str | None = None) -> Setting:
    """config: the model's, with what ``hf_overrides`` put into it; rate and pruning: vLLM's ``video_pruning_rate`` and
    ``video_pruning_method``. BadUsage, UnsupportedModel: what this plug-in cannot serve, before any video comes."""
    refuse_model(config)
    asked = getattr(config, "holitom", None)
    if pruning not in (None, "evs"):  # vLLM's default, which says nothing
        raise BadUsage(f"video_pruning_method={pruning!r} beside HoliTom", fix="leave vLLM's own method out")
    if not rate:
        if asked is not None:
            fix = "add video_pruning_rate, the share to remove (0.9 keeps a tenth), or leave holitom out"
            raise BadUsage(f"a method for videos ({asked}) without a share of them to remove", fix=fix)
        return Setting()
    if isinstance(rate, bool) or not 0 < rate < 1:
        raise BadUsage(f"video_pruning_rate={rate!r}", fix="give the share to remove, in (0, 1): 0.9 keeps a tenth")
    return Setting(method_of({} if asked is None else asked), round(1 - rate, 9))  # 1 - 0.9 is a little below 0.1


def method_of(asked: Mapping[str, Any]) -> Outer:
    """{"method": "HoliTom", "tau": 0.8, ...}: a class of ``holitom.methods`` and its parameters."""
    if not isinstance(asked, Mapping):
        raise BadUsage(f"holitom={asked!r}", fix='give a dict such as {"method": "HoliTom", "tau": 0.65}')
    given = {"method": "HoliTom", **asked}
    name = given.pop("method")
    if name == "HoliTom":
        given = {"counts": "exact", **given}
    kind = getattr(methods, str(name), None)
    if kind is None or not isinstance(getattr(kind, "requires", None), (frozenset, property)):
        raise BadUsage(f"method {name!r} is no outer stage", fix=f"choose one of {', '.join(EXACT)}")
    known = {field.name for field in dataclasses.fields(kind)}
    if odd := sorted(set(given) - known):
        raise BadUsage(f"{name} has no {', '.join(odd)}", fix=f"its parameters are {', '.join(sorted(known))}")
    method = kind(**given)
    if lacking := sorted(method.requires - FIELDS):
        raise BadUsage(f"{name} reads {', '.join(lacking)}, which is not computed here", fix="run it by reduce_tokens")
    if name not in EXACT or getattr(method, "counts", "exact") != "exact":
        fix = f'choose one of {", ".join(EXACT)}, HoliTom with counts="exact"; others by reduced video embeddings'
        raise BadUsage(f"how many tokens {method} keeps is not known before the video is encoded", fix=fix)
    return method


def refuse_model(config: Any) -> None:
    """UnsupportedModel unless the config is that of a LLaVA-OneVision as vLLM computes it."""
    kind, tower = getattr(config, "model_type", None), getattr(config, "vision_config", None)
    if kind != "llava_onevision" or getattr(tower, "model_type", None) != "siglip_vision_model":
        raise UnsupportedModel(
            f"a {kind!r} model (tower {getattr(tower, 'model_type', None)!r}) was given the architecture of HoliTom",
            fix="HoliTom in vLLM is for LLaVA-OneVision with its SigLIP tower; leave hf_overrides out",
        )
    for name, (only, why) in _ONLY.items():
        if (getattr(config, name, None) or only) != only:
            raise UnsupportedModel(f"{name} is {getattr(config, name)!r}, and {why}", fix="run it by reduce_tokens")
    if not isinstance(config.vision_feature_layer, int):
        raise UnsupportedModel("features of several layers are joined", fix="run it by reduce_tokens")


def mean_over_ranks(values: Tensor, group: Any) -> Tensor:
    """The mean of what every tensor-parallel rank computed from its own heads, as many on each. group: of vLLM's
    ``get_tp_group()``, with ``world_size`` and ``all_reduce``."""
    return values if group.world_size == 1 else group.all_reduce(values) / group.world_size
