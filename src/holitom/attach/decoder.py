"""The decoder's seam: hooks on the decoder layers that shorten the sequence in prefill and keep every later call right.

The language model hands its own positions and masks to every layer, so each layer that holds fewer tokens gets its own.
"""

import threading
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from holitom.attach.prompt import NEWLINE, TEXT, VISUAL, Held, Prompt, pad_left
from holitom.attach.rows import ReducedCache, attention_mask, attention_rows, cache_of, keys_of, rotation_of
from holitom.attach.stats import RunStats, SampleStats
from holitom.errors import BadUsage
from holitom.models import device_of
from holitom.types import Inner, Reduction

Rotary = tuple[Tensor, Tensor]


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

    def once(self, key: Hashable, make: Callable[[], Any]) -> Any:
        if key not in self.shared:
            self.shared[key] = make()
        return self.shared[key]

    def samples(self) -> list[SampleStats]:
        """The prompts of a prefill, once each, with what entered their layers."""
        times, found = len(self.prompt.base.ids) // len(self.prompt.samples), []
        for i, sample in enumerate(self.prompt.samples):
            if sample is not None:
                kinds = [held.kind(i * times) for held in self.entered]
                visual, newlines = (tuple(int((k == what).sum()) for k in kinds) for what in (VISUAL, NEWLINE))
                every = {
                    "per_layer": visual,
                    "newlines_per_layer": newlines,
                    "prompt_per_layer": tuple(map(len, kinds)),
                }
                found.append(replace(sample, **every))
        return found


class UnderWay(threading.local):
    """The call that a thread has under way. Others may call the layers meanwhile, and pass them untouched."""

    call: Call | None = None


class Decoder:
    """Hooks on the decoder layers of one model. ``under_way.call``: whom they serve; without one they do nothing."""

    def __init__(self, adapter: Any, reduction: Reduction, stats: RunStats) -> None:
        self.adapter, self.decode, self.stats = adapter, reduction.decode, stats
        self.stages = {stage.layer: stage for stage in reduction.inner}
        self.under_way = UnderWay()

    def install(self) -> list[Any]:
        """Put the hooks in; the handles take them out. UnsupportedModel where attention cannot be read."""
        scored = {stage.layer - 1 for stage in self.stages.values() if stage.score == "prev"}
        scored |= {self.decode.layer - 1} if self.decode is not None else set()
        for layer in self.adapter.layers if self.stages or self.decode is not None else ():
            rotation_of(getattr(layer, "self_attn", layer))
        handles = []
        for i, layer in enumerate(self.adapter.layers):
            handles.append(layer.register_forward_pre_hook(partial(self._entering, i), with_kwargs=True))
            if i in scored:
                handles.append(layer.self_attn.register_forward_hook(partial(self._attended, i), with_kwargs=True))
        return handles

    def _entering(self, index: int, layer: nn.Module, args: tuple, kwargs: dict[str, Any]) -> Any:
        """Shorten the sequence if a stage stands before this layer, and give the layer its own positions and mask."""
        call = self.under_way.call
        if call is None:
            return None
        hidden = args[0] if args else kwargs.pop("hidden_states")
        prompt, cache, rotary = call.prompt, cache_of(kwargs), kwargs["position_embeddings"]
        kwargs["position_ids"] = None  # the rotary embedding says it all; flash attention would misread the gaps
        if call.prefill:
            if index == 0 and cache is not None:
                cache.__class__, cache.prompt = ReducedCache, prompt
            if index in self.stages:
                hidden = self._reduce(call, index, layer, hidden, rotary, cache)
            call.entered.append(prompt.layers[index])
        held, device, follower = prompt.layers[index], hidden.device, self.stages.get(index + 1)
        kwargs["position_embeddings"] = self._rotary(call, held, hidden, rotary)
        masked = partial(attention_mask, self.adapter.text.config, hidden)
        if call.prefill and follower is not None and not follower.causal:
            kwargs["attention_mask"], kwargs["is_causal"] = masked(held.mask(), causal=False), False
        elif call.unread is not None and index >= self.decode.layer:
            kwargs["attention_mask"] = call.once(("read", held, device), lambda: masked(_read(call, held)))
        elif held is not prompt.base:
            kwargs["attention_mask"] = call.once(("all", held, device), lambda: masked(held.mask(call.behind)))
        return (hidden, *args[1:]), kwargs

    def _rotary(self, call: Call, held: Held, hidden: Tensor, rotary: Rotary) -> Rotary:
        """The rotary embedding of what enters a layer, where it is not the model's own."""
        if held is call.prompt.base or (held.shift is None and not call.prefill):
            return rotary
        here = held.numbers() if call.prefill else call.positions - held.shift[:, None].to(call.positions.device)
        return call.once(("rotary", held, hidden.device), lambda: self.adapter.rotary(hidden, here.to(hidden.device)))

    def _reduce(self, call: Call, index: int, layer: nn.Module, hidden: Tensor, rotary: Rotary, cache: Any) -> Tensor:
        """Run the stage in front of this layer on every prompt by itself; pad to the longest that remains."""
        stage, prompt = self.stages[index], call.prompt
        before = prompt.layers[index - 1] if index else prompt.base
        if stage.score == "this":
            normed = layer.input_layernorm(hidden.to(device_of(layer.input_layernorm, hidden)))
            own = self._rotary(call, before, hidden, rotary)
            call.scores = _scores(stage, before, layer.self_attn, normed, own, None)
        states, keep = [], []
        for b, score in enumerate(call.scores):
            left = before.own(hidden, b)
            ids = torch.arange(len(left))
            if score is not None:
                ids, left = _kept(stage, before, b, left, score)
            states.append(left.to(hidden.dtype))
            keep.append(ids)
        held = before.kept(keep)
        if stage.positions == "contiguous" and prompt.base.positions[0].ndim == 1:  # places on a grid stay
            held.positions = [torch.arange(len(ids)) for ids in keep]
            ends = zip(prompt.base.positions, keep, strict=True)
            held.shift = torch.stack([own[-1] + 1 - len(ids) for own, ids in ends])
        prompt.layers[index:] = [held] * (len(prompt.layers) - index)
        if stage.prune_past and cache is not None:
            for earlier, old in enumerate(prompt.layers[:index]):
                stay = [torch.searchsorted(ids, left) for ids, left in zip(old.ids, held.ids, strict=True)]
                prompt.layers[earlier] = call.once(("pruned", old), partial(old.kept, stay))
                cached = cache.layers[earlier]
                slots = pad_left([ids + pad for ids, pad in zip(stay, old.pads, strict=True)])
                slots = slots[:, None, :, None].to(cached.keys.device)
                cached.keys, cached.values = (x.take_along_dim(slots, 2) for x in (cached.keys, cached.values))
        self.stats.count(f"inner@{index}", sum(map(len, before.ids)) - sum(map(len, held.ids)))
        return pad_left(states)

    def _attended(self, index: int, attention: nn.Module, args: tuple, kwargs: dict[str, Any], output: Any) -> None:
        """Read what the next stage asks of this attention: scores in prefill, what a decode stage chooses by later."""
        call, stage = self.under_way.call, self.stages.get(index + 1)
        if call is None:
            return
        hidden, cache = args[0] if args else kwargs["hidden_states"], cache_of(kwargs)
        keys, held = None if cache is None else keys_of(cache, index), call.prompt.layers[index]
        read = (held, attention, hidden, kwargs["position_embeddings"], keys)
        if call.prefill and stage is not None and stage.score == "prev":
            call.scores = _scores(stage, *read)
        elif not call.prefill and self.decode is not None and self.decode.layer == index + 1 and hidden.shape[1] == 1:
            self._choose(call, *read)

    def _choose(
        self, call: Call, held: Held, attention: nn.Module, hidden: Tensor, rotary: Rotary, keys: Tensor
    ) -> None:
        """Ask the decode stage which visual tokens the layers behind it read for this generated token."""
        unread = []
        for b, pad in enumerate(held.pads):
            visual, read = (held.kind(b) == VISUAL).nonzero().flatten(), None
            if len(visual):
                own = tuple(part[b if len(part) > 1 else 0] for part in rotary)
                row = attention_rows(attention, hidden[b], own, 0, keys=keys[b, :, pad:])
                read = self.decode(row[:, 0].mean(0).detach(), visual.to(row.device))
            left = visual[:0] if read is None else visual[~torch.isin(visual, read.cpu())]
            unread.append(held.ids[b][left])
        left = sum(map(len, unread))
        call.unread = unread if left else None
        self.stats.count(f"decode@{self.decode.layer}", left)


def _may_go(stage: Inner, kind: Tensor) -> Tensor:
    """Which tokens a stage may drop: visual ones, and newlines where it counts them as such."""
    return kind != TEXT if stage.include_newlines else kind == VISUAL


def _scores(
    stage: Inner, held: Held, attention: nn.Module, hidden: Tensor, rotary: Rotary, keys: Tensor | None
) -> list[Tensor | None]:
    """The stage's score of every prompt without padding: [S] for query "last" (mean over heads), [heads, rows, S] for
    "text"; None where there is nothing to drop. hidden [B, S, D]: what enters ``attention``; keys: from the cache."""
    scores: list[Tensor | None] = []
    for b, pad in enumerate(held.pads):
        kind = held.kind(b)
        if not _may_go(stage, kind).any():
            scores.append(None)
            continue
        first = len(kind) - 1
        if stage.query == "text":
            first = min(first, int((kind != TEXT).nonzero()[-1]) + 1)
        own, seen = tuple(held.own(part, b) for part in rotary), None if keys is None else keys[b, :, pad:]
        rows = attention_rows(attention, held.own(hidden, b), own, first, keys=seen, causal=stage.causal)
        scores.append((rows if stage.query == "text" else rows[:, -1].mean(0)).to(hidden.device))
    return scores


def _kept(stage: Inner, held: Held, b: int, states: Tensor, score: Tensor) -> tuple[Tensor, Tensor]:
    """What the stage keeps of one prompt: ids on the host, and states. BadUsage where it breaks its promise."""
    tokens, ids, given = held.tokens[b], held.ids[b], {}
    may_go, n0 = _may_go(stage, tokens.kind[ids]), int(_may_go(stage, tokens.kind).sum())
    visual, total = may_go.nonzero().flatten(), len(states)
    if getattr(stage, "reads_groups", False):
        group, gain = tokens.group[ids[visual]], tokens.gain[ids[visual]]
        given["group"] = None if (group < 0).any() else group.to(states.device)
        given["gain"] = None if gain.isnan().any() else gain.to(states.device)
    with torch.autocast(states.device.type, enabled=False):  # it would round float32 similarities
        keep, left = stage(states, score, visual.to(states.device), n0, **given)
    keep = keep.cpu()
    fits = len(keep) == len(left) > 0 and keep[0] >= 0 and keep[-1] < total and (keep.diff() > 0).all()
    if not fits or (~may_go[keep]).sum() != (~may_go).sum():
        what = f"{type(stage).__name__} returned {len(keep)} ids and {len(left)} states for {total} tokens"
        fix = "return strictly ascending ids, one state for each, and keep every token that is not visual"
        raise BadUsage(what, fix=fix)
    return keep, left


def _read(call: Call, held: Held) -> Tensor:
    """Which columns of its cache a layer reads when prompt tokens are left unread [B, length + behind]."""
    read = [~torch.isin(ids, gone) for ids, gone in zip(held.ids, call.unread, strict=True)]
    return torch.nn.functional.pad(pad_left(read), (0, call.behind), value=True)
