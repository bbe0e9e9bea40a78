"""One ``with reduce_tokens(...)`` block: what is put into the model while it lasts, and what the user can ask it."""

from __future__ import annotations

import functools
import inspect
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from holitom.attach.checks import check_cache, check_generation, check_model, setting
from holitom.attach.decoder import ON_CACHE, Call, Decoder, Patched
from holitom.attach.prompt import NEWLINE, VISUAL, Prompt, reduced, splice
from holitom.attach.stats import RunStats, SampleStats
from holitom.attach.tower import merging
from holitom.errors import BadUsage
from holitom.models import ADAPTERS, EncodedVideos
from holitom.models.base import between, clock
from holitom.types import Reduction, VideoFeatures

_TOWER = ("vision_feature_layer", "vision_feature_select_strategy")
_SPLICED = {
    *("input_ids", "attention_mask", "position_ids", "cache_position", "mm_token_type_ids", "mm_encoder_outputs"),
    *("pixel_values", "image_sizes", "image_grid_thw", "batch_num_images", "vision_aspect_ratio", *_TOWER),
    *("pixel_values_videos", "image_sizes_videos", "video_grid_thw", "second_per_grid_ts"),
}
"""Arguments of a call that are in the embeddings, mask and positions of a reduced prompt."""


class Run:
    """What ``with reduce_tokens(...) as run`` gives: ``stats``, ``provide`` and ``encode``."""

    def __init__(self, model: nn.Module, adapter: Any, reduction: Reduction) -> None:
        self.reduction, self.stats, self._adapter = reduction, RunStats(reduction), adapter
        self._decoder = Decoder(adapter, reduction, self.stats)
        family = (m for m in model.modules() if any(c.__name__ in ADAPTERS for c in type(m).__mro__))
        self._host: Any = next(family)  # inside of wrappers (PEFT, for one)
        self._provided: EncodedVideos | None = None
        self._provider = 0  # the thread that has done so
        self._waiting: Prompt | None = None  # spliced, on its way through generate to the core
        self._full: tuple[Tensor, Tensor | None] | None = None  # ids and mask of the full prompt in generate
        ended = threading.Event()
        self._lock, self._end, self._ended = threading.RLock(), ended.set, lambda: ended.is_set()
        self._undo: list[Callable[[], None]] = []

    def provide(self, videos: Sequence[VideoFeatures]) -> None:
        """Features for the next prefill, one per video in prompt order, instead of ``pixel_values_videos``."""
        if not videos or not all(hasattr(video, "tokens") for video in videos):
            raise BadUsage("provide(...) needs a list of VideoFeatures", fix="take it from run.encode(...)")
        with self._alone():
            if self._provided is not None and self._provider != threading.get_ident():
                what = "another thread has provided features, and no prompt has taken them yet"
                raise BadUsage(what, fix="use a lock around both calls")
            self._provided, self._provider = EncodedVideos(tuple(videos)), threading.get_ident()

    @torch.no_grad()
    def encode(self, pixel_values_videos: Tensor | Sequence[Tensor], **given: Any) -> list[VideoFeatures]:
        """Run the vision tower once: [B, T, 3, H, W] (or one [T, 3, H, W] per video) -> one VideoFeatures per video,
        with what the outer stage requires. given: what goes with a family's pixels, for instance video_grid_thw."""
        with self._alone():
            return list(self._encode(pixel_values_videos, given).videos)

    def _encode(self, pixels: Any, given: Mapping[str, Any]) -> EncodedVideos:
        outer, names = self.reduction.outer, self._adapter.video_inputs
        requires = frozenset(() if outer is None else outer.requires)
        given = {name: given.get(name) for name in names}
        if self.reduction.tower is not None:
            given["tower"] = functools.partial(merging, self._adapter, self.reduction.tower)
        return self._adapter.encode(pixels, requires, **given)

    def install(self) -> None:
        """Put hooks and methods into this model instance; ``remove`` takes everything out again. One thread at a time
        (``reduce_tokens`` sees to it)."""
        core, host = self._adapter.core, self._host
        if isinstance(vars(core).get("forward"), Patched):
            raise BadUsage("this model is already inside a reduce_tokens block", fix="leave that block first")
        self._undo += [handle.remove for handle in self._decoder.install()]
        self._override(core, "forward", self._forward)
        if host is not core:
            self._undo.append(host.register_forward_pre_hook(_refuse_labels, with_kwargs=True).remove)
            self._override(host, "generate", self._generate)
            self._override(host, "_get_logits_processor", self._logits_processors)

    def remove(self) -> None:
        self._end()
        while self._undo:
            self._undo.pop()()

    def _override(self, module: nn.Module, name: str, replacement: Callable[..., Any]) -> None:
        """Give this instance a method of its own; the class, and every other instance, stay as they are."""
        original, own = getattr(module, name), vars(module).get(name)  # accelerate may have given it one
        setattr(module, name, functools.wraps(original)(Patched(self._instead, replacement, original)))
        undo = (delattr, module, name) if own is None else (setattr, module, name, own)
        self._undo.append(functools.partial(*undo))

    def _instead(self, replacement: Callable[..., Any], original: Callable[..., Any], *args: Any, **given: Any) -> Any:
        if args:
            given |= dict(zip(inspect.signature(original).parameters, args, strict=False))
        with self._alone():
            return replacement(original, given)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """BadUsage while another thread's call is under way, for hooks and tower hold what belongs to one call; and
        when the block has ended before this one or at its end, whatever it gives or raises."""
        if not self._lock.acquire(blocking=False):
            what = "another thread is using this model"
            raise BadUsage(what, fix="use a lock around its calls, or a model for each thread")
        try:
            self._check_open()
            yield
        finally:
            self._lock.release()
            self._check_open()

    def _check_open(self) -> None:
        if self._ended():
            what = "the reduce_tokens block has ended that this call of its model belongs to"
            raise BadUsage(what, fix="wait inside the block until the thread that generates is done")

    @torch.no_grad()
    def _generate(self, original: Callable[..., Any], given: dict[str, Any]) -> Any:
        if given.get("inputs") is not None:
            given["input_ids"] = given.pop("inputs")
        cache, shows = given.get("past_key_values"), self._has_video(given)
        if cache is not None and cache.get_seq_length() > 0 and (shows or hasattr(cache, ON_CACHE)):
            what = (
                "a cache that holds a conversation can take no video, and generate cannot go on from a reduced prompt"
            )
            raise BadUsage(what, fix="give the whole conversation again, with its video and without the cache")
        if not shows:
            return original(**given)
        check_generation(self._host, given)
        ids, asked = given["input_ids"], functools.partial(setting, self._host, given)
        pad, eos = asked("pad_token_id"), asked("eos_token_id")
        if given.get("attention_mask") is None and pad not in (None, *(eos if isinstance(eos, list) else [eos])):
            given["attention_mask"] = (ids != pad).long()  # as generate infers it
        ours, prompt = self._spliced(given)
        rows, width = ours["inputs_embeds"].shape[:2]
        if ours["attention_mask"] is None:  # without one, generate would make one of the ids
            ours["attention_mask"] = torch.ones(rows, width, dtype=torch.long, device=ids.device)
        for name in ("max_length", "min_length"):  # generate takes the embeddings' length off
            length = asked(name)
            if length and width != ids.shape[1]:
                ours[name] = length + width
        self._waiting, self._full = prompt, (ids, given.get("attention_mask"))
        try:
            return original(input_ids=ids, **{k: v for k, v in given.items() if k not in _SPLICED} | ours)
        finally:
            self._waiting = self._full = None

    def _logits_processors(self, original: Callable[..., Any], given: dict[str, Any]) -> Any:
        """The processors of ``generate``: those that read the prompt read the full one, and the last one asks at every
        step whether the block goes on."""
        if self._full is not None:
            (ids, mask), model_kwargs = self._full, given["model_kwargs"]
            if mask is not None:
                mask = mask.repeat_interleave(len(model_kwargs["inputs_embeds"]) // len(mask), 0)
                mask = None if mask.all() else mask
            given |= {"encoder_input_ids": ids, "model_kwargs": {**model_kwargs, "attention_mask": mask}}
        processors = original(**given)
        processors.append(lambda ids, scores: self._check_open() or scores)
        return processors

    def _forward(self, original: Callable[..., Any], given: dict[str, Any]) -> Any:
        call = self._call(given)
        if call is None:
            return original(**given)
        prompt, self._decoder.call = call.prompt, call
        start = clock(prompt.following.device)
        try:
            output = original(**given)
        finally:
            self._decoder.call = None
        if call.prefill:
            prefill = between(start, clock(prompt.following.device))
            self.stats.add(_samples(call), prompt.seconds | {"prefill": prefill})
        return output

    def _call(self, kwargs: dict[str, Any]) -> Call | None:
        """What a forward of the core is, None if no reduced prompt is in it; rewrites its arguments."""
        cache = kwargs.get("past_key_values")
        if cache is not None and cache.get_seq_length() > 0:
            if self._has_video(kwargs):
                what = "a video is given on top of a cache that already holds a conversation"
                raise BadUsage(what, fix="for a new video prefill everything again")
            prompt = getattr(cache, ON_CACHE, None)
            if prompt is None:
                return None
            prompt.ended = self._ended
            return _behind(prompt, cache, kwargs)
        if cache is not None:
            vars(cache).pop(ON_CACHE, None)  # an emptied cache holds no prompt any more
        if self._waiting is not None and kwargs.get("inputs_embeds") is not None:
            prompt, self._waiting = self._waiting, None
            prompt = prompt.repeated(len(kwargs["inputs_embeds"]) // len(prompt.samples))
        elif self._has_video(kwargs):
            ours, prompt = self._spliced(kwargs)
            for name in _SPLICED.intersection(kwargs):
                del kwargs[name]
            kwargs |= ours
        else:
            return None
        check_cache(cache, inside=bool(self.reduction.inner) or self.reduction.decode is not None)
        return Call(prompt)

    def _has_video(self, given: Mapping[str, Any]) -> bool:
        """Whether the prompt has a place for a video."""
        ids = given.get("input_ids")
        found = ids is not None and ids.shape[1] > 1 and bool((ids == self._adapter.video_token_id).any())
        if not found and _shown(given):
            what = "a video is given, and no prompt has a place for it"
            raise BadUsage(what, fix="put video placeholders into input_ids")
        return found

    def _videos(self, given: Mapping[str, Any]) -> EncodedVideos:
        """The features of a prompt's videos: provided by the user, or encoded here."""
        pixels, provided = given.get("pixel_values_videos"), self._provided
        if pixels is not None and provided is not None:
            raise BadUsage("features were provided, and pixel_values_videos are given too", fix="give one of the two")
        for name in _TOWER:
            if given.get(name) not in (None, getattr(self._adapter.config, name, None)):
                raise BadUsage(f"{name} is given in the call", fix=f"set model.config.{name}, which is read here")
        if pixels is not None:
            return self._encode(pixels, given)
        if provided is None or given.get("mm_encoder_outputs"):
            raise BadUsage(
                "the prompt has video placeholders, but no video came with it",
                fix="give pixel_values_videos, or call run.provide(features) first; what was encoded outside of "
                "the block lacks what reduction needs",
            )
        self._provided = None
        return provided

    def _spliced(self, given: Mapping[str, Any]) -> tuple[dict[str, Any], Prompt]:
        """Encode and reduce the videos of a batch, and put them into its prompts."""
        adapter, reduction = self._adapter, self.reduction
        check_model(self._host, (self._host, adapter.core, adapter.text, *adapter.layers))
        encoded = self._videos(given)
        self.stats.noted(encoded.videos)
        device = encoded.videos[0].tokens.device
        start = clock(device)
        placed = [reduced(video, reduction, adapter) for video in encoded.videos]
        seconds = encoded.seconds | {"outer": between(start, clock(device))}
        ours, prompt = splice(given, placed, adapter, reduction)
        prompt.seconds, prompt.ended = seconds, self._ended
        if reduction.outer is not None:
            self.stats.calls["outer"] += 1
            seen = sum(video.frames * video.cells for video in encoded.videos)
            self.stats.removed["outer"] += seen - sum(s.kept for s in prompt.samples if s is not None)
        return ours, prompt


def _samples(call: Call) -> list[SampleStats]:
    """The prompts of a prefill, once each, with what entered their layers."""
    times, found = len(call.prompt.base.kind) // len(call.prompt.samples), []
    entered, layers = call.entered, call.prompt.layers
    for i, sample in enumerate(call.prompt.samples):
        if sample is not None:
            kinds = [held.kind[i * times] for held in entered]
            found.append(
                replace(
                    sample,
                    per_layer=tuple(int((kind == VISUAL).sum()) for kind in kinds),
                    newlines_per_layer=tuple(int((kind == NEWLINE).sum()) for kind in kinds),
                    prompt_per_layer=tuple(held.length - held.pads[i * times] for held in entered),
                    cached_per_layer=tuple(held.length - held.pads[i * times] for held in layers),
                )
            )
    return found


def _behind(prompt: Prompt, cache: Any, kwargs: dict[str, Any]) -> Call:
    """Tokens behind a reduced prompt: mask and positions follow from what the cache holds."""
    tokens = kwargs["inputs_embeds"] if kwargs.get("input_ids") is None else kwargs["input_ids"]
    (batch, count), first, mask = tokens.shape[:2], prompt.layers[0], kwargs.get("attention_mask")
    held = cache.get_seq_length() - first.length
    if batch != len(first.kind) or held < 0:
        what = f"{batch} rows on a cache of {len(first.kind)} prompts, {held} columns behind them"
        raise BadUsage(what, fix="keep the batch of the prefill, and crop only what follows the prompt")
    if count > 1 and mask is not None and not mask[:, -count:].all():
        raise BadUsage("padding among tokens that follow a reduced prompt", fix="give turns of equal length")
    following, real = prompt.following, first.mask(held + count)
    positions = following[:, None] + torch.arange(held, held + count, device=following.device)
    kwargs |= {"position_ids": positions, "attention_mask": None if real is None else real.long().to(tokens.device)}
    kwargs.pop("cache_position", None)
    return Call(prompt, positions, held + count)


def _shown(given: Mapping[str, Any]) -> bool:
    """Whether a call brings a video, as pixels or encoded."""
    encoded = given.get("mm_encoder_outputs") or {}
    return given.get("pixel_values_videos") is not None or encoded.get("video") is not None


def _refuse_labels(model: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
    """A pre-hook: a loss over a reduced prompt, and logits chosen by their place in the full one, are refused."""
    if kwargs.get("labels") is not None or isinstance(kwargs.get("logits_to_keep"), Tensor):
        what = "labels, or logits_to_keep as a tensor, count the places of the full prompt"
        raise BadUsage(what, fix="compute losses outside of the block, and give the number of last logits")
