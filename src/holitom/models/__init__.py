"""Adapters: what token reduction needs to know about one family of video language models.

An adapter names the parts of a model (core, decoder layers, rotary embedding), turns pixels into VideoFeatures, and
says which token stands for video in a prompt and where newline tokens go. Adding a family means writing one class
with the members of ``Adapter`` and one line in ``ADAPTERS``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, Protocol, runtime_checkable

from torch import Tensor, nn

from holitom.errors import UnsupportedModel
from holitom.models.encoding import EncodedVideos
from holitom.models.llava_onevision import LlavaOnevision

__all__ = ["ADAPTERS", "Adapter", "EncodedVideos", "adapter_for"]


@runtime_checkable
class Adapter(Protocol):
    """One model of a supported family.

    core: the module whose forward takes input_ids and ``mm_encoder_outputs`` and runs the language model; text: the
    language model with its ``config``; layers: its decoder layers; rotary: its rotary embedding, called as
    ``rotary(hidden, position_ids)``; newline: the newline embedding [D]; newline_order: where newlines go ("end": one
    after the video, "row": one after every non-empty row, "none").
    """

    core: nn.Module
    text: nn.Module
    layers: nn.ModuleList
    rotary: nn.Module
    video_token_id: int
    newline: Tensor
    newline_order: Literal["end", "row", "none"]

    def vision_attention(self) -> nn.Module: ...

    def encode(self, pixels: Tensor | Sequence[Tensor], requires: frozenset[str]) -> EncodedVideos: ...


ADAPTERS: dict[str, Callable[[Any], Adapter]] = {"llava_onevision": LlavaOnevision}
"""By ``config.model_type``."""


def adapter_for(model: nn.Module) -> Adapter:
    """The adapter of a loaded model; UnsupportedModel names the families there are and what a new one needs."""
    model_type = getattr(getattr(model, "config", None), "model_type", None)
    if model_type not in ADAPTERS:
        raise UnsupportedModel(
            f"a model of type {model_type or type(model).__name__!r} cannot be reduced",
            fix=f"load one of: {', '.join(sorted(ADAPTERS))}; another family needs an adapter with the members of "
            "holitom.models.Adapter (core, text, layers, rotary, video_token_id, newline, encode)",
        )
    return ADAPTERS[model_type](model)
