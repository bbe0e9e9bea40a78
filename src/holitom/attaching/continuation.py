"""Calls after prefill, on a cache that holds a reduced prompt: decoding, and further turns of a conversation.

The caller goes on counting in the unreduced prompt: its mask has a column for every token it gave, its positions run on
from there. This module translates both into what the language model's first layer holds.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from holitom.attaching.calls import Call
from holitom.attaching.views import PromptState
from holitom.errors import BadUsage


def continue_prompt(kwargs: dict[str, Any], state: PromptState) -> Call:
    """Rewrite ids, mask and positions in ``kwargs`` for the tokens behind a reduced prompt; raises BadUsage where they
    do not fit the cache.

    ``generate`` on an existing cache passes the ids from the cache's length on, and that is too many where the cache is
    shorter than the caller thinks: the surplus is cut off in front.
    """
    ids, embeds, mask = (kwargs.get(name) for name in ("input_ids", "inputs_embeds", "attention_mask"))
    tokens = ids if ids is not None else embeds
    if tokens.shape[0] != state.samples:
        raise BadUsage(
            f"a batch of {tokens.shape[0]} on a cache with {state.samples} prompts", fix="keep the batch of the prefill"
        )
    if mask is not None and mask.ndim != 2:
        raise BadUsage(f"an attention mask of {mask.ndim} dimensions", fix="give a 2-D mask [batch, columns], or none")
    held = kwargs["past_key_values"].get_seq_length() - state.views[0].length
    if held < 0:
        raise BadUsage("the cache was cropped into the reduced prompt", fix="crop what follows the prompt only")
    new = _newly_given(tokens.shape[1], held, mask, kwargs.get("position_ids"), state)
    if ids is not None:
        kwargs["input_ids"] = ids[:, -new:]
    else:
        kwargs["inputs_embeds"] = embeds[:, -new:]
    columns = None if mask is None else mask[:, state.given :]
    positions = _positions(new, held, columns, kwargs.get("position_ids"), state)
    call = Call(state, prefill=False, positions=positions, new=held + new, new_mask=columns)
    first = state.views[0]
    kwargs["position_ids"] = positions
    kwargs["attention_mask"] = None
    if first.padded or columns is not None:
        behind = call.new_columns(tokens.device)
        kwargs["attention_mask"] = torch.cat([first.mask(tokens.device), behind], dim=1).long()
    return call


def _newly_given(width: int, held: int, mask: Tensor | None, positions: Tensor | None, state: PromptState) -> int:
    """How many of the ``width`` ids of this call are new, given ``held`` columns behind the prompt in the cache."""
    if mask is not None:
        new = mask.shape[1] - state.given - held
    elif positions is not None and (state.removed < 0 or 0 < state.removed < width):
        # looks at the device, though not when one token is decoded behind a prompt that has become shorter
        positions = positions[-1] if positions.ndim == 3 else positions  # the same for all axes behind the prompt
        expected = state.next_position + state.caller_shift
        behind_prompt = positions[..., -1] - expected.to(positions.device) + 1
        new = int(behind_prompt.max()) - held
    else:
        new = width
    if not 1 <= new <= width or width - new not in (0, state.removed):
        covered = f" and a mask of {mask.shape[1]} columns" if mask is not None else ""
        raise BadUsage(
            f"{width} ids{covered} do not fit a cache that holds a prompt of {state.given} tokens and {held} more",
            fix=f"give the new tokens alone, and a mask of {state.given} + {held} + the new columns; a whole "
            "conversation can be given only if its prompt had a placeholder for every token of the video",
        )
    return new


def _positions(new: int, held: int, columns: Tensor | None, given: Tensor | None, state: PromptState) -> Tensor:
    """Positions [B, new] in the language model's numbering."""
    if given is not None:
        return given[..., -new:] - state.caller_shift[:, None].to(given.device)
    if columns is not None:
        counted = columns.long().cumsum(1) - 1
        return state.next_position[:, None] + counted[:, -new:].clamp_min(0).to(state.next_position.device)
    steps = torch.arange(held, held + new, device=state.next_position.device)
    return state.next_position[:, None] + steps
