"""Run one inner stage on a batch: score, reduce every sample by itself, pad again to the longest that remains."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from holitom.attaching.calls import Call
from holitom.attaching.groups import NO_GROUPS
from holitom.attaching.kinds import Kinds
from holitom.attaching.library import held, set_held
from holitom.attaching.precision import own_precision
from holitom.attaching.scores import attention_rows
from holitom.attaching.views import PromptState, View, pad_left, select_slots
from holitom.errors import BadUsage
from holitom.ops.transfer import refuse_if
from holitom.types import Inner


def score_samples(
    call: Call,
    stage: Inner,
    view: View,
    attention: nn.Module,
    hidden: Tensor,
    embeddings: tuple[Tensor, Tensor],
    keys: Tensor | None = None,
) -> list[Tensor | None]:
    """The stage's score of every sample, without padding: [S] for query "last" (mean over heads), [heads, rows, S] for
    "text"; None where there is no video. hidden [B, S, D]: what enters ``attention``; keys [B, kv, S, width]."""
    scores: list[Tensor | None] = []
    for b, kinds in enumerate(call.kinds):
        if not kinds.candidates(stage):
            scores.append(None)
            continue
        first = len(kinds) - 1
        if stage.query == "text":
            first = min(first, kinds.behind_video())
        rows = attention_rows(
            attention,
            view.real(hidden, b),
            *(view.real(part, b) for part in embeddings),
            torch.arange(first, len(kinds), device=hidden.device),
            keys=None if keys is None else keys[b, :, view.pads[b] :],
            causal=stage.causal,
        ).to(hidden.device)
        scores.append(rows if stage.query == "text" else rows[:, -1].mean(0))
    return scores


def reduce_samples(
    call: Call, stage: Inner, before: View, hidden: Tensor, scores: list[Tensor | None]
) -> tuple[Tensor, View]:
    """hidden [B, S, D] with the layout ``before`` -> the states that remain [B, S', D] and their layout; updates
    ``call.kinds`` and ``call.groups``."""
    rows, ids, positions, left, groups = [], [], [], [], []
    reads_groups = getattr(stage, "reads_groups", False)
    renumbers = stage.positions == "contiguous" and not call.state.on_grid
    for b, kinds in enumerate(call.kinds):
        states, number = before.real(hidden, b), before.real(before.positions, b)
        kept, after = torch.arange(len(kinds), device=kinds.kind.device), kinds
        if kinds.candidates(stage):
            visual, n0, given = kinds.candidate_ids(stage), call.initial[b].candidates(stage), {}
            if reads_groups:
                mine = call.groups[b]
                given = NO_GROUPS if mine is None else mine.at(visual).arguments(hidden.device)
            with own_precision(hidden.device):
                keep, states = stage(states, scores[b], visual.to(hidden.device), n0, **given)
            kept = _checked(stage, keep, states, kinds)
            after = kinds.after(stage, kept)
        place = kept.to(number.device)
        number = number[place]
        if renumbers:
            number = number[0] + torch.arange(len(number), device=number.device)
        rows.append(states.to(hidden.dtype))
        ids.append(before.real(before.ids, b)[place])
        positions.append(number)
        left.append(after)
        groups.append(None if call.groups[b] is None else call.groups[b].at(kept))
    shift = before.shift
    if renumbers:
        shift = call.state.next_position - 1 - torch.stack([p[-1] for p in positions])
    call.kinds, call.groups = left, groups
    return pad_left(rows, 0), View.of(ids, positions, shift)


def prune_past(state: PromptState, layer: int, kept: View, cache: Any) -> None:
    """Drop from the caches of the layers before ``layer`` what its stage has dropped."""
    replaced: dict[View, tuple[View, Tensor]] = {}
    for earlier in range(layer):
        old = state.views[earlier]
        if old not in replaced:
            replaced[old] = old.restricted(kept), old.slots_of(kept)
        state.views[earlier], slots = replaced[old]
        set_held(cache, earlier, *(select_slots(t, slots, 2).contiguous() for t in held(cache, earlier)))


def _checked(stage: Inner, keep: Tensor, states: Tensor, kinds: Kinds) -> Tensor:
    """The ids that a stage has kept, on the prompt's device. BadUsage for ids that are not ascending, are out of range
    or lack a token that is not visual: at once on a CPU, elsewhere when the run's flags are read."""
    keep, total, name = keep.to(kinds.kind.device), len(kinds), type(stage).__name__
    unlike = BadUsage(
        f"{name} returned {len(keep)} ids and {len(states)} states for {total} tokens",
        fix="return strictly ascending ids into the sequence, and one state for each",
    )
    if not len(keep) or len(states) != len(keep):
        raise unlike
    inside = keep.clamp(0, total - 1)  # what is refused later must not fail as an index first
    refuse_if((inside != keep).any() | (keep.diff() <= 0).any(), lambda: unlike)
    lost = kinds.lost(stage, inside)
    refuse_if(
        lost > 0,
        lambda: BadUsage(f"{name} dropped {int(lost)} tokens that are not visual", fix="keep every other token"),
    )
    return inside
