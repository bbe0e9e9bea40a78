"""Adapters: what token reduction needs to know about a family of video language models; and what feeds them."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module, metadata
from typing import Any, Literal

import torch
from torch import Tensor, nn

from holitom.errors import BadUsage, CannotRun, UnsupportedModel
from holitom.types import VideoFeatures

MINIMUM = (5, 17)
"""transformers: the oldest release on which prompts are reduced (caches of layers, masks per layer)."""

Order = Literal["end", "row", "none"]
"""Where newlines go: one behind the video, one behind every row of a frame that still holds a token, or nowhere."""


class Adapter:
    """One model of a supported family: what transformers' own share. A family overrides what differs, and ``encode``.

    core: the module that joins vision tower and language model; tower: the vision tower; text: the language model, with
    its ``config``; layers: its decoder layers; rotary: its rotary embedding, called as ``rotary(hidden, positions)``;
    video_token_id: what stands for a video in a prompt; newline: the newline embedding [D], None in families without
    one; newline_order: where newlines go; video_inputs: the arguments of a call that ``encode`` wants beside pixels.
    """

    newline: Tensor | None = None
    newline_order: Order = "none"
    video_inputs: tuple[str, ...] = ()

    def __init__(self, model: nn.Module, tower: str) -> None:
        """tower: what the core calls its vision tower, beside its ``language_model``."""
        require_transformers()
        parts = {tower, "language_model"}
        self.core: Any = next((module for module in model.modules() if parts <= set(module._modules)), None)
        if self.core is None:
            what = f"{type(model).__name__} has no {tower} beside a language_model"
            raise UnsupportedModel(what, fix="give the whole model")
        self.config: Any = model.config
        self.tower, self.text = getattr(self.core, tower), self.core.language_model
        self.layers, self.rotary = self.text.layers, self.text.rotary_emb
        self.video_token_id: int = self.config.video_token_id

    def encode(self, pixels: Tensor | Sequence[Tensor], requires: frozenset[str], **given: Any) -> list[VideoFeatures]:
        """Pixels -> the features of every video, with the optional fields of VideoFeatures that ``requires`` names, and
        no others. Raises UnsupportedModel or CannotRun for a field that cannot be had. given: ``video_inputs``, and
        ``tower`` where a stage works inside a SigLIP tower (``LlavaOnevision.encode``)."""
        raise NotImplementedError

    def embed(self, ids: Tensor, kwargs: Mapping[str, Any]) -> Tensor:
        """ids [B, S] -> embeddings [B, S, D] of a prompt's words, and of the images that come with it in ``kwargs``
        (the arguments of the call). What stands at the places of videos means nothing."""
        table, known = self.core.get_input_embeddings(), ids.masked_fill(ids == self.video_token_id, 0)
        words = table(known.to(device_of(table, ids)))
        if kwargs.get("pixel_values") is None:
            return words
        names = inspect.signature(self.core.get_image_features).parameters
        given = {name: kwargs[name] for name in names if kwargs.get(name) is not None}
        rows = self.core.get_image_features(**given, return_dict=True).pooler_output
        rows = rows if isinstance(rows, Tensor) else torch.cat(tuple(rows))
        places = ids == self.config.image_token_id
        if places.sum() != len(rows):
            what = f"{int(places.sum())} placeholders for images of {len(rows)} tokens"
            raise BadUsage(what, fix="give the prompt that the model's own processor makes")
        return words.masked_scatter(places[..., None].to(words.device), rows.to(words))

    def grid_positions(self, kwargs: Mapping[str, Any]) -> Tensor | None:
        """Rotary positions [axes, B, S] of the whole prompt in families that number time, rows and columns apart
        (M-RoPE): every kept token then keeps its own. None: one number a token."""
        return None

    def pooling_head(self) -> Any:
        """What frame_embed and head_saliency are made by: SigLIP's pooling head."""
        what = f"the vision tower of {type(self).__name__} is no SigLIP and has no pooling head"
        raise UnsupportedModel(what, fix="compare frames without it: FastVID(head='substitute')")


ADAPTERS: dict[str, str | Callable[[Any], Adapter]] = {
    "LlavaOnevisionForConditionalGeneration": "holitom.models.llava_onevision:LlavaOnevision",
    "LlavaOnevisionModel": "holitom.models.llava_onevision:LlavaOnevision",
    "Qwen2_5_VLForConditionalGeneration": "holitom.models.qwen2_5_vl:Qwen25VL",
    "Qwen2_5_VLModel": "holitom.models.qwen2_5_vl:Qwen25VL",
    "LlavaNextVideoForConditionalGeneration": "holitom.models.llava_onevision:LlavaNextVideo",
    "LlavaNextVideoModel": "holitom.models.llava_onevision:LlavaNextVideo",
    "LlavaQwenForCausalLM": "holitom.models.llava_onevision:LlavaPackage",
}
"""By the name of the model's class, or of a class it derives from: an adapter, or "module:name" of one, imported when
it is needed. ``ADAPTERS["MyModel"] = MyAdapter`` adds a family."""


def host_of(model: nn.Module) -> tuple[Any, str]:
    """The module of a known family in a model, also where something is wrapped around it (PEFT, for one), and the name
    in ADAPTERS by which it is known. UnsupportedModel names the families there are, and what a new one needs."""
    for module in model.modules():
        for parent in type(module).__mro__:
            if parent.__name__ in ADAPTERS:
                return module, parent.__name__
    families = sorted(name for name in ADAPTERS if not name.endswith("Model"))
    raise UnsupportedModel(
        f"a {type(model).__name__} cannot be reduced",
        fix=f"load one of: {', '.join(families)}; another family needs an adapter with the members of "
        "holitom.models.Adapter: docs/adapters.md shows how",
    )


def adapter_for(model: nn.Module) -> Adapter:
    """The adapter of a loaded model. Raises UnsupportedModel for an unknown family or wrapped parts, and CannotRun
    where the installed transformers is too old for the family."""
    host, known = host_of(model)
    made = ADAPTERS[known]
    if isinstance(made, str):
        home, _, name = made.partition(":")
        made = getattr(import_module(home), name)
    try:
        return made(model)
    except AttributeError as error:
        what = f"this {type(host).__name__}, or a part of it, is wrapped or lacks what the adapter reads ({error})"
        raise UnsupportedModel(what, fix="give the model itself, with its own parts") from error


def require_transformers(found: str | None = None) -> None:
    """CannotRun where the installed transformers is older than MINIMUM."""
    found = found or metadata.version("transformers")
    if tuple(int(part) for part in found.split(".")[:2]) < MINIMUM:
        wanted = ".".join(map(str, MINIMUM))
        raise CannotRun(
            f"transformers {found} is installed, and this needs {wanted} or newer",
            fix=f"pip install 'transformers>={wanted}'; for the original llava package see docs/llava.md",
        )


def device_of(module: nn.Module, states: Tensor) -> torch.device:
    """Where a module computes: where accelerate moves what comes in, else where its weights are; the states' own device
    where that cannot be told (weights that are put away, or that are no tensors, as in quantised layers)."""
    device = getattr(getattr(module, "_hf_hook", None), "execution_device", None)
    if device is None:
        device = next((weight.device for weight in module.parameters() if weight.device.type != "meta"), states.device)
    return torch.device(device)


def own_weight(module: nn.Module, name: str) -> Tensor:
    """A module's own parameter, also where accelerate has put it away until the module runs."""
    value, hook = getattr(module, name), getattr(module, "_hf_hook", None)
    if value.device.type != "meta":
        return value
    if hook is None:
        raise UnsupportedModel(f"the weight {name} is on no device", fix="name a device for it in the device_map")
    hook.pre_forward(module)
    value = getattr(module, name).detach().clone()
    hook.post_forward(module, None)
    return value
