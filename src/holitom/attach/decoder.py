"""The decoder's seam: hooks on the decoder layers that shorten the sequence in prefill and keep every later call right.

The language model hands its own positions and masks to every layer, so each layer that holds fewer tokens gets its own.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from holitom.attach.prompt import NEWLINE, TEXT, VISUAL, Held, Prompt, Row, own_precision, pad_left
from holitom.attach.rows import (
    ReadingLayer,
    attention_mask,
    attention_rows,
    cache_of,
    device_of,
    keep_columns,
    keys_of,
    rotation_of,
    select,
)
from holitom.attach.stats import RunStats
from holitom.errors import BadUsage
from holitom.types import Inner, Reduction

Rotary = tuple[Tensor, Tensor]
ON_CACHE = "_holitom_prompt"
"""The name under which a cache carries the reduced prompt that it holds."""


class Patched(functools.partial):
    """A hook or method of one model instance. A copy of the model would stay reduced, and its stages act on the first."""

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise BadUsage("a model is copied or pickled inside its reduce_tokens block", fix="copy it outside of the block")


@dataclass(eq=False)
class Call:
    """One forward of the language model over a reduced prompt. In prefill (positions None): what entered every layer so
    far, and the scores for the next stage. Later: positions [B, q] of this call's tokens, how many columns lie behind
    the prompt, these included, and per prompt the ids that the decode stage leaves unread. ``once`` shares what layers
    alike have in common."""

    prompt: Prompt
    positions: Tensor | None = None
    behind: int = 0
    entered: list[Held] = field(default_factory=list)
    scores: list[Tensor | None] = field(default_factory=list)
    unread: list[Tensor] | None = None
    shared: dict[Hashable, Any] = field(default_factory=dict)

    @property
    def prefill(self) -> bool:
        return self.positions is None

    def once(self, key: Hashable, make: Callable[..., Any], *args: Any) -> Any:
        if key not in self.shared:
            self.shared[key] = make(*args)
        return self.shared[key]


class Decoder:
    """Hooks on the decoder layers of one model. ``call``: the forward under way; without one, all pass untouched."""

    def __init__(self, adapter: Any, reduction: Reduction, stats: RunStats) -> None:
        self.adapter, self.decode, self.stats = adapter, reduction.decode, stats
        self.stages = {stage.layer: stage for stage in reduction.inner}
        self.call: Call | None = None

    def install(self) -> list[Any]:
        """Put the hooks in; the handles take them out. UnsupportedModel where attention cannot be read."""
        scored = {stage.layer - 1 for stage in self.stages.values() if stage.score == "prev"}
        scored |= {self.decode.layer - 1} if self.decode is not None else set()
        handles = []
        for i, layer in enumerate(self.adapter.layers):
            if self.stages or self.decode is not None:
                rotation_of(layer.self_attn)
            handles.append(layer.register_forward_pre_hook(Patched(self._entering, i), with_kwargs=True))
            if i in scored:
                handles.append(layer.self_attn.register_forward_hook(Patched(self._attended, i), with_kwargs=True))
        return handles

    def _entering(
        self, index: int, layer: nn.Module, args: tuple, kwargs: dict[str, Any]
    ) -> tuple[tuple, dict[str, Any]] | None:
        if self.call is None:
            return None
        hidden = args[0] if args else kwargs.pop("hidden_states")
        return (self._enter(self.call, index, layer, hidden, kwargs), *args[1:]), kwargs

    def _enter(self, call: Call, index: int, layer: nn.Module, hidden: Tensor, kwargs: dict[str, Any]) -> Tensor:
        """Shorten the sequence if a stage stands before this layer, and give the layer its own positions and mask."""
        prompt, cache, rotary = call.prompt, cache_of(kwargs), kwargs["position_embeddings"]
        config, follower = self.adapter.text.config, self.stages.get(index + 1)
        kwargs["position_ids"] = None  # the rotary embedding says it all; flash attention would misread the gaps
        if call.prefill:
            if index == 0 and cache is not None:
                setattr(cache, ON_CACHE, prompt)
            if index in self.stages:
                hidden = self._reduce(call, index, layer, hidden, rotary, cache)
            call.entered.append(prompt.layers[index])
        held = prompt.layers[index]
        kwargs["position_embeddings"] = self._rotary(call, held, hidden, rotary)
        if call.prefill and follower is not None and not follower.causal:
            kwargs["attention_mask"] = attention_mask(config, hidden, held.mask(), held.length, causal=False)
            kwargs["is_causal"] = False
        elif call.unread is not None and index >= self.decode.layer:
            slots, real = call.once(("slots", held), _slots_read, call, held, hidden.device)
            ReadingLayer.at(cache, index).read = slots
            mask = (config, hidden, real, slots.shape[1])
            kwargs["attention_mask"] = call.once(("read", held, hidden.device), attention_mask, *mask)
        elif held is not prompt.base:
            mask = (config, hidden, held.mask(call.behind), held.length + call.behind)
            kwargs["attention_mask"] = call.once(("all", held, hidden.device), attention_mask, *mask)
        return hidden

    def _rotary(self, call: Call, held: Held, hidden: Tensor, rotary: Rotary) -> Rotary:
        """The rotary embedding of what enters a layer, where it is not the model's own."""
        if held is call.prompt.base or (held.shift is None and not call.prefill):
            return rotary
        positions = held.positions
        if not call.prefill:
            positions = call.positions - held.shift[:, None].to(call.positions.device)
        key = ("rotary", held, hidden.device)
        return call.once(key, self.adapter.rotary, hidden, positions.to(hidden.device))

    def _reduce(
        self, call: Call, index: int, layer: nn.Module, hidden: Tensor, rotary: Rotary, cache: Any
    ) -> Tensor:
        """Run the stage in front of this layer on every prompt by itself; pad to the longest that remains."""
        stage, prompt = self.stages[index], call.prompt
        before = prompt.layers[index - 1] if index else prompt.base
        if stage.score == "this":
            normed = layer.input_layernorm(hidden.to(device_of(layer.input_layernorm, hidden)))
            own = self._rotary(call, before, hidden, rotary)
            call.scores = _scores(stage, prompt, before, layer.self_attn, normed, own)
        states, ids = [], []
        for b, score in enumerate(call.scores):
            keep, left = torch.arange(len(before.ids[b])), before.real(hidden, b)
            if score is not None:
                row, n0 = prompt.rows[b][before.ids[b]], int(prompt.rows[b].may_go(stage).sum())
                keep, left = _kept(stage, row, n0, left, score)
            states.append(left.to(hidden.dtype))
            ids.append(before.ids[b][keep])
        held = before.kept(ids)
        if stage.positions == "contiguous" and not prompt.on_grid:
            counted = pad_left([torch.arange(len(row)) for row in ids])
            held = Held(ids, counted, prompt.base.positions[:, -1] - counted[:, -1])
        prompt.layers[index:] = [held] * (len(prompt.layers) - index)
        if stage.prune_past and cache is not None:
            for earlier, old in enumerate(prompt.layers[:index]):
                keep_columns(cache, earlier, old.slots(ids))
                prompt.layers[earlier] = call.once(("pruned", old), old.kept, ids)
        self.stats.calls[f"inner@{index}"] += 1
        self.stats.removed[f"inner@{index}"] += sum(map(len, before.ids)) - sum(map(len, ids))
        return pad_left(states)

    def _attended(self, index: int, attention: nn.Module, args: tuple, kwargs: dict[str, Any], output: Any) -> None:
        call, stage = self.call, self.stages.get(index + 1)
        if call is None:
            return
        hidden, cache = args[0] if args else kwargs["hidden_states"], cache_of(kwargs)
        keys, held = None if cache is None else keys_of(cache, index), call.prompt.layers[index]
        given = (call.prompt, held, attention, hidden, kwargs["position_embeddings"], keys)
        if call.prefill and stage is not None and stage.score == "prev":
            call.scores = _scores(stage, *given)
        elif not call.prefill and self.decode is not None and self.decode.layer == index + 1:
            self._choose(call, *given)

    def _choose(
        self, call: Call, prompt: Prompt, held: Held, attention: nn.Module, hidden: Tensor, rotary: Rotary, keys: Tensor
    ) -> None:
        """Ask the decode stage which visual tokens the layers behind it read for this generated token. A call with
        several tokens reads everything."""
        if hidden.shape[1] > 1:
            return
        name, call.unread = f"decode@{self.decode.layer}", []
        for b, ids in enumerate(held.ids):
            visual, read = (prompt.rows[b].kind[ids] == VISUAL).nonzero().flatten(), None
            if len(visual):
                own = tuple(part[b if len(part) > 1 else 0] for part in rotary)
                row = attention_rows(attention, hidden[b], own, 0, keys=keys[b, :, held.pads[b] :])
                read = self.decode(row[:, 0].mean(0).detach(), visual.to(row.device))
            call.unread.append(ids[:0] if read is None else ids[visual[~torch.isin(visual, read.cpu())]])
        left = sum(map(len, call.unread))
        call.unread = call.unread if left else None
        self.stats.calls[name] += 1
        self.stats.removed[name] += left


def _scores(
    stage: Inner,
    prompt: Prompt,
    held: Held,
    attention: nn.Module,
    hidden: Tensor,
    rotary: Rotary,
    keys: Tensor | None = None,
) -> list[Tensor | None]:
    """The stage's score of every prompt without padding: [S] for query "last" (mean over heads), [heads, rows, S] for
    "text"; None where there is nothing to drop. hidden [B, S, D]: what enters ``attention``."""
    scores: list[Tensor | None] = []
    for b, ids in enumerate(held.ids):
        row, first = prompt.rows[b][ids], len(ids) - 1
        if not row.may_go(stage).any():
            scores.append(None)
            continue
        if stage.query == "text":
            first = min(first, int((row.kind != TEXT).nonzero()[-1]) + 1)
        own = tuple(held.real(part, b) for part in rotary)
        seen = None if keys is None else keys[b, :, held.pads[b] :]
        rows = attention_rows(attention, held.real(hidden, b), own, first, keys=seen, causal=stage.causal)
        scores.append((rows if stage.query == "text" else rows[:, -1].mean(0)).to(hidden.device))
    return scores


def _kept(stage: Inner, row: Row, n0: int, states: Tensor, score: Tensor) -> tuple[Tensor, Tensor]:
    """What the stage keeps of one prompt: ids on the host, and states. BadUsage where it breaks its promise."""
    may_go, device, name, given = row.may_go(stage), states.device, type(stage).__name__, {}
    visual = may_go.nonzero().flatten()
    if getattr(stage, "reads_groups", False):
        pairs = {"group": row.group, "gain": row.gain}.items()
        given = {key: None if values is None else values[visual].to(device) for key, values in pairs}
    with own_precision(device):
        keep, left = stage(states, score, visual.to(device), n0, **given)
    keep, total = keep.cpu(), len(states)
    if not len(keep) or len(left) != len(keep) or (keep.diff() <= 0).any() or keep[0] < 0 or keep[-1] >= total:
        raise BadUsage(
            f"{name} returned {len(keep)} ids and {len(left)} states for {total} tokens",
            fix="return strictly ascending ids into the sequence, and one state for each",
        )
    lost = int((~may_go).sum() - (~may_go[keep]).sum())
    if lost:
        raise BadUsage(f"{name} dropped {lost} tokens that are not visual", fix="keep every other token")
    return keep, left


def _slots_read(call: Call, held: Held, device: torch.device) -> tuple[Tensor, Tensor | None]:
    """What a layer reads of its cache when prompt tokens are left unread: slots [B, R], padded on the left, and which
    of them are no padding (None: all)."""
    behind = held.length + torch.arange(call.behind)
    rows = [
        torch.cat([(~torch.isin(ids, gone)).nonzero().flatten() + pad, behind])
        for ids, pad, gone in zip(held.ids, held.pads, call.unread, strict=True)
    ]
    slots, lengths = pad_left(rows), torch.tensor([len(row) for row in rows])
    real = torch.arange(slots.shape[1]) >= slots.shape[1] - lengths[:, None]
    return slots.to(device), None if real.all() else real


def counts(call: Call) -> list[dict[str, tuple[int, ...]]]:
    """Per row of the batch, what SampleStats says of the layers of this prefill."""
    found = []
    for b, row in enumerate(call.prompt.rows):
        kinds = [row.kind[held.ids[b]] for held in call.entered]
        found.append(
            {
                "per_layer": tuple(int((kind == VISUAL).sum()) for kind in kinds),
                "newlines_per_layer": tuple(int((kind == NEWLINE).sum()) for kind in kinds),
                "prompt_per_layer": tuple(map(len, kinds)),
                "cached_per_layer": tuple(len(held.ids[b]) for held in call.prompt.layers),
            }
        )
    return found
