"""One ``with reduce_tokens(...)`` block: what is hooked into the model while it lasts, and what the user can ask it."""

from __future__ import annotations

import functools
import inspect
import threading
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from holitom.attaching.checks import check_cache, check_generation, check_not_training, rows_per_prompt
from holitom.attaching.continuation import continue_prompt
from holitom.attaching.decoder import DecoderHooks
from holitom.attaching.embedding import as_embeddings, takes_encoded_videos
from holitom.attaching.prefill import Prefill, begin_prefill
from holitom.attaching.stats import RunStats
from holitom.attaching.views import forget, recall
from holitom.errors import BadUsage
from holitom.models import Adapter
from holitom.models.encoding import EncodedVideos
from holitom.types import Reduction, VideoFeatures
from holitom.versions import require_transformers

_TOWER_SETTINGS = ("vision_feature_layer", "vision_feature_select_strategy")


class Run:
    """What ``with reduce_tokens(...) as run`` gives: ``stats``, ``provide`` and ``encode``."""

    def __init__(self, model: nn.Module, adapter: Adapter, reduction: Reduction) -> None:
        self.reduction = reduction
        self.stats = RunStats.of(reduction)
        self._model, self._adapter = model, adapter
        self._decoder = DecoderHooks(adapter, reduction.inner, reduction.decode, self.stats)
        self._requires = frozenset(reduction.outer.requires) if reduction.outer is not None else frozenset()
        self._provided: EncodedVideos | None = None
        self._prefill: Prefill | None = None
        self._rows_per_prompt = 1  # other than that inside generate only
        self._thread: dict[str, int] = {}  # which thread's forward is under way
        self._undo: list[Callable[[], None]] = []

    def __reduce_ex__(self, protocol: Any) -> Any:
        """A copy of an attached model would stay reduced, and its stages would act on the original."""
        raise BadUsage(
            "a model is copied or pickled inside its reduce_tokens block", fix="copy it outside of the block"
        )

    def provide(self, videos: Sequence[VideoFeatures]) -> None:
        """Features for the next prefill, one per video in prompt order, instead of ``pixel_values_videos``."""
        if not videos or not all(isinstance(video, VideoFeatures) for video in videos):
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
        return list(self._adapter.encode(pixel_values_videos, requires, **given).videos)

    def install(self) -> None:
        """Hook into this model instance; ``remove`` takes everything out again."""
        core, model = self._adapter.core, self._model
        self._undo += [handle.remove for handle in self._decoder.install()]
        self._undo.append(core.register_forward_pre_hook(self._before_core, with_kwargs=True).remove)
        self._undo.append(core.register_forward_hook(self._after_core, with_kwargs=True, always_call=True).remove)
        self._override(core, "get_video_features", self._get_video_features)
        if model is not core:
            self._undo.append(model.register_forward_pre_hook(refuse_labels, with_kwargs=True).remove)
            self._override(model, "generate", self._generate)

    def settle(self) -> None:
        """Read what the stages' checks have found on the device since the last time; BadUsage where it must not be.

        Called before every forward and at the end of the block: then the tokens have reached the host anyway."""
        self.stats.later.settle()

    def remove(self) -> None:
        while self._undo:
            self._undo.pop()()
        self._decoder.call = self._prefill = self._provided = None

    def _override(self, module: nn.Module, name: str, replacement: Callable[..., Any]) -> None:
        """Give this instance a method of its own; the class, and every other instance, stay as they are."""
        original = getattr(module, name)
        setattr(module, name, functools.wraps(original)(functools.partial(replacement, original)))
        self._undo.append(functools.partial(delattr, module, name))

    def _generate(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        require_transformers()
        given = named(original, args) | kwargs
        check_generation(self._model, given)
        if self._provided is not None:
            if kwargs.get("pixel_values_videos") is not None:
                raise BadUsage(
                    "features were provided, and pixel_values_videos are given too", fix="give one of the two"
                )
            # carried along by generate, so that generation without a cache finds them at every step
            kwargs["mm_encoder_outputs"] = {**(kwargs.get("mm_encoder_outputs") or {}), "video": self._provided}
            self._provided = None
        self._rows_per_prompt = rows_per_prompt(self._model, given)
        try:
            return original(*args, **kwargs)
        finally:
            self._rows_per_prompt = 1

    def _get_video_features(
        self, original: Callable[..., Any], pixel_values_videos: Any, **kwargs: Any
    ) -> EncodedVideos:
        """In place of the model's own: features per video, with what the outer stage requires, from one tower pass."""
        for name in _TOWER_SETTINGS:
            if kwargs.get(name) not in (None, getattr(self._model.config, name, None)):
                raise BadUsage(
                    f"{name} is given in the call", fix=f"set model.config.{name}, which reduce_tokens reads"
                )
        given = {name: kwargs.get(name) for name in self._adapter.video_inputs}
        return self._adapter.encode(pixel_values_videos, self._requires, **given)

    def _before_core(self, core: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        check_not_training(core)
        self._enter_thread()
        kwargs = named(core.forward, args) | kwargs
        self._decoder.call = self._prefill = None
        self.settle()
        cache = kwargs.get("past_key_values")
        if cache is not None and cache.get_seq_length() > 0:
            self._continue(kwargs)
            return (), kwargs
        forget(cache)
        if self._brings_video(kwargs):
            inside = bool(self._decoder.stages) or self._decoder.decode is not None
            check_cache(cache, needs_plain_layers=inside)
            # generate encodes before it repeats the prompts; what is encoded here was repeated with them, if at all
            early = (kwargs.get("mm_encoder_outputs") or {}).get("video") is not None
            repeats = self._rows_per_prompt if early else 1
            provided, encoded = self._provided, self._encoded(core, kwargs)
            self._prefill = begin_prefill(kwargs, encoded, self._adapter, self.reduction, self.stats, repeats)
            if self._prefill is None:
                if encoded is not provided:
                    raise BadUsage(
                        "a video is given, and no prompt has a place for it", fix="put video placeholders in the prompt"
                    )
                self._provided = provided  # for the next prompt
                return (), kwargs
            self._decoder.call = self._prefill.call
            if self._embeds_itself(core, kwargs):
                as_embeddings(core, kwargs, self._adapter.video_token_id)
        elif self._video_in(kwargs):
            raise BadUsage(
                "a video is given with inputs_embeds, or with a prompt of one token", fix="give the prompt as input_ids"
            )
        return (), kwargs

    def _after_core(self, core: nn.Module, args: tuple, kwargs: dict[str, Any], output: Any) -> None:
        if self._thread.get("running") != threading.get_ident():
            return  # refused before it began
        del self._thread["running"]
        if output is None:  # the call has failed
            self.stats.later.drop()
        elif self._prefill is not None:
            self._prefill.finish(self.stats)
        self._decoder.call = self._prefill = None

    def _continue(self, kwargs: dict[str, Any]) -> None:
        """A further call on a filled cache: translated if a reduced prompt is in it, untouched if not."""
        state = recall(kwargs["past_key_values"])
        if state is not None:
            self._decoder.call = continue_prompt(kwargs, state)
        if self._has_video(kwargs.get("input_ids")) or self._video_in(kwargs):
            self._decoder.call = None
            raise BadUsage(
                "a video is given on top of a cache that already holds a conversation",
                fix="leave pixels and placeholders out of a further turn; for a new video prefill everything again",
            )

    def _brings_video(self, kwargs: dict[str, Any]) -> bool:
        """Whether this prefill has a video: one came with it, or there is a place for one. Looks at the ids only in the
        second case, because they may be on a device."""
        ids = kwargs.get("input_ids")
        if ids is None or ids.shape[1] <= 1:
            return False
        return self._video_in(kwargs) or self._provided is not None or self._has_video(ids)

    def _video_in(self, kwargs: dict[str, Any]) -> bool:
        """Whether the call itself brings a video, as pixels or encoded."""
        encoded = (kwargs.get("mm_encoder_outputs") or {}).get("video")
        return encoded is not None or kwargs.get("pixel_values_videos") is not None

    def _enter_thread(self) -> None:
        """BadUsage while another thread's forward is under way: the hooks hold what belongs to one call."""
        me = threading.get_ident()
        if self._thread.setdefault("running", me) != me:
            raise BadUsage(
                "another thread is using this model", fix="use a lock around its calls, or a model for each thread"
            )

    def _embeds_itself(self, core: nn.Module, kwargs: dict[str, Any]) -> bool:
        """Whether the prompt goes to the core as embeddings: where the core takes no encoded videos, and where it would
        make the same of them but count placeholders on the host first."""
        if not takes_encoded_videos(core):
            return True
        image = kwargs["mm_encoder_outputs"].get("image"), kwargs.get("pixel_values")
        return getattr(self._adapter, "embeds_videos", False) and all(value is None for value in image)

    def _has_video(self, ids: Tensor | None) -> bool:
        return ids is not None and ids.shape[1] > 1 and bool((ids == self._adapter.video_token_id).any())

    def _encoded(self, core: nn.Module, kwargs: dict[str, Any]) -> EncodedVideos:
        """The features of this prefill's videos: encoded by generate, provided by the user, or encoded here."""
        outputs = kwargs.get("mm_encoder_outputs") or {}
        pixels = kwargs.pop("pixel_values_videos", None)
        given = outputs.get("video")
        if given is None and pixels is not None:
            names = (*_TOWER_SETTINGS, *self._adapter.video_inputs)
            given = core.get_video_features(pixels, **{name: kwargs.get(name) for name in names})
            if kwargs.get("pixel_values") is not None:  # the core takes pixels or features, not some of each
                names = inspect.signature(core.get_image_features).parameters
                image = core.get_image_features(**{n: kwargs[n] for n in names if kwargs.get(n) is not None})
                kwargs["mm_encoder_outputs"] = {**outputs, "image": image}
                kwargs["pixel_values"] = None
        elif given is None and self._provided is not None:
            given, self._provided = self._provided, None
        if getattr(given, "videos", None) is None:
            raise BadUsage(
                "the prompt has video placeholders, but no video came with it",
                fix="give pixel_values_videos, or call run.provide(features) first; what was encoded outside of "
                "the block lacks what reduction needs",
            )
        return given


def named(function: Callable[..., Any], args: tuple) -> dict[str, Any]:
    """Positional arguments by the names of their parameters."""
    return dict(zip(inspect.signature(function).parameters, args, strict=False)) if args else {}


def refuse_labels(model: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
    """A pre-hook: BadUsage for a loss over a reduced prompt, and for logits chosen by their place in the full one."""
    if kwargs.get("labels") is not None:
        raise BadUsage(
            "labels do not fit a reduced prompt, which has fewer logits than ids",
            fix="compute losses outside of the block",
        )
    if isinstance(kwargs.get("logits_to_keep"), Tensor):
        raise BadUsage("logits_to_keep as a tensor counts unreduced positions", fix="give the number of last tokens")
