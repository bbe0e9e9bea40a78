"""The decoder's seam: hooks on the decoder layers that shorten the sequence in prefill and keep every later call right.

The language model hands its own positions and masks to every layer, so each layer that holds fewer tokens gets its own.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from holitom.attach.decode_stage import ReadingLayer, slots_read
from holitom.attach.library import bidirectional_mask, cache_of, causal_mask, keep_columns, keys_of
from holitom.attach.prompt import NEWLINE, VISUAL, Held, Prompt, own_precision, pad_left, select
from holitom.attach.rows import attention_rows, rotation_of, weights_on
from holitom.attach.stats import RunStats
from holitom.errors import BadUsage
from holitom.types import Inner, Reduction

_ON_CACHE = "_holitom_prompt"


def prompt_of(cache: Any) -> Prompt | None:
    """The reduced prompt that this cache holds, None without one."""
    return getattr(cache, _ON_CACHE, None)


@dataclass(eq=False)
class Call:
    """One forward of the language model over a reduced prompt. Prefill: what entered every layer so far, and scores on
    their way to a stage. Later (positions [B, q] are this call's): columns behind the prompt, this call's included, and
    per prompt the ids that the decode stage leaves unread. shared: masks and rotary embeddings of layers alike."""

    prompt: Prompt
    positions: Tensor | None = None
    new: int = 0
    entered: list[Held] = field(default_factory=list)
    scores: list[Tensor | None] = field(default_factory=list)
    unread: list[Tensor] | None = None
    shared: dict[Hashable, Any] = field(default_factory=dict)

    @property
    def prefill(self) -> bool:
        return self.positions is None

    def once(self, key: Hashable, make: Callable[[], Any]) -> Any:
        if key not in self.shared:
            self.shared[key] = make()
        return self.shared[key]


class Decoder:
    """Hooks on the decoder layers of one model. ``call`` is the forward under way; without one all pass untouched."""

    def __init__(self, adapter: Any, reduction: Reduction, stats: RunStats) -> None:
        self.adapter, self.decode, self.stats = adapter, reduction.decode, stats
        self.stages = {stage.layer: stage for stage in reduction.inner}
        self.call: Call | None = None
        if self.stages or self.decode is not None:
            for layer in adapter.layers:
                rotation_of(layer.self_attn)

    def install(self) -> list[Any]:
        """Put the hooks in; the handles take them out."""
        layers, handles = self.adapter.layers, []
        scored = {stage.layer - 1 for stage in self.stages.values() if stage.score == "prev"}
        scored |= {self.decode.layer - 1} if self.decode is not None else set()
        for i, layer in enumerate(layers):
            handles.append(layer.register_forward_pre_hook(self._entering(i), with_kwargs=True))
            if i in scored:
                handles.append(layer.self_attn.register_forward_hook(self._attended(i), with_kwargs=True))
        return handles

    def _entering(self, index: int) -> Callable[..., Any]:
        def hook(layer: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]] | None:
            if self.call is None:
                return None
            hidden = args[0] if args else kwargs.pop("hidden_states")
            hidden = self._enter(self.call, index, layer, hidden, kwargs)
            return (hidden, *args[1:]), kwargs

        return hook

    def _enter(self, call: Call, index: int, layer: nn.Module, hidden: Tensor, kwargs: dict[str, Any]) -> Tensor:
        """Shorten the sequence if a stage stands before this layer, and give the layer its own positions and mask."""
        prompt, cache, rotary = call.prompt, cache_of(kwargs), kwargs["position_embeddings"]
        kwargs["position_ids"] = None  # the rotary embedding says it all; flash attention would misread the gaps
        if call.prefill:
            if index == 0 and cache is not None:
                setattr(cache, _ON_CACHE, prompt)
            if index in self.stages:
                hidden = self._reduce(call, index, layer, hidden, rotary, cache)
            call.entered.append(prompt.layers[index])
        held, follower = prompt.layers[index], self.stages.get(index + 1)
        kwargs["position_embeddings"] = self._rotary(call, held, hidden, rotary)
        if call.unread is not None and index >= self.decode.layer:
            kwargs["attention_mask"] = self._read(call, held, index, hidden, cache)
        elif call.prefill and follower is not None and not follower.causal:
            kwargs["attention_mask"] = bidirectional_mask(self.adapter.text.config, hidden, held.mask())
            kwargs["is_causal"] = False
        elif held is not prompt.base:
            kwargs["attention_mask"] = self._mask(call, "all", held, index, hidden, cache, held.mask(call.new))
        return hidden

    def _mask(
        self, call: Call, what: str, held: Held, index: int, hidden: Tensor, cache: Any, real: Tensor | None
    ) -> Any:
        before = None if call.prefill else cache
        make = partial(causal_mask, self.adapter.text.config, hidden, real, before, index)
        return call.once((what, held, hidden.device), make)

    def _rotary(self, call: Call, held: Held, hidden: Tensor, rotary: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """The rotary embedding of what enters a layer: gathered where positions were kept, made anew where not."""
        base = call.prompt.base
        if held is base or (held.shift is None and not call.prefill):
            return rotary

        def make() -> tuple[Tensor, Tensor]:
            if held.shift is None:
                return tuple(select(part, base.slots(held), 1) for part in rotary)
            numbers = pad_left(held.numbers)
            if not call.prefill:
                numbers = call.positions - torch.tensor(held.shift, device=call.positions.device)[:, None]
            return self.adapter.rotary(hidden, numbers.to(hidden.device))

        return call.once(("rotary", held, hidden.device), make)

    def _reduce(
        self, call: Call, index: int, layer: nn.Module, hidden: Tensor, rotary: tuple[Tensor, Tensor], cache: Any
    ) -> Tensor:
        """Run the stage in front of this layer on every prompt by itself; pad to the longest that remains."""
        stage, prompt = self.stages[index], call.prompt
        before = prompt.layers[index - 1] if index else prompt.base
        if stage.score == "this":
            normed = layer.input_layernorm(hidden.to(weights_on(layer.input_layernorm, hidden.device)))
            own = self._rotary(call, before, hidden, rotary)
            call.scores = self._scores(prompt, stage, before, layer.self_attn, normed, own)
        rows, ids, numbers = [], [], []
        for b, score in enumerate(call.scores):
            states, kind = before.real(hidden, b), prompt.kind[b][before.ids[b]]
            keep = torch.arange(len(kind))
            if score is not None:
                keep, states = self._kept(stage, prompt, before, b, kind, states, score)
            rows.append(states.to(hidden.dtype))
            ids.append(before.ids[b][keep])
            numbers.append(before.numbers[b][keep])
        shift = before.shift
        if stage.positions == "contiguous" and not prompt.on_grid:
            numbers = [number[0] + torch.arange(len(number)) for number in numbers]
            shift = [int(full[-1] - number[-1]) for full, number in zip(prompt.base.numbers, numbers, strict=True)]
        held = Held(ids, numbers, shift)
        prompt.layers[index:] = [held] * (len(prompt.layers) - index)
        if stage.prune_past and cache is not None:
            for earlier, old in enumerate(prompt.layers[:index]):
                slots = old.slots(held)
                keep_columns(cache, earlier, lambda x, slots=slots: select(x, slots, 2).contiguous())
                prompt.layers[earlier] = call.once(("pruned", old, held), lambda old=old: old.only(held))
        self.stats.calls[f"inner@{index}"] += 1
        self.stats.removed[f"inner@{index}"] += sum(map(len, before.ids)) - sum(map(len, ids))
        return pad_left(rows)

    def _kept(
        self, stage: Inner, prompt: Prompt, before: Held, b: int, kind: Tensor, states: Tensor, score: Tensor
    ) -> tuple[Tensor, Tensor]:
        """What the stage keeps of one prompt: ids on the host and states. BadUsage where it breaks its promise."""
        may_go, device, name = candidates(stage, kind), states.device, type(stage).__name__
        visual, given = may_go.nonzero().flatten(), {}
        if getattr(stage, "reads_groups", False):
            for field_name, values in (("group", prompt.group[b]), ("gain", prompt.gain[b])):
                given[field_name] = None if values is None else values[before.ids[b]][visual].to(device)
        with own_precision(device):
            keep, states = stage(
                states, score, visual.to(device), int(candidates(stage, prompt.kind[b]).sum()), **given
            )
        keep, total = keep.cpu(), len(kind)
        if not len(keep) or len(states) != len(keep) or (keep.diff() <= 0).any() or keep[0] < 0 or keep[-1] >= total:
            raise BadUsage(
                f"{name} returned {len(keep)} ids and {len(states)} states for {total} tokens",
                fix="return strictly ascending ids into the sequence, and one state for each",
            )
        lost = int((~may_go).sum() - (~may_go[keep]).sum())
        if lost:
            raise BadUsage(f"{name} dropped {lost} tokens that are not visual", fix="keep every other token")
        return keep, states

    def _scores(
        self,
        prompt: Prompt,
        stage: Inner,
        held: Held,
        attention: nn.Module,
        hidden: Tensor,
        rotary: tuple[Tensor, Tensor],
        keys: Tensor | None = None,
    ) -> list[Tensor | None]:
        """The stage's score of every prompt without padding: [S] for query "last" (mean over heads), [heads, rows, S] for
        "text"; None where there is nothing visual. hidden [B, S, D]: what enters ``attention``."""
        scores: list[Tensor | None] = []
        for b, ids in enumerate(held.ids):
            kind = prompt.kind[b][ids]
            if not candidates(stage, kind).any():
                scores.append(None)
                continue
            first = len(kind) - 1
            if stage.query == "text":
                first = min(first, int(candidates(stage, kind, newlines=True).nonzero()[-1]) + 1)
            rows = attention_rows(
                attention,
                held.real(hidden, b),
                tuple(held.real(part, b) for part in rotary),
                first,
                keys=None if keys is None else keys[b, :, held.pads[b] :],
                causal=stage.causal,
            ).to(hidden.device)
            scores.append(rows if stage.query == "text" else rows[:, -1].mean(0))
        return scores

    def _attended(self, index: int) -> Callable[..., None]:
        def hook(attention: nn.Module, args: tuple, kwargs: dict[str, Any], output: Any) -> None:
            call, stage = self.call, self.stages.get(index + 1)
            if call is None:
                return
            hidden, rotary = args[0] if args else kwargs["hidden_states"], kwargs["position_embeddings"]
            cache = cache_of(kwargs)
            if call.prefill and stage is not None and stage.score == "prev":
                keys = None if cache is None else keys_of(cache, index)
                held = call.prompt.layers[index]
                call.scores = self._scores(call.prompt, stage, held, attention, hidden, rotary, keys)
            elif not call.prefill and self.decode is not None and self.decode.layer == index + 1:
                self._choose(call, attention, hidden, rotary, keys_of(cache, index))

        return hook

    def _choose(
        self, call: Call, attention: nn.Module, hidden: Tensor, rotary: tuple[Tensor, Tensor], keys: Tensor
    ) -> None:
        """Ask the decode stage which visual tokens the layers behind it read for this generated token. A call with
        several tokens reads everything."""
        if hidden.shape[1] > 1:
            return
        decode, unread = self.decode, []
        held = call.prompt.layers[decode.layer - 1]
        for b, ids in enumerate(held.ids):
            visual = (call.prompt.kind[b][ids] == VISUAL).nonzero().flatten()
            read = None
            if len(visual):
                rotary_b = tuple(part[b if len(part) > 1 else 0] for part in rotary)
                rows = attention_rows(attention, hidden[b], rotary_b, 0, keys=keys[b, :, held.pads[b] :])
                read = decode(rows[:, 0].mean(0).detach(), visual.to(rows.device))
            unread.append(ids[:0] if read is None else ids[visual[~torch.isin(visual, read.cpu())]])
        left = sum(map(len, unread))
        call.unread = unread if left else None
        self.stats.calls[f"decode@{decode.layer}"] += 1
        self.stats.removed[f"decode@{decode.layer}"] += left

    def _read(self, call: Call, held: Held, index: int, hidden: Tensor, cache: Any) -> Any:
        """Let the layer read only what the decode stage chose; returns the mask that this needs."""
        layer = ReadingLayer.at(cache, index)
        slots, real = call.once(("slots", held), lambda: slots_read(held, call.unread, call.new))
        layer.read = call.once(("slots", held, hidden.device), lambda: slots.to(hidden.device))
        return self._mask(call, "read", held, index, hidden, cache, real)


def candidates(stage: Inner, kind: Tensor, newlines: bool = False) -> Tensor:
    """Which tokens the stage may drop: visual ones, and newlines where it counts them as such."""
    return (kind == VISUAL) | (kind == NEWLINE) if newlines or stage.include_newlines else kind == VISUAL
