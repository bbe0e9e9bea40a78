"""The decoder's seam: hooks on the decoder layers that shorten the sequence in prefill and keep every later call right.

The language model hands its own positions and masks to every layer, so each layer that holds fewer tokens gets its own.
Masks come from transformers' mask functions, sized for that layer; no attention map of shape [S, S] is ever asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from holitom.attaching.calls import Call
from holitom.attaching.library import bidirectional_mask, cache_of, causal_mask, held
from holitom.attaching.reading import fresh_layer, reading_layer
from holitom.attaching.scores import attention_rows, rotation_of
from holitom.attaching.stages import prune_past, reduce_samples, score_samples
from holitom.attaching.stats import RunStats
from holitom.attaching.views import View, pad_left, remember, select_slots
from holitom.models import Adapter
from holitom.ops.transfer import postponing
from holitom.types import Decode, Inner

Embeddings = tuple[Tensor, Tensor]


class DecoderHooks:
    """Hooks on the decoder layers of one model. ``call`` says what the current forward is; while it is None every
    forward passes untouched."""

    def __init__(self, adapter: Adapter, inner: Sequence[Inner], decode: Decode | None, stats: RunStats) -> None:
        self.adapter, self.decode, self.stats = adapter, decode, stats
        self.stages = {stage.layer: stage for stage in inner}
        self.call: Call | None = None
        if inner or decode is not None:
            for layer in adapter.layers:
                rotation_of(layer.self_attn)

    def install(self) -> list[RemovableHandle]:
        layers = self.adapter.layers
        handles = [
            layer.register_forward_pre_hook(self._entering(i), with_kwargs=True) for i, layer in enumerate(layers)
        ]
        observed = {stage.layer - 1 for stage in self.stages.values() if stage.score == "prev"}
        if self.decode is not None:
            observed.add(self.decode.layer - 1)
        for i in sorted(observed):
            handles.append(layers[i].self_attn.register_forward_hook(self._attended(i), with_kwargs=True))
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
        state, cache, embeddings = call.state, cache_of(kwargs), kwargs["position_embeddings"]
        kwargs["position_ids"] = None  # the rotary embedding says it all; flash attention would misread the gaps
        if call.prefill:
            if index == 0 and cache is not None:
                remember(cache, state)
            if self.decode is not None and cache is not None and index >= self.decode.layer:
                fresh_layer(cache, index)
            if index in self.stages:
                hidden = self._reduce(call, index, layer, hidden, embeddings, cache)
            call.kinds_per_layer.append(call.kinds)
        view = state.views[index]
        if view is not state.base:
            kwargs["position_embeddings"] = self._embeddings(call, view, hidden, embeddings)
        if call.unread is not None and index >= self.decode.layer:
            kwargs["attention_mask"] = self._read(call, view, index, hidden, cache)
        elif view is not state.base:
            kwargs["attention_mask"] = self._mask(call, view, index, hidden, cache)
        follower = self.stages.get(index + 1)
        if call.prefill and follower is not None and not follower.causal:
            padding = view.mask(hidden.device) if view.padded else None
            kwargs["attention_mask"] = bidirectional_mask(self.adapter.text.config, hidden, padding)
            kwargs["is_causal"] = False
        return hidden

    def _reduce(
        self, call: Call, index: int, layer: nn.Module, hidden: Tensor, embeddings: Embeddings, cache: Any
    ) -> Tensor:
        stage, state = self.stages[index], call.state
        before = state.views[index - 1] if index else state.base
        if stage.score == "this":
            rotary = self._embeddings(call, before, hidden, embeddings)
            normed = layer.input_layernorm(hidden.to(layer.input_layernorm.weight.device))
            call.scores[index] = score_samples(call, stage, before, layer.self_attn, normed, rotary)
        entering = sum(map(len, call.kinds))
        with postponing(self.stats.later):
            hidden, view = reduce_samples(call, stage, before, hidden, call.scores.pop(index))
        self.stats.removed[f"inner@{index}"] += entering - sum(map(len, call.kinds))
        state.views[index:] = [view] * (len(state.views) - index)
        if stage.prune_past and cache is not None:
            prune_past(state, index, view, cache)
        self.stats.calls[f"inner@{index}"] += 1
        return hidden

    def _attended(self, index: int) -> Callable[..., None]:
        def hook(attention: nn.Module, args: tuple, kwargs: dict[str, Any], output: Any) -> None:
            call, stage = self.call, self.stages.get(index + 1)
            if call is None:
                return
            hidden = args[0] if args else kwargs["hidden_states"]
            embeddings, cache = kwargs["position_embeddings"], cache_of(kwargs)
            keys = None if cache is None else held(cache, index)[0]
            view = call.state.views[index]
            if call.prefill and stage is not None and stage.score == "prev":
                call.scores[index + 1] = score_samples(call, stage, view, attention, hidden, embeddings, keys)
            if self.decode is not None and self.decode.layer == index + 1 and not call.prefill:
                self._choose_reads(call, view, attention, hidden, embeddings, cache)

        return hook

    def _choose_reads(
        self, call: Call, view: View, attention: nn.Module, hidden: Tensor, embeddings: Embeddings, cache: Any
    ) -> None:
        """Ask the decode stage which visual tokens the layers behind it read for this generated token. Calls with
        several tokens read everything, and the row of the step before is forgotten."""
        decode, keys = self.decode, cache.layers[self.decode.layer - 1].keys
        memory = reading_layer(cache, decode.layer)
        before, memory.row = memory.row, None
        if hidden.shape[1] > 1:
            return
        unread, kept_rows = [], []
        newest = torch.zeros(1, dtype=torch.long, device=hidden.device)
        for b, visual in enumerate(call.state.visual):
            mine, pad = view.real(view.ids, b), view.pads[b]
            slots = torch.isin(mine, visual.to(mine.device)).nonzero().flatten()
            if not len(slots):
                unread.append(None)
                kept_rows.append(torch.zeros(keys.shape[2] - pad, device=keys.device))
                continue
            seen = None
            if call.new_mask is not None:  # padding inside a further turn
                behind = call.new_columns(mine.device)[b]
                seen = torch.cat([behind.new_ones(len(mine)), behind])
            cos, sin = (part[b if len(part) > 1 else 0] for part in embeddings)
            rows = attention_rows(attention, hidden[b], cos, sin, newest, keys=keys[b, :, pad:], seen=seen)
            row, given = rows[:, 0].mean(0).detach(), {}
            if getattr(decode, "reads_previous", False):
                given["previous"] = None if before is None else before[b, pad:].to(row.device)
            read = decode(row, slots.to(row.device), **given)
            unread.append(None if read is None else mine[slots[~torch.isin(slots, read.to(slots.device))]])
            kept_rows.append(row)
        if getattr(decode, "reads_previous", False):
            memory.row = pad_left(kept_rows, 0)
        left = sum(len(ids) for ids in unread if ids is not None)
        call.unread = unread if left else None
        self.stats.calls[f"decode@{decode.layer}"] += 1
        self.stats.removed[f"decode@{decode.layer}"] += left

    def _read(self, call: Call, view: View, index: int, hidden: Tensor, cache: Any) -> Any:
        """Let the layer read only what the decode stage chose; returns the mask that this needs."""
        layer, key = reading_layer(cache, index), (view, hidden.device)
        if key in call.reads:
            layer.read, mask = call.reads[key]
            return mask
        layer.read, real = view.reads(call.unread, call.new_columns(hidden.device))
        call.reads[key] = layer.read, self._causal(call, index, hidden, cache, real)
        return call.reads[key][1]

    def _embeddings(self, call: Call, view: View, hidden: Tensor, embeddings: Embeddings) -> Embeddings:
        """Rotary embedding of the tokens that enter a layer: gathered where positions were kept, computed anew where
        they were renumbered."""
        if view is call.state.base or (view.shift is None and not call.prefill):
            return embeddings
        key = (view, hidden.device)
        if key not in call.rotary:  # layers that hold the same tokens share it
            call.rotary[key] = self._rotary(call, view, hidden, embeddings)
        return call.rotary[key]

    def _rotary(self, call: Call, view: View, hidden: Tensor, embeddings: Embeddings) -> Embeddings:
        if view.shift is not None:
            positions = view.positions if call.prefill else call.positions - view.shift[:, None]
            return self.adapter.rotary(hidden, positions.to(hidden.device))
        slots = call.state.base.slots_of(view)
        cos, sin = (part.expand(len(view.pads), -1, -1) for part in embeddings)
        return select_slots(cos, slots, 1), select_slots(sin, slots, 1)

    def _mask(self, call: Call, view: View, index: int, hidden: Tensor, cache: Any) -> Any:
        """The attention mask of a layer that reads all of this view."""
        key = (view, hidden.device)
        if key not in call.masks:
            mask = view.mask(hidden.device) if view.padded or call.new_mask is not None else None
            if mask is not None and not call.prefill:
                mask = torch.cat([mask, call.new_columns(hidden.device)], dim=1)
            call.masks[key] = self._causal(call, index, hidden, cache, mask)
        return call.masks[key]

    def _causal(self, call: Call, index: int, hidden: Tensor, cache: Any, mask: Tensor | None) -> Any:
        """A causal mask in the form the model's attention implementation wants; mask [B, columns]: what is real."""
        before, layer = (None, None) if call.prefill else (cache, index)
        return causal_mask(self.adapter.text.config, hidden, mask, before, layer)
