"""The door: put token reduction into a video language model for as long as a ``with`` block lasts.

``generate`` of the model instance reduces the videos, splices the prompt, and goes on from embeddings; the forward of its
core does the same for a plain call. From then on the model itself counts in the reduced prompt: nothing is translated
back. Hooks on the decoder layers run the stages inside (``decoder``)."""

from __future__ import annotations

import functools
import inspect
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from holitom.attach.checks import check_cache, check_generation, check_model, check_stages, generation_setting
from holitom.attach.decoder import Call, Decoder, prompt_of
from holitom.attach.prompt import NEWLINE, VISUAL, Placed, Prompt, reduced, runs, splice
from holitom.attach.stats import RunStats, SampleStats, TokenBudget, mark, token_budget
from holitom.errors import BadUsage
from holitom.flops import LLMShape
from holitom.models import ADAPTERS, EncodedVideos, adapter_for
from holitom.types import Decode, Inner, Outer, Reduction, VideoFeatures, check_budget

__all__ = ["Run", "RunStats", "SampleStats", "TokenBudget", "reduce_tokens", "token_budget"]

_TOWER = ("vision_feature_layer", "vision_feature_select_strategy")
_IN_THE_EMBEDDINGS = {
    "inputs", "input_ids", "attention_mask", "position_ids", "cache_position", "mm_token_type_ids", "mm_encoder_outputs",
    "pixel_values", "pixel_values_videos", "image_sizes", "image_sizes_videos", "batch_num_images", "image_grid_thw",
    "video_grid_thw", "second_per_grid_ts", "vision_aspect_ratio", *_TOWER,
}  # fmt: skip
"""Arguments of a call that say what a reduced prompt's embeddings, mask and positions say already."""


@contextmanager
def reduce_tokens(
    model: nn.Module,
    outer: Outer | None = None,
    budget: float = 1.0,
    inner: Inner | Sequence[Inner] = (),
    decode: Decode | None = None,
    *,
    reduction: Reduction | None = None,
) -> Iterator[Run]:
    """Reduce the visual tokens of every video that this model sees inside the block::

        with reduce_tokens(model, outer=HoliTom(tau=0.65), budget=0.1, inner=HoliTomMerge(layer=18, ratio=0.5)) as run:
            out = model.generate(**inputs)
        run.stats.last.kept

    outer runs before the language model and keeps about ``budget`` of the T * N tokens; inner stages run once each in
    prefill, in front of their layers; decode chooses what is read for every generated token. ``reduction`` gives all
    four at once. ``run.stats`` says what was asked and spent (``budget``), and ``check_acted()`` raises CannotRun when
    a stage has done nothing.

    Prompts keep their placeholders (any number > 0 per video, one unbroken run each), and returned sequences the full
    prompt. ``generate``: greedy, sampling, beams, returned sequences, left-padded batches, images beside videos; what
    reads ids while generating reads those of the full prompt; it always uses a cache. A plain forward gives the logits
    of the reduced prompt, padded on the left; further tokens may follow on its cache (without positions: those follow
    from the cache), but no further ``generate``. Images and prompts without video pass through unchanged.

    Hooks and instance attributes (``forward`` of the core, ``generate``) are set on this model object and removed when
    the block ends, also after an exception. Copying the model inside the block is refused, and so is a second thread
    while a call is under way; a call of a reduced prompt that outlives the block raises in its own thread. A cache
    filled inside the block can only be continued inside such a block. Raises UnsupportedModel (unknown family, training
    mode, compiled model, static, offloaded or quantised cache, chunked prefill, assisted decoding, sliding-window
    layers for stages inside the decoder) and BadUsage (budget, layers, attributes of a stage, labels, inputs).
    """
    if reduction is not None and not isinstance(reduction, Reduction):
        raise BadUsage(f"reduction is a {type(reduction).__name__}", fix="give a Reduction: preset(...).reduction")
    if reduction is not None and (outer is not None or budget != 1.0 or inner or decode is not None):
        raise BadUsage("a reduction is given, and stages beside it", fix="give one of the two")
    stages = tuple(inner) if isinstance(inner, Sequence) else (inner,)
    chosen = reduction or Reduction("custom", outer, budget, stages, decode)
    check_budget(chosen.budget)
    check_model(model)
    adapter = adapter_for(model)
    check_stages(adapter, chosen)
    package = hasattr(adapter, "owner")
    if package:
        from holitom.attach.llava import LlavaRun as kind
    else:
        kind = Run
    run = kind(model, adapter, chosen)
    try:
        run.install()
        yield run
    finally:
        run.remove()


class Patched(functools.partial):
    """A method of one model instance. A copy of the model would stay reduced, and its stages would act on the original."""

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise BadUsage(
            "a model is copied or pickled inside its reduce_tokens block", fix="copy it outside of the block"
        )


class Run:
    """What ``with reduce_tokens(...) as run`` gives: ``stats``, ``provide`` and ``encode``."""

    def __init__(self, model: nn.Module, adapter: Any, reduction: Reduction) -> None:
        self.reduction, self.stats = reduction, RunStats.of(reduction)
        self._adapter, self._decoder = adapter, Decoder(adapter, reduction, self.stats)
        family = (m for m in model.modules() if any(c.__name__ in ADAPTERS for c in type(m).__mro__))
        self._host: Any = next(family, model)  # inside of wrappers (PEFT, for one)
        self._requires = frozenset(reduction.outer.requires) if reduction.outer is not None else frozenset()
        self._provided: EncodedVideos | None = None
        self._waiting: Prompt | None = None  # spliced, on its way through generate to the core
        self._read: dict[str, Any] = {}  # ids and mask of the full prompt, for what reads them while generating
        self._lock, self._open = threading.RLock(), True
        self._undo: list[Callable[[], None]] = []

    def provide(self, videos: Sequence[VideoFeatures]) -> None:
        """Features for the next prefill, one per video in prompt order, instead of ``pixel_values_videos``."""
        if not videos or not all(hasattr(video, "tokens") for video in videos):
            raise BadUsage(
                "provide(...) needs a list of VideoFeatures", fix="take it from run.encode(pixel_values_videos)"
            )
        self._provided = EncodedVideos(videos=tuple(videos), seconds={})

    @torch.no_grad()
    def encode(
        self, pixel_values_videos: Tensor | Sequence[Tensor], saliency: bool | None = None, **given: Any
    ) -> list[VideoFeatures]:
        """Run the vision tower once: [B, T, 3, H, W] (or one [T, 3, H, W] per video) -> one VideoFeatures per video.

        Fills what the outer stage requires; saliency True or False overrides that for the saliency. given: what the
        family's pixels need beside them, for instance video_grid_thw (Qwen2.5-VL).
        """
        requires = self._requires
        if saliency is not None:
            requires = requires | {"saliency"} if saliency else requires - {"saliency"}
        with self._alone():
            return list(self._adapter.encode(pixel_values_videos, requires, **given).videos)

    def install(self) -> None:
        """Hook into this model instance; ``remove`` takes everything out again."""
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
        self._open = False
        while self._undo:
            self._undo.pop()()

    def _override(self, module: nn.Module, name: str, replacement: Callable[..., Any]) -> None:
        """Give this instance a method of its own; the class, and every other instance, stay as they are."""
        original, own = getattr(module, name), vars(module).get(name)
        setattr(module, name, functools.wraps(original)(Patched(replacement, original)))
        undo = functools.partial(delattr, module, name) if own is None else functools.partial(setattr, module, name, own)
        self._undo.append(undo)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """BadUsage while another thread's call is under way: hooks and tower hold what belongs to one call."""
        if not self._lock.acquire(blocking=False):
            raise BadUsage(
                "another thread is using this model", fix="use a lock around its calls, or a model for each thread"
            )
        try:
            yield
        finally:
            self._lock.release()

    @contextmanager
    def _to_the_end(self) -> Iterator[None]:
        """BadUsage, in place of what the call gives or raises, when the block has ended meanwhile."""
        try:
            yield
        finally:
            self._check_open()

    def _check_open(self) -> None:
        if not self._open:
            raise BadUsage(
                "the reduce_tokens block has ended while a call of a reduced prompt was under way",
                fix="wait inside the block until the thread that generates is done",
            )

    # --- generate

    @torch.no_grad()
    def _generate(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        with self._alone():
            given = named(original, args) | kwargs
            check_generation(self._host, given)
            if given.get("inputs") is not None:
                given["input_ids"] = given.pop("inputs")
            if prompt_of(given.get("past_key_values")) is not None:
                raise BadUsage(
                    "the cache holds a reduced prompt, which generate cannot continue",
                    fix="give the whole conversation again, with its video and without the cache",
                )
            if not self._shows_video(given):
                return original(*args, **kwargs)
            ids, given_mask = given["input_ids"], given.get("attention_mask")
            embeds, prompt = self._spliced(given)
            kept = {name: value for name, value in given.items() if name not in _IN_THE_EMBEDDINGS}
            for name in ("max_length", "min_length"):  # generate takes the embeddings' length off
                value = generation_setting(self._host, given, name)
                if value and embeds.shape[1] != ids.shape[1]:
                    kept[name] = value + embeds.shape[1]
            if given_mask is not None and given_mask.all():
                given_mask = None
            self._waiting, self._read = prompt, {"ids": ids, "mask": given_mask}
            mask = torch.ones(embeds.shape[:2], dtype=torch.long, device=ids.device)
            mask = mask if prompt.mask is None else prompt.mask
            with self._to_the_end():
                try:
                    return original(
                        input_ids=ids,
                        inputs_embeds=embeds,
                        attention_mask=mask,
                        position_ids=prompt.positions,
                        **kept,
                    )
                finally:
                    self._waiting, self._read = None, {}

    def _logits_processors(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """The processors of ``generate``; those that read the prompt get the full one, and the last asks at every step
        whether the block goes on."""
        if not self._read:
            return original(*args, **kwargs)
        given, ids, mask = named(original, args) | kwargs, self._read["ids"], self._read["mask"]
        rows = len(given["model_kwargs"]["inputs_embeds"])
        mask = None if mask is None else mask.repeat_interleave(rows // len(mask), 0)
        given |= {"encoder_input_ids": ids, "model_kwargs": {**given["model_kwargs"], "attention_mask": mask}}
        processors = original(**given)
        processors.append(self._goes_on)
        return processors

    def _goes_on(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        self._check_open()
        return scores

    # --- the core's forward

    def _forward(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        with self._alone():
            kwargs = named(original, args) | kwargs
            call = self._call_of(kwargs)
            if call is None:
                return original(**kwargs)
            self._decoder.call, started = call, mark(call.prompt.following.device)
            with self._to_the_end():
                try:
                    output = original(**kwargs)
                finally:
                    self._decoder.call = None
            if call.prefill:
                self._note(call, (started, mark(call.prompt.following.device)))
            return output

    def _call_of(self, kwargs: dict[str, Any]) -> Call | None:
        """What this forward is, None where no reduced prompt is in it; rewrites its arguments."""
        cache, embeds = kwargs.get("past_key_values"), kwargs.get("inputs_embeds")
        if cache is not None and cache.get_seq_length() > 0:
            if self._video_in(kwargs):
                raise BadUsage(
                    "a video is given on top of a cache that already holds a conversation",
                    fix="leave pixels and placeholders out of a further turn; for a new video prefill everything again",
                )
            prompt = prompt_of(cache)
            return None if prompt is None else _further(prompt, cache, kwargs)
        if self._waiting is not None and embeds is not None:
            prompt, self._waiting = self._waiting, None
            prompt = prompt.repeated(len(embeds) // len(prompt.about))
        elif self._shows_video(kwargs):
            embeds, prompt = self._spliced(kwargs)
        else:
            return None
        check_cache(cache, inside=bool(self.reduction.inner) or self.reduction.decode is not None)
        for name in _IN_THE_EMBEDDINGS & set(kwargs):
            del kwargs[name]
        kwargs |= {"inputs_embeds": embeds, "attention_mask": prompt.mask, "position_ids": prompt.positions}
        return Call(prompt)

    def _video_in(self, given: Mapping[str, Any]) -> bool:
        """Whether the call itself brings a video, as pixels or encoded."""
        encoded = given.get("mm_encoder_outputs") or {}
        return given.get("pixel_values_videos") is not None or encoded.get("video") is not None

    def _shows_video(self, given: Mapping[str, Any]) -> bool:
        """Whether the prompt has a place for a video."""
        ids, shown = given.get("input_ids"), self._video_in(given)
        text = ids is not None and ids.shape[1] > 1
        if text and bool((ids == self._adapter.video_token_id).any()):
            return True
        if shown and text:
            raise BadUsage(
                "a video is given, and no prompt has a place for it", fix="put video placeholders in the prompt"
            )
        if shown:
            raise BadUsage(
                "a video is given with inputs_embeds, or with a prompt of one token", fix="give the prompt as input_ids"
            )
        return False

    def _encoded(self, given: Mapping[str, Any]) -> EncodedVideos:
        """The features of the prompt's videos: provided by the user, or encoded here."""
        pixels = given.get("pixel_values_videos")
        if (pixels is not None) == (self._provided is not None) or given.get("mm_encoder_outputs"):
            if pixels is not None and self._provided is not None:
                raise BadUsage(
                    "features were provided, and pixel_values_videos are given too", fix="give one of the two"
                )
            raise BadUsage(
                "the prompt has video placeholders, but no video came with it",
                fix="give pixel_values_videos, or call run.provide(features) first; what was encoded outside of "
                "the block lacks what reduction needs",
            )
        if pixels is None:
            encoded, self._provided = self._provided, None
            return encoded
        for name in _TOWER:
            if given.get(name) not in (None, getattr(self._adapter.config, name, None)):
                raise BadUsage(
                    f"{name} is given in the call", fix=f"set model.config.{name}, which reduce_tokens reads"
                )
        beside = {name: given.get(name) for name in self._adapter.video_inputs}
        return self._adapter.encode(pixels, self._requires, **beside)

    def _spliced(self, given: Mapping[str, Any]) -> tuple[Tensor, Prompt]:
        """Encode and reduce the videos of a batch, and put them into its prompts."""
        adapter, reduction, ids = self._adapter, self.reduction, given["input_ids"].cpu()
        encoded = self._encoded(given)
        grid = adapter.grid_positions(given)
        if grid is None and given.get("position_ids") is not None:
            raise BadUsage("position_ids are given with a video", fix="leave them out: they follow from the prompt")
        videos, token = encoded.videos, adapter.video_token_id
        places = [len(runs(row, token)) for row in ids]
        if sum(places) != len(videos):
            raise BadUsage(
                f"{len(videos)} videos, but {sum(places)} runs of video placeholders in {len(ids)} prompts",
                fix="give one unbroken run of placeholders per video, with text between two videos; a video that "
                "several prompts ask about is given once for each",
            )
        started = mark(videos[0].tokens.device)
        placed = [reduced(video, reduction, adapter) for video in videos]
        spans = {**encoded.seconds, "outer": (started, mark(videos[0].tokens.device))}
        if reduction.outer is not None:
            kept = sum(int(video.visual.sum()) for video in placed)
            self.stats.calls["outer"] += 1
            self.stats.removed["outer"] += sum(video.frames * video.cells for video in videos) - kept
        pairs = iter(zip(videos, placed, strict=True))
        shown = [[next(pairs) for _ in range(count)] for count in places]
        embeds, prompt = splice(
            ids,
            given.get("attention_mask"),
            adapter.embed_prompt(given["input_ids"], given),
            [[put for _, put in pair] for pair in shown],
            token=token,
            keeps_places=reduction.outer is not None and reduction.outer.positions == "original",
            grid=grid,
            layers=len(adapter.layers),
        )
        before = [ids.shape[1]] * len(ids)
        if given.get("attention_mask") is not None:
            before = given["attention_mask"].sum(1).tolist()
        for pair, length, kind in zip(shown, before, prompt.kind, strict=True):
            prompt.about.append(_about(pair, reduction.budget) | {"prompt_before": length, "prompt_after": len(kind)})
        prompt.spans = spans
        return embeds, prompt

    def _note(self, call: Call, prefill: Any) -> None:
        """Add the prompts of a prefill to the statistics."""
        prompt, shape = call.prompt, LLMShape.from_config(self._adapter.text.config)
        samples = []
        for i, about in enumerate(prompt.about):
            b = i * prompt.times
            kinds = [prompt.kind[b][held.ids[b]] for held in call.entered]
            if about["videos"]:
                samples.append(
                    SampleStats(
                        **about,
                        budget=self.reduction.budget,
                        shape=shape,
                        per_layer=tuple(int((kind == VISUAL).sum()) for kind in kinds),
                        newlines_per_layer=tuple(int((kind == NEWLINE).sum()) for kind in kinds),
                        prompt_per_layer=tuple(map(len, kinds)),
                        cached_per_layer=tuple(len(held.ids[b]) for held in prompt.layers),
                    )
                )
        self.stats.add(samples, {**prompt.spans, "prefill": prefill})


def _about(pairs: Sequence[tuple[VideoFeatures, Placed]], budget: float) -> dict[str, Any]:
    """Of one prompt's videos, what SampleStats says of them together."""
    frames = sum(video.frames for video, _ in pairs)
    full = sum(video.frames * video.cells for video, _ in pairs)
    kept = sum(int(put.visual.sum()) for _, put in pairs)
    return {
        "videos": len(pairs),
        "frames": frames,
        "cells": full / frames if len({video.cells for video, _ in pairs}) > 1 else full // max(frames, 1),
        "requested": sum(round(budget * (video.frames * video.cells)) for video, _ in pairs),
        "kept": kept,
        "newlines": sum(map(len, (put for _, put in pairs))) - kept,
        "full_newlines": sum(put.full for _, put in pairs) - full,
    }


def _further(prompt: Prompt, cache: Any, kwargs: dict[str, Any]) -> Call:
    """Tokens behind a reduced prompt: their mask and positions follow from what the cache holds."""
    tokens = kwargs["inputs_embeds"] if kwargs.get("input_ids") is None else kwargs["input_ids"]
    rows, count = tokens.shape[:2]
    held, mask, first = cache.get_seq_length() - prompt.layers[0].length, kwargs.get("attention_mask"), prompt.layers[0]
    if rows != len(first.ids):
        raise BadUsage(
            f"a batch of {rows} on a cache with {len(first.ids)} prompts", fix="keep the batch of the prefill"
        )
    if held < 0:
        raise BadUsage("the cache was cropped into the reduced prompt", fix="crop what follows the prompt only")
    if count > 1 and mask is not None and not mask[:, -count:].all():
        raise BadUsage("padding among tokens that follow a reduced prompt", fix="give turns of equal length")
    positions = prompt.following[:, None] + torch.arange(held, held + count, device=prompt.following.device)
    real = first.mask(held + count)
    kwargs |= {
        "position_ids": positions,
        "attention_mask": None if real is None else real.long().to(tokens.device),
    }
    kwargs.pop("cache_position", None)
    return Call(prompt, positions, held + count)


def named(function: Callable[..., Any], args: tuple) -> dict[str, Any]:
    """Positional arguments by the names of their parameters."""
    return dict(zip(inspect.signature(function).parameters, args, strict=False)) if args else {}


def _refuse_labels(model: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
    """A pre-hook: BadUsage for a loss over a reduced prompt, and for logits chosen by their place in the full one."""
    if kwargs.get("labels") is not None:
        raise BadUsage(
            "labels do not fit a reduced prompt, which has fewer logits than ids",
            fix="compute losses outside of the block",
        )
    if isinstance(kwargs.get("logits_to_keep"), Tensor):
        raise BadUsage("logits_to_keep as a tensor counts unreduced positions", fix="give the number of last tokens")
