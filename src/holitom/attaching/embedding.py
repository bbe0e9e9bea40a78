"""Handing a reduced prompt to a core that takes no encoded videos (transformers before 5.19): as embeddings."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import nn

from holitom.errors import UnsupportedModel


def takes_encoded_videos(core: nn.Module) -> bool:
    """Whether the core's forward accepts ``mm_encoder_outputs`` (transformers 5.19 and newer)."""
    parameters = inspect.signature(type(core).forward).parameters
    return "mm_encoder_outputs" in parameters


def as_embeddings(core: nn.Module, kwargs: dict[str, Any], video_token_id: int) -> None:
    """In ``kwargs`` of a prefill, replace ids and encoded videos by the embeddings that the core would make of them.

    UnsupportedModel for a prompt with an image beside the video, and for features that are not one tensor [1, M, D].
    """
    encoded = kwargs.pop("mm_encoder_outputs")
    rows = encoded["video"].pooler_output
    if encoded.get("image") is not None or not isinstance(rows, torch.Tensor):
        raise UnsupportedModel(
            "this transformers takes no encoded videos, and the prompt needs more than plain embeddings",
            fix="pip install 'transformers>=5.19,<6'",
        )
    ids = kwargs.pop("input_ids")
    embeds = core.get_input_embeddings()(ids)
    places = (ids == video_token_id).to(embeds.device)[..., None].expand_as(embeds)
    kwargs["inputs_embeds"] = embeds.masked_scatter(places, rows.to(embeds))
