"""One ``with reduce_tokens(...)`` block: what is put into the model while it lasts, and what the user can ask it."""

import functools
import inspect
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from holitom.attach.decoder import Call, Decoder
from holitom.attach.prompt import Prompt, splice
from holitom.attach.rows import ReducedCache, cache_of, check_cache
from holitom.attach.stats import RunStats
from holitom.attach.tower import merging
from holitom.errors import BadUsage, UnsupportedModel
from holitom.models import host_of
from holitom.types import Reduction, VideoFeatures

_SPLICED = {
    *("input_ids", "attention_mask", "position_ids", "cache_position", "mm_token_type_ids", "pixel_values"),
    *("image_sizes", "image_grid_thw", "pixel_values_videos", "video_grid_thw", "second_per_grid_ts"),
}
"""Arguments of a call that are in the embeddings, mask and positions of a reduced prompt."""
_REFUSED = (
    *("custom_generate", "prefill_chunk_size", "token_healing"),
    *("assistant_model", "prompt_lookup_num_tokens", "assistant_early_exit", "use_mtp", "speculation_type"),
)
"""Settings of ``generate`` that go back in the cache, or that cut or change the prompt, which is reduced as a whole."""


class Run:
    """What ``with reduce_tokens(...) as run`` gives: ``stats``, ``provide`` and ``encode``.

    ``_generate`` encodes, reduces and splices, and lets the model's own ``generate`` go on from embeddings; its first
    ``_forward`` finds the spliced prompt in ``_waiting``. A plain call has ``_forward`` do both."""

    def __init__(self, model: nn.Module, adapter: Any, reduction: Reduction) -> None:
        self.reduction, self.stats, self._adapter = reduction, RunStats(reduction), adapter
        self._decoder = Decoder(adapter, reduction, self.stats)
        self._host, _ = host_of(model)
        self._provided: list[VideoFeatures] | None = None
        self._waiting: Prompt | None = None  # spliced, on its way through generate to the core
        self._full: tuple[Tensor, Tensor | None] | None = None  # ids and mask of the full prompt in generate
        ended = threading.Event()
        self._lock, self._end, self._ended = threading.RLock(), ended.set, lambda: ended.is_set()
        self._undo = ExitStack()

    def provide(self, videos: Sequence[VideoFeatures]) -> None:
        """Features for the next prefill, one per video in prompt order, instead of ``pixel_values_videos``."""
        with self._alone():
            if self._provided is not None:  # perhaps by another thread, about whose video it would be answered
                what = "features have been provided already, and no prompt with a video has taken them"
                raise BadUsage(what, fix="prefill before you provide more; threads need a lock around both calls")
            self._provided = list(videos)

    @torch.no_grad()
    def encode(self, pixel_values_videos: Tensor | Sequence[Tensor], **given: Any) -> list[VideoFeatures]:
        """Run the vision tower once: [B, T, 3, H, W] (or one [T, 3, H, W] per video) -> one VideoFeatures per video,
        with what the outer stage requires. given: what goes with a family's pixels, for instance video_grid_thw."""
        outer, tower = self.reduction.outer, self.reduction.tower
        beside = {name: given.get(name) for name in self._adapter.video_inputs}
        if tower is not None:
            beside["tower"] = functools.partial(merging, self._adapter, tower)
        with self._alone():
            requires = frozenset(() if outer is None else outer.requires)
            return self._adapter.encode(pixel_values_videos, requires, **beside)

    def install(self) -> None:
        """Put hooks and methods into this model instance; ``remove`` takes everything out again."""
        core, host = self._adapter.core, self._host
        # in one step, so that two threads cannot both begin; a model that holds a run cannot be copied
        if vars(core).setdefault("holitom_run", self) is not self:
            raise BadUsage("this model is already inside a reduce_tokens block", fix="leave that block first")
        self._undo.callback(delattr, core, "holitom_run")
        for handle in self._decoder.install():
            self._undo.callback(handle.remove)
        self._override(core, "forward", self._forward)
        if host is not core:
            self._undo.callback(host.register_forward_pre_hook(_refuse_labels, with_kwargs=True).remove)
            self._override(host, "generate", self._generate)
            self._override(host, "_get_logits_processor", self._logits_processors)

    def remove(self) -> None:
        self._end()
        self._undo.close()

    def _override(self, module: nn.Module, name: str, replacement: Callable[..., Any]) -> None:
        """Give this instance a method of its own; the class, and every other instance, stay as they are. It runs
        uncompiled, whoever compiles what calls it: lengths change with every prompt."""
        original, own = getattr(module, name), vars(module).get(name)  # accelerate may have given it one

        @torch.compiler.disable
        def instead(*args: Any, **given: Any) -> Any:
            if args:
                given |= dict(zip(inspect.signature(original).parameters, args, strict=False))
            with self._alone():
                return replacement(original, given)

        # a partial, for the compiler's own wrapper would look like a compiled forward
        setattr(module, name, functools.update_wrapper(functools.partial(instead), original))
        undo = (delattr, module, name) if own is None else (setattr, module, name, own)
        self._undo.callback(*undo)

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
        shows = self._has_video(given)
        if isinstance(cache_of(given), ReducedCache):
            what = "generate cannot go on from a cache that holds a reduced prompt"
            raise BadUsage(what, fix="give the whole conversation again, with its video and without the cache")
        if not shows:
            return original(**given)
        check_generation(self._host, given)
        ids, asked = given["input_ids"], functools.partial(setting, self._host, given)
        pad, eos = asked("pad_token_id"), asked("eos_token_id")
        if given.get("attention_mask") is None and pad not in (None, *(eos if isinstance(eos, list) else [eos])):
            given["attention_mask"] = (ids != pad).long()  # as generate infers it
        ours, prompt = self._spliced(given)
        width = ours["inputs_embeds"].shape[1]
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
        """The processors of ``generate``: those that read the prompt read the full one."""
        if self._full is not None:
            (ids, mask), kwargs = self._full, given["model_kwargs"]
            if mask is not None:
                mask = mask.repeat_interleave(len(kwargs["inputs_embeds"]) // len(mask), 0)
            given |= {"encoder_input_ids": ids, "model_kwargs": {**kwargs, "attention_mask": mask}}
        return original(**given)

    def _forward(self, original: Callable[..., Any], given: dict[str, Any]) -> Any:
        call = self._call(given)
        if call is None:
            return original(**given)
        self._decoder.under_way.call = call
        try:
            output = original(**given)
        finally:
            self._decoder.under_way.call = None
        if call.prefill:
            self.stats.samples += call.samples()
        return output

    def _call(self, kwargs: dict[str, Any]) -> Call | None:
        """What a forward of the core is, None if no reduced prompt is in it; rewrites its arguments."""
        cache, shows = cache_of(kwargs), self._has_video(kwargs)
        if cache is not None and cache.get_seq_length() > 0:
            return _behind(cache, kwargs) if isinstance(cache, ReducedCache) else None
        if self._waiting is not None and kwargs.get("inputs_embeds") is not None:
            prompt, self._waiting = self._waiting, None
            prompt = prompt.repeated(len(kwargs["inputs_embeds"]) // len(prompt.samples))
        elif shows:
            ours, prompt = self._spliced(kwargs)
            for name in _SPLICED.intersection(kwargs):
                del kwargs[name]
            kwargs |= ours
        else:
            return None
        check_cache(cache, inside=bool(self.reduction.inner) or self.reduction.decode is not None)
        return Call(prompt)

    def _has_video(self, given: Mapping[str, Any]) -> bool:
        """Whether a prompt has a place for a video; BadUsage where a video has none, or comes late."""
        ids, cache = given.get("input_ids"), cache_of(given)
        if ids is not None and ids.shape[1] > 1 and bool((ids == self._adapter.video_token_id).any()):
            if cache is not None and cache.get_seq_length() > 0:
                what = "a video is given on top of a cache that already holds a conversation"
                raise BadUsage(what, fix="give the whole conversation again, without the cache")
            return True
        if given.get("pixel_values_videos") is not None:
            what = "a video is given, and no prompt has a place for it"
            raise BadUsage(what, fix="put video placeholders into input_ids")
        return False

    def _spliced(self, given: Mapping[str, Any]) -> tuple[dict[str, Any], Prompt]:
        """Encode and reduce the videos of a batch, or take those provided, and put them into its prompts."""
        adapter, pixels, videos = self._adapter, given.get("pixel_values_videos"), self._provided
        check_model(self._host, (self._host, adapter.core, adapter.text, *adapter.layers))
        if (pixels is None) == (videos is None):
            what = f"a prompt has a place for a video, and {'none' if videos is None else 'more than one'} came with it"
            raise BadUsage(what, fix="give either pixel_values_videos or run.provide(features)")
        for name in ("vision_feature_layer", "vision_feature_select_strategy"):
            if given.get(name) not in (None, getattr(adapter.config, name, None)):
                raise BadUsage(f"{name} is given in the call", fix=f"set model.config.{name}, which is read here")
        if pixels is not None:
            videos = self.encode(**given)
        self._provided = None
        ours, prompt = splice(given, videos, adapter, self.reduction)
        prompt.ended = self._ended
        seen = sum(video.frames * video.cells for video in videos)
        if self.reduction.tower is not None:
            self.stats.count("tower", sum(video.all_frames * video.cells for video in videos) - seen)
        if self.reduction.outer is not None:
            self.stats.count("outer", seen - sum(sample.kept for sample in prompt.samples if sample is not None))
        return ours, prompt


def _behind(cache: ReducedCache, kwargs: dict[str, Any]) -> Call:
    """Tokens behind a reduced prompt: mask and positions follow from what the cache holds."""
    tokens = kwargs["inputs_embeds"] if kwargs.get("input_ids") is None else kwargs["input_ids"]
    prompt, count = cache.prompt, tokens.shape[1]
    first, following = prompt.layers[0], prompt.following
    held, mask = cache.get_seq_length() - first.length, kwargs.get("attention_mask")
    if held < 0:
        raise BadUsage("a reduced prompt has been cropped in its cache", fix="crop only what follows the prompt")
    if count > 1 and mask is not None and not mask[:, -count:].all():
        raise BadUsage("padding among tokens that follow a reduced prompt", fix="give turns of equal length")
    real = first.mask(held + count)
    positions = following[:, None] + torch.arange(held, held + count, device=following.device)
    kwargs |= {"position_ids": positions, "attention_mask": None if real.all() else real.long().to(tokens.device)}
    kwargs.pop("cache_position", None)
    return Call(prompt, positions, held + count)


def _refuse_labels(model: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
    """A pre-hook: a loss over a reduced prompt, and logits chosen by their place in the full one, are refused."""
    if kwargs.get("labels") is not None or isinstance(kwargs.get("logits_to_keep"), Tensor):
        what = "labels, or logits_to_keep as a tensor, count the places of the full prompt"
        raise BadUsage(what, fix="compute losses outside of the block, and give the number of last logits")


def check_model(model: nn.Module, parts: Iterable[nn.Module]) -> None:
    """Training mode, and compiled modules among the parts of a model, are refused."""
    for module in parts:
        compiled = hasattr(vars(module).get("forward"), "_torchdynamo_orig_callable")
        if compiled or "_orig_mod" in module._modules or getattr(module, "_compiled_call_impl", None):
            raise UnsupportedModel("the model is compiled, and token counts change every time", fix="do not compile")
    if model.training:
        raise UnsupportedModel("the model is in training mode", fix="call model.eval() first")


def setting(model: Any, given: Mapping[str, Any], name: str) -> Any:
    """What a call of ``generate`` goes by: its own argument, its configuration's, the model's; None without any."""
    if name in given:
        return given[name]
    configs = (given.get("generation_config"), getattr(model, "generation_config", None))
    return next((v for c in configs if (v := getattr(c, name, None)) is not None), None)


def check_generation(model: Any, given: Mapping[str, Any]) -> None:
    """Modes of ``generate`` that assume that all layers hold the same columns are refused."""
    for name in _REFUSED:
        if setting(model, given, name):
            raise UnsupportedModel(f"{name} does not work with reduced prompts", fix="generate without it")
