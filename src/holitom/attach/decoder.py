"""The decoder's seam: hooks on the decoder layers that shorten the sequence in prefill and keep every later call right.

The language model hands its own positions and masks to every layer, so each layer that holds fewer tokens gets its own.
"""

import functools
import threading
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from holitom.attach.prompt import NEWLINE, PAD, TEXT, VISUAL, Held, Prompt, pad_left
from holitom.attach.rows import ON_CACHE, ReducedCache, attention_mask, attention_rows, cache_of, keys_of, rotation_of
from holitom.attach.stats import RunStats, SampleStats
from holitom.errors import BadUsage
from holitom.models import device_of
from holitom.types import Inner, Reduction

Rotary = tuple[Tensor, Tensor]


class Patched(functools.partial):
    """A hook or method of a model instance. A copy of the model would stay reduced, by stages that act on the first."""

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise BadUsage("a model is copied or pickled inside its reduce_tokens block", fix="copy it outside")


@dataclass(eq=False)
class Call:
    """One forward of the language model over a reduced prompt. In prefill (positions None): what entered every layer so
    far, and the scores for the next stage. Later: positions [B, q] of this call's tokens, how many columns lie behind
    the prompt, these included, and per prompt the ids that the decode stage leaves unread. ``once`` shares what layers
    alike have in common. thread: whose call it is."""

    prompt: Prompt
    positions: Tensor | None = None
    behind: int = 0
    entered: list[Held] = field(default_factory=list)
    scores: list[Tensor | None] = field(default_factory=list)
    unread: list[Tensor] | None = None
    shared: dict[Hashable, Any] = field(default_factory=dict)
    thread: int = field(default_factory=threading.get_ident)

    @property
    def prefill(self) -> bool:
        return self.positions is None

    def once(self, key: Hashable, make: Callable[[], Any]) -> Any:
        if key not in self.shared:
            self.shared[key] = make()
        return self.shared[key]

    def samples(self) -> list[SampleStats]:
        """The prompts of a prefill, once each, with what entered their layers."""
        times, found = len(self.prompt.base.kind) // len(self.prompt.samples), []
        for i, sample in enumerate(self.prompt.samples):
            if sample is not None:
                kinds = [held.real(held.kind, i * times) for held in self.entered]
                counts = {
                    "per_layer": tuple(int((kind == VISUAL).sum()) for kind in kinds),
                    "newlines_per_layer": tuple(int((kind == NEWLINE).sum()) for kind in kinds),
                    "prompt_per_layer": tuple(map(len, kinds)),
                    "cached_per_layer": tuple(held.length - held.pads[i * times] for held in self.prompt.layers),
                }
                found.append(replace(sample, **counts))
        return found


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
        for layer in self.adapter.layers if self.stages or self.decode is not None else ():
            rotation_of(getattr(layer, "self_attn", layer))
        handles = []
        for i, layer in enumerate(self.adapter.layers):
            handles.append(layer.register_forward_pre_hook(Patched(self._entering, i), with_kwargs=True))
            if i in scored:
                handles.append(layer.self_attn.register_forward_hook(Patched(self._attended, i), with_kwargs=True))
        return handles

    def _current(self) -> Call | None:
        """The call that this thread has under way; others may call the layers meanwhile."""
        return self.call if self.call is not None and self.call.thread == threading.get_ident() else None

    def _entering(self, index: int, layer: nn.Module, args: tuple, kwargs: dict[str, Any]) -> Any:
        """Shorten the sequence if a stage stands before this layer, and give the layer its own positions and mask."""
        call = self._current()
        if call is None:
            return None
        hidden = args[0] if args else kwargs.pop("hidden_states")
        prompt, cache, rotary = call.prompt, cache_of(kwargs), kwargs["position_embeddings"]
        config, follower = self.adapter.text.config, self.stages.get(index + 1)
        kwargs["position_ids"] = None  # the rotary embedding says it all; flash attention would misread the gaps
        if call.prefill:
            if index == 0 and cache is not None:
                cache.__class__ = ReducedCache
                setattr(cache, ON_CACHE, prompt)
            if index in self.stages:
                hidden = self._reduce(call, index, layer, hidden, rotary, cache)
            call.entered.append(prompt.layers[index])
        held, device = prompt.layers[index], hidden.device
        kwargs["position_embeddings"] = self._rotary(call, held, hidden, rotary)
        masked = functools.partial(attention_mask, config, hidden, columns=held.length + call.behind)
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
        here = held.positions if call.prefill else call.positions - held.shift[:, None].to(call.positions.device)
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
            left = before.real(hidden, b)
            ids = torch.arange(len(left))
            if score is not None:
                ids, left = _kept(stage, before, b, int(prompt.base.may_go(stage, b).sum()), left, score)
            states.append(left.to(hidden.dtype))
            keep.append(ids)
        held, _ = before.kept(keep)
        if stage.positions == "contiguous" and prompt.base.positions.ndim == 2:  # places on a grid stay
            held.positions = pad_left([torch.arange(len(ids)) for ids in keep])
            held.shift = prompt.base.positions[:, -1] - held.positions[:, -1]
        prompt.layers[index:] = [held] * (len(prompt.layers) - index)
        if stage.prune_past and cache is not None:
            for earlier, old in enumerate(prompt.layers[:index]):
                stay = [torch.searchsorted(old.real(old.ids, b), held.real(held.ids, b)) for b in range(len(keep))]
                prompt.layers[earlier], slots = call.once(("pruned", old), lambda old=old, stay=stay: old.kept(stay))
                cached = cache.layers[earlier]
                slots = slots[:, None, :, None].to(cached.keys.device)
                cached.keys, cached.values = (x.take_along_dim(slots, 2) for x in (cached.keys, cached.values))
        self.stats.count(f"inner@{index}", int((before.kind > 0).sum() - (held.kind > 0).sum()))
        return pad_left(states)

    def _attended(self, index: int, attention: nn.Module, args: tuple, kwargs: dict[str, Any], output: Any) -> None:
        call, stage = self._current(), self.stages.get(index + 1)
        if call is None:
            return
        hidden, cache = args[0] if args else kwargs["hidden_states"], cache_of(kwargs)
        keys, held = None if cache is None else keys_of(cache, index), call.prompt.layers[index]
        if call.prefill and stage is not None and stage.score == "prev":
            call.scores = _scores(stage, held, attention, hidden, kwargs["position_embeddings"], keys)
        elif not call.prefill and self.decode is not None and self.decode.layer == index + 1 and hidden.shape[1] == 1:
            self._choose(call, held, attention, hidden, kwargs["position_embeddings"], keys)

    def _choose(
        self, call: Call, held: Held, attention: nn.Module, hidden: Tensor, rotary: Rotary, keys: Tensor
    ) -> None:
        """Ask the decode stage which visual tokens the layers behind it read for this generated token."""
        unread = []
        for b, pad in enumerate(held.pads):
            visual, read = (held.real(held.kind, b) == VISUAL).nonzero().flatten(), None
            if len(visual):
                own = tuple(part[b if len(part) > 1 else 0] for part in rotary)
                row = attention_rows(attention, hidden[b], own, 0, keys=keys[b, :, pad:])
                read = self.decode(row[:, 0].mean(0).detach(), visual.to(row.device))
            left = visual[:0] if read is None else visual[~torch.isin(visual, read.cpu())]
            unread.append(held.real(held.ids, b)[left])
        left = sum(map(len, unread))
        call.unread = unread if left else None
        self.stats.count(f"decode@{self.decode.layer}", left)


def _scores(
    stage: Inner, held: Held, attention: nn.Module, hidden: Tensor, rotary: Rotary, keys: Tensor | None
) -> list[Tensor | None]:
    """The stage's score of every prompt without padding: [S] for query "last" (mean over heads), [heads, rows, S] for
    "text"; None where there is nothing to drop. hidden [B, S, D]: what enters ``attention``; keys: from the cache."""
    scores: list[Tensor | None] = []
    for b, pad in enumerate(held.pads):
        if not held.may_go(stage, b).any():
            scores.append(None)
            continue
        kind = held.real(held.kind, b)
        first = len(kind) - 1
        if stage.query == "text":
            first = min(first, int((kind != TEXT).nonzero()[-1]) + 1)
        own, seen = tuple(held.real(part, b) for part in rotary), None if keys is None else keys[b, :, pad:]
        rows = attention_rows(attention, held.real(hidden, b), own, first, keys=seen, causal=stage.causal)
        scores.append((rows if stage.query == "text" else rows[:, -1].mean(0)).to(hidden.device))
    return scores


def _kept(stage: Inner, held: Held, b: int, n0: int, states: Tensor, score: Tensor) -> tuple[Tensor, Tensor]:
    """What the stage keeps of one prompt: ids on the host, and states. BadUsage where it breaks its promise."""
    may_go, name, given = held.may_go(stage, b), type(stage).__name__, {}
    visual, total = may_go.nonzero().flatten(), len(states)
    if getattr(stage, "reads_groups", False):
        for key, part in (("group", held.group), ("gain", held.gain)):
            given[key] = None if part is None else held.real(part, b)[visual].to(states.device)
    with torch.autocast(states.device.type, enabled=False):  # it would round float32 similarities
        keep, left = stage(states, score, visual.to(states.device), n0, **given)
    keep = keep.cpu()
    if not len(keep) or len(left) != len(keep) or (keep.diff() <= 0).any() or keep[0] < 0 or keep[-1] >= total:
        what = f"{name} returned {len(keep)} ids and {len(left)} states for {total} tokens"
        raise BadUsage(what, fix="return strictly ascending ids into the sequence, and one state for each")
    lost = int((~may_go).sum() - (~may_go[keep]).sum())
    if lost:
        raise BadUsage(f"{name} dropped {lost} tokens that are not visual", fix="keep every other token")
    return keep, left


def _read(call: Call, held: Held) -> Tensor:
    """Which columns of its cache a layer reads when prompt tokens are left unread [B, S + behind]."""
    real = torch.nn.functional.pad(held.kind != PAD, (0, call.behind), value=True)
    for b, gone in enumerate(call.unread):
        real[b, : held.length] &= ~torch.isin(held.ids[b], gone)
    return real
