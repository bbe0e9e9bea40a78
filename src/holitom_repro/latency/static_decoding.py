"""Decoding with nothing that grows: a static cache for every layer, and the same step replayed as a CUDA graph.

Why: eager decoding of a 7B model from Python is bound by launches, which hide what a shorter cache saves. Here the
cache of a finished prefill is copied into transformers' StaticLayer, one for each decoder layer and of that layer's own
length, because an inner stage leaves the layers unequally long. One loop over the model's own layers then needs no
hooks, no concatenation and no decision on the host, so that it can be captured. The tokens are those of eager decoding
(tested on a CPU); the model itself is not touched.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache, StaticLayer
from transformers.modeling_utils import AttentionInterface

from holitom.attaching.views import PromptState, recall
from holitom.errors import CannotRun, UnsupportedModel
from holitom_repro.latency.faults import device_lost, out_of_memory
from holitom.models import Adapter

WARMUP = 3  # steps before a capture, so that libraries have chosen their kernels
ATTENTIONS = ("sdpa", "grouped")
"""sdpa: as transformers calls it with a mask; grouped: two products and a softmax over keys that are not repeated."""


@dataclass(frozen=True, eq=False)
class Prompt:
    """What a prefill left: keys and values per layer, how many columns of each sample are padding there, how much
    smaller this layer's positions are than the language model's [B] (None: equal), and the next position [B]."""

    held: tuple[tuple[Tensor, Tensor], ...]
    pads: tuple[tuple[int, ...], ...]
    shifts: tuple[Tensor | None, ...]
    next_position: Tensor

    @classmethod
    def of(cls, cache: Cache, device: torch.device) -> Prompt:
        """Directly behind a prefill; later tokens in ``cache`` do not change it. Unpadded where no reduction ran.

        UnsupportedModel for caches of another kind, and behind a decode stage, whose reads change with every token."""
        if any(type(layer).__name__ != "DynamicLayer" for layer in cache.layers):
            kinds = sorted({type(layer).__name__ for layer in cache.layers} - {"DynamicLayer"})
            raise UnsupportedModel(
                f"{', '.join(kinds)}: what is read is chosen anew at every step, which no static cache can follow",
                fix="decode eagerly, or leave the decode stage out",
            )
        held = tuple((layer.keys, layer.values) for layer in cache.layers)
        state: PromptState | None = recall(cache)
        if state is None:
            keys = held[0][0]
            after = torch.full((len(keys),), keys.shape[2], device=device)
            return cls(held, ((0,) * len(keys),) * len(held), (None,) * len(held), after)
        pads = tuple(tuple(view.pads) for view in state.views)
        return cls(held, pads, tuple(view.shift for view in state.views), state.next_position.to(device))


@dataclass(eq=False)
class _Columns:
    """Layers whose caches look alike: an additive mask [B, 1, 1, C], the column that the next token takes [1], and its
    rotary shift [B, 1]."""

    length: int
    pads: tuple[int, ...]
    shift: Tensor | None
    mask: Tensor
    slot: Tensor
    layers: list[int] = field(default_factory=list)


class StaticDecoder:
    """Greedy decoding of up to ``room`` tokens behind one prefill. ``steps`` runs them; ``capture`` makes it replay."""

    def __init__(
        self, model: nn.Module, adapter: Adapter, prompt: Prompt, first: Tensor, room: int, attention: str = "sdpa"
    ) -> None:
        """first [B, 1]: the token that prefill chose; attention: one of ATTENTIONS."""
        config, weight = adapter.text.config, model.get_output_embeddings().weight
        kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
        if kinds != {"full_attention"}:
            raise UnsupportedModel(f"a decoder with {', '.join(sorted(kinds))} layers", fix="decode eagerly")
        if attention == "grouped":
            AttentionInterface.register("holitom_grouped", grouped_attention)
        self._attention = {"grouped": "holitom_grouped"}.get(attention, attention)
        self._config, self._head = config, model.get_output_embeddings()
        self._embed, self._norm = adapter.text.get_input_embeddings(), adapter.text.norm
        self._layers, self._rotary = adapter.layers, adapter.rotary
        self._prompt, self._first = prompt, first
        room, samples, device = max(room, WARMUP + 1), len(first), first.device
        self.cache = Cache(layers=[_static(keys, values, room) for keys, values in prompt.held])
        self._groups = _grouped(prompt, samples, room, weight.dtype, device)
        self._group_of = {layer: group for group in self._groups for layer in group.layers}
        self._token, self._position = first.clone(), prompt.next_position[:, None].clone()
        self._done = torch.zeros(1, dtype=torch.long, device=device)
        self._tokens = torch.zeros(samples, room, dtype=first.dtype, device=device)
        self._graph: Any = None
        self.restart()

    def restart(self) -> None:
        """Back to the end of the prompt; buffers keep their addresses, so that a captured graph stays valid."""
        for layer, (keys, _) in zip(self.cache.layers, self._prompt.held, strict=True):
            layer.cumulative_length.fill_(keys.shape[2])
        for group in self._groups:
            group.mask[..., group.length :] = torch.finfo(group.mask.dtype).min
            group.slot.fill_(group.length)
        self._token.copy_(self._first)
        self._position.copy_(self._prompt.next_position[:, None])
        self._done.zero_()

    def steps(self, number: int) -> Tensor:
        """``number`` further tokens [B, number]: by replay where a graph was captured."""
        with self._using_attention():
            for _ in range(number):
                if self._graph is not None:
                    self._graph.replay()
                else:
                    self._step()
        return self._tokens[:, :number]

    def capture(self) -> None:
        """Capture one step. CannotRun without a CUDA device, or where the step cannot be captured."""
        device = self._first.device
        if device.type != "cuda":
            raise CannotRun("CUDA graphs need a CUDA device", fix="decode with a static cache, or eagerly")
        graph = torch.cuda.CUDAGraph()
        before, side = torch.cuda.current_stream(device), _side_stream(device)
        side.wait_stream(before)
        try:
            with self._using_attention():
                with torch.cuda.stream(side):
                    for _ in range(WARMUP):
                        self._step()
                before.wait_stream(side)
                with torch.cuda.graph(graph, stream=side):
                    self._step()
        except RuntimeError as error:
            torch.cuda.set_stream(before)  # a capture that fails may leave its own behind
            if out_of_memory(error) or device_lost(error):
                raise
            words = str(error).strip().splitlines() or [type(error).__name__]
            raise CannotRun(
                f"the step cannot be captured: {words[0][:160]}", fix="decode with a static cache"
            ) from error
        self._graph = graph
        self.restart()

    def _step(self) -> None:
        """One token of every sample, everything on the device."""
        hidden = self._embed(self._token)
        plain = self._rotary(hidden, self._position)
        turned = {}
        for group in self._groups:
            group.mask.index_fill_(3, group.slot, 0.0)
            turned[id(group)] = plain if group.shift is None else self._rotary(hidden, self._position - group.shift)
        for i, layer in enumerate(self._layers):
            group = self._group_of[i]
            hidden = layer(
                hidden,
                attention_mask=group.mask,
                position_embeddings=turned[id(group)],
                past_key_values=self.cache,
                use_cache=True,
            )
        self._token.copy_(self._head(self._norm(hidden)).argmax(-1))
        self._tokens.index_copy_(1, self._done, self._token)
        self._done.add_(1)
        self._position.add_(1)
        for group in self._groups:
            group.slot.add_(1)

    @contextmanager
    def _using_attention(self) -> Iterator[None]:
        before = self._config._attn_implementation
        self._config._attn_implementation = self._attention
        try:
            yield
        finally:
            self._config._attn_implementation = before


@cache
def _side_stream(device: torch.device) -> Any:
    """One for all captures: what cuBLAS keeps for every stream that it has met, 32 MiB and more, stays allocated."""
    return torch.cuda.Stream(device)


def grouped_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float | int = 0.0,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attention of single queries [B, heads, 1, width] over keys [B, kv, S, width] that are read once: heads that share
    a key head are rows of one product. softmax in float32, as transformers' eager path has it."""
    samples, heads, _, width = query.shape
    rows = query.reshape(samples, key.shape[1], heads // key.shape[1], width)
    scores = rows @ key.transpose(-1, -2) * (width**-0.5 if scaling is None else scaling)
    if attention_mask is not None:
        scores = scores + attention_mask
    weights = scores.softmax(-1, dtype=torch.float32).to(query.dtype)
    return (weights @ value).reshape(samples, 1, heads, -1), None


def _static(keys: Tensor, values: Tensor, room: int) -> StaticLayer:
    """A static layer that holds these keys and values [B, kv, S, width], with ``room`` columns behind them."""
    length = keys.shape[2]
    made = StaticLayer(max_cache_len=_aligned(length + room))
    made.lazy_initialization(keys, values)
    made.keys[:, :, :length].copy_(keys)
    made.values[:, :, :length].copy_(values)
    return made


def _aligned(columns: int) -> int:
    """Kernels that take a mask want its rows to be multiples of eight."""
    return (columns + 7) // 8 * 8


def _grouped(prompt: Prompt, samples: int, room: int, dtype: torch.dtype, device: torch.device) -> Sequence[_Columns]:
    groups: dict[Any, _Columns] = {}
    for i, ((keys, _), pads, shift) in enumerate(zip(prompt.held, prompt.pads, prompt.shifts, strict=True)):
        key = (keys.shape[2], pads, None if shift is None else id(shift))
        if key not in groups:
            mask = torch.zeros(samples, 1, 1, _aligned(keys.shape[2] + room), dtype=dtype, device=device)
            for sample, pad in enumerate(pads):
                mask[sample, ..., :pad] = torch.finfo(dtype).min
            slot = torch.zeros(1, dtype=torch.long, device=device)
            moved = None if shift is None else shift.to(device)[:, None]
            groups[key] = _Columns(keys.shape[2], pads, moved, mask, slot)
        groups[key].layers.append(i)
    return list(groups.values())
