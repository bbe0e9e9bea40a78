"""The adapter: everything token reduction needs to know about one family of video language models."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from holitom.errors import BadUsage
from holitom.models.encoding import EncodedVideos


@runtime_checkable
class Adapter(Protocol):
    """One model of a supported family.

    core: the module whose forward takes input_ids and ``mm_encoder_outputs`` and runs the language model; text: the
    language model with its ``config``; layers: its decoder layers; rotary: its rotary embedding, called as
    ``rotary(hidden, position_ids)``; newline: the newline embedding [D], None in families without one; newline_order:
    where newlines go ("end": one after the video, "row": one after every non-empty row, "none"); video_inputs: the
    arguments of a call that ``encode`` wants beside the pixels, by name; embeds_videos (optional, see AdapterBase).
    """

    core: nn.Module
    text: nn.Module
    layers: nn.ModuleList
    rotary: nn.Module
    video_token_id: int
    newline: Tensor | None
    newline_order: Literal["end", "row", "none"]
    video_inputs: tuple[str, ...]

    def encode(self, pixels: Tensor | Sequence[Tensor], requires: frozenset[str], **given: Any) -> EncodedVideos:
        """Pixels -> VideoFeatures of every video, with the optional fields that ``requires`` names."""
        ...

    def grid_positions(self, kwargs: Mapping[str, Any]) -> Tensor | None:
        """Rotary positions [axes, B, S] of the whole prompt in families that number time, rows and columns apart
        (M-RoPE): every kept token then keeps its own. None: one number a token."""
        ...

    def packed(self, rows: Tensor) -> Any:
        """Rows [M, D] of a batch's videos as the core wants ``mm_encoder_outputs["video"].pooler_output``."""
        ...


class AdapterBase:
    """What most families share; a new adapter overrides what differs."""

    newline: Tensor | None = None
    newline_order: Literal["end", "row", "none"] = "none"
    video_inputs: tuple[str, ...] = ()
    embeds_videos: bool = False
    """Whether the core makes nothing but embeddings of ids and encoded videos: then it is given those, and does not
    count placeholders on the host first."""

    def grid_positions(self, kwargs: Mapping[str, Any]) -> Tensor | None:
        return None

    def packed(self, rows: Tensor) -> Any:
        return rows[None]

    def embed_prompt(self, ids: Tensor, given: Mapping[str, Any]) -> Tensor:
        """Embeddings [B, S, D] of a prompt's ids, with its images in their places; what stands for a video is left to
        the caller. given: the arguments of the call, among them the images' pixels."""
        core: Any = self.core
        embeds = core.get_input_embeddings()(ids.masked_fill(ids == self.video_token_id, 0))
        if given.get("pixel_values") is None:
            return embeds
        names = inspect.signature(core.get_image_features).parameters
        features = core.get_image_features(**{n: given[n] for n in names if given.get(n) is not None}).pooler_output
        features = torch.cat(list(features)).to(embeds)
        place = ids == self.config.image_token_id
        if int(place.sum()) != len(features):
            raise BadUsage(
                f"{int(place.sum())} image placeholders for {len(features)} embeddings of images",
                fix="give the prompt that the model's own processor makes",
            )
        return embeds.masked_scatter(place[..., None].to(embeds.device), features)
