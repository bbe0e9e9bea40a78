"""The reduced prompt of one video and question as embeddings: what an engine with prompt embeddings goes on from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from holitom.attach import reduce_tokens
from holitom.errors import BadUsage, CannotRun
from holitom.models import adapter_for
from holitom.types import Reduction


class _Reached(Exception):
    """The language model is about to run: its arguments are what was wanted."""


@torch.inference_mode()
def prompt_embeds(model: nn.Module, inputs: Mapping[str, Any], reduction: Reduction) -> Tensor:
    """What the language model of ``model`` gets for one prompt with a video under ``reduction``: [S, D] on the CPU, in
    the model's dtype. inputs: as for ``model.generate``, batch 1. The language model is not run.

    BadUsage: stages inside the language model, which the engine runs; several prompts; positions that are not 0, 1, 2,
    ... (Qwen2.5-VL), as engines number a prompt of embeddings. CannotRun: nothing was reduced.
    """
    if reduction.inner or reduction.decode is not None:
        raise BadUsage(f"{reduction.name} acts inside the language model", fix="export its outer stage alone")
    if len(inputs["input_ids"]) != 1:
        raise BadUsage(f"{len(inputs['input_ids'])} prompts at once", fix="export one prompt at a time")
    found: dict[str, Any] = {}

    def reached(module: nn.Module, args: tuple[Any, ...], given: dict[str, Any]) -> None:
        found.update(given)
        raise _Reached

    with reduce_tokens(model, reduction=reduction):
        handle = adapter_for(model).text.register_forward_pre_hook(reached, with_kwargs=True)
        try:
            model(**inputs)
        except _Reached:
            pass
        finally:
            handle.remove()
    embeds, positions = found["inputs_embeds"][0].cpu(), found.get("position_ids")
    if positions is not None and not torch.equal(positions.cpu().reshape(-1), torch.arange(len(embeds))):
        raise BadUsage("this prompt has positions of its own", fix="run it here with reduce_tokens")
    if reduction.outer is not None and reduction.budget < 1 and len(embeds) >= inputs["input_ids"].shape[1]:
        raise CannotRun(f"{reduction.name} kept every token", fix="ask for fewer tokens, or give a longer video")
    return embeds
