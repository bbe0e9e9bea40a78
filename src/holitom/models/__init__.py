"""Adapters: what token reduction needs to know about one family of video language models, one file per family.

An adapter names the parts of a model (core, decoder layers, rotary embedding), turns pixels into VideoFeatures, and
says which token stands for video in a prompt and where newline tokens go. docs/adapters.md shows how to write one."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

from torch import nn

from holitom.errors import UnsupportedModel
from holitom.models.base import Adapter, AdapterBase
from holitom.models.encoding import EncodedVideos

__all__ = ["ADAPTERS", "Adapter", "AdapterBase", "EncodedVideos", "adapter_for"]

ADAPTERS: dict[str, str | Callable[[Any], Adapter]] = {
    "LlavaOnevisionForConditionalGeneration": "holitom.models.llava_onevision:LlavaOnevision",
    "LlavaOnevisionModel": "holitom.models.llava_onevision:LlavaOnevision",
    "Qwen2_5_VLForConditionalGeneration": "holitom.models.qwen2_5_vl:Qwen25VL",
    "Qwen2_5_VLModel": "holitom.models.qwen2_5_vl:Qwen25VL",
    "LlavaNextVideoForConditionalGeneration": "holitom.models.llava_next_video:LlavaNextVideo",
    "LlavaNextVideoModel": "holitom.models.llava_next_video:LlavaNextVideo",
    "LlavaQwenForCausalLM": "holitom.models.llava_package:LlavaPackage",
}
"""By the name of the model's class, or of a class it derives from: an adapter, or "module:name" of one, imported when
it is needed. ``ADAPTERS["MyModel"] = MyAdapter`` adds a family."""


def adapter_for(model: nn.Module) -> Adapter:
    """The adapter of a loaded model, also where something is wrapped around it (PEFT, for one).

    Raises UnsupportedModel, which names the families there are and what a new one needs, and CannotRun where the
    installed transformers is too old for the family.
    """
    for module in model.modules():
        for parent in type(module).__mro__:
            if parent.__name__ in ADAPTERS:
                if not hasattr(model, "config"):
                    raise UnsupportedModel(
                        f"a {type(model).__name__} around a {type(module).__name__} hides its config",
                        fix=f"give reduce_tokens the {type(module).__name__} itself",
                    )
                return _built(ADAPTERS[parent.__name__], model)
    families = sorted({name for name in ADAPTERS if not name.endswith("Model")})
    kind = getattr(getattr(model, "config", None), "model_type", None)
    raise UnsupportedModel(
        f"a {type(model).__name__}{f' (type {kind!r})' if kind else ''} cannot be reduced",
        fix=f"load one of: {', '.join(families)}; another family needs an adapter with the members of "
        "holitom.models.Adapter (core, text, layers, rotary, video_token_id, encode): docs/adapters.md shows how",
    )


def _built(adapter: str | Callable[[Any], Adapter], model: nn.Module) -> Adapter:
    if not isinstance(adapter, str):
        return adapter(model)
    module, name = adapter.split(":")
    return getattr(import_module(module), name)(model)
