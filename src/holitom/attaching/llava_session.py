"""The ``with`` block on a model of the original llava package, which turns prompts into embeddings before generating.

Three methods of the model instance and its core's hooks: ``prepare_inputs_labels_for_multimodal`` puts reduced videos
into the prompt, ``generate`` checks how it is called, and the core gets positions and later calls translated. As the
package generates from embeddings, its caller counts in the reduced prompt."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from holitom.attaching.calls import Call
from holitom.attaching.checks import check_generation, check_not_training
from holitom.attaching.continuation import continue_prompt
from holitom.attaching.prefill import Prefill, begin_prefill
from holitom.attaching.session import Run, named, refuse_labels
from holitom.attaching.views import PromptState, View, forget, recall
from holitom.errors import BadUsage, UnsupportedModel
from holitom.types import Reduction


@dataclass
class _Waiting:
    """A reduced prompt on its way from ``prepare_inputs_labels_for_multimodal`` to the core."""

    prefill: Prefill
    embeds: Tensor
    positions: Tensor
    mask: Tensor | None


class LlavaRun(Run):
    """``reduce_tokens`` on ``LlavaQwenForCausalLM``: outer and inner stages, greedy, sampling and beams, batches."""

    def __init__(self, model: nn.Module, adapter: Any, reduction: Reduction) -> None:
        if reduction.decode is not None:
            raise UnsupportedModel(
                "decode stages need the cache layers of transformers 5, and the llava package has transformers 4.51",
                fix="leave the decode stage out, or convert the checkpoint (python -m holitom_repro convert)",
            )
        super().__init__(model, adapter, reduction)
        self._waiting: _Waiting | None = None

    def install(self) -> None:
        core, owner = self._adapter.core, self._adapter.owner
        if "prepare_inputs_labels_for_multimodal" in vars(owner):
            raise BadUsage("this model is already inside a reduce_tokens block", fix="leave that block first")
        self._undo += [handle.remove for handle in self._decoder.install()]
        self._undo.append(core.register_forward_pre_hook(self._before_core, with_kwargs=True).remove)
        self._undo.append(core.register_forward_hook(self._after_core, with_kwargs=True, always_call=True).remove)
        self._undo.append(owner.register_forward_pre_hook(refuse_labels, with_kwargs=True).remove)
        self._override(owner, "prepare_inputs_labels_for_multimodal", self._prepare)
        self._override(owner, "generate", self._generate)

    def remove(self) -> None:
        super().remove()
        self._waiting = None

    def _generate(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        given = named(original, args) | kwargs
        check_generation(self._adapter.owner, given)
        self._waiting = None
        if self._provided is not None:
            if given.get("images") is not None:
                raise BadUsage("features were provided, and images are given too", fix="give one of the two")
            given |= {"images": [], "modalities": ["video"] * len(self._provided.videos)}
        return original(**given)

    def _prepare(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> tuple:
        """In place of the package's own: (None, position_ids, mask, cache, embeddings, labels) of the reduced prompt;
        prompts without a video pass unchanged."""
        given = named(original, args) | kwargs
        ids, images = given["input_ids"], given.get("images")
        modalities = given.get("modalities", ["image"])
        modalities = [modalities] if isinstance(modalities, str) else list(modalities)
        if ids.shape[1] == 1 or (self._provided is None and (images is None or "video" not in modalities)):
            return original(**given)
        encoded, self._provided = self._provided, None
        if encoded is None:
            if len(modalities) != len(images) or set(modalities) != {"video"}:
                raise BadUsage(
                    f"{len(images)} images of the modalities {modalities}",
                    fix="give videos alone, and modalities=['video'] * number of videos",
                )
            encoded = self._adapter.encode(images, self._requires)
        rewritten = {"input_ids": ids, "attention_mask": given.get("attention_mask")}
        prefill = begin_prefill(rewritten, encoded, self._adapter, self.reduction, self.stats)
        if prefill is None:
            raise BadUsage(
                "a video is given, and no prompt has a place for it", fix="put the image token in the prompt"
            )
        embeds = self._embedded(rewritten["input_ids"], rewritten["mm_encoder_outputs"]["video"].pooler_output[0])
        limit = getattr(self._adapter.config, "tokenizer_model_max_length", None)
        if limit is not None and embeds.shape[1] > limit:
            raise BadUsage(
                f"a prompt of {embeds.shape[1]} tokens, and the model's limit is {limit} (llava would cut off its end)",
                fix="give fewer frames, or a smaller budget",
            )
        prefill.call.state.given = embeds.shape[1]
        mask = rewritten["attention_mask"]
        self._waiting = _Waiting(prefill, embeds, rewritten["position_ids"], mask)
        return None, None, mask, given.get("past_key_values"), embeds, None

    def _embedded(self, ids: Tensor, rows: Tensor) -> Tensor:
        """Embeddings [B, S, D] of the reduced prompts: words from the table, the videos' places from ``rows``."""
        place = ids == self._adapter.video_token_id
        embeds = self._adapter.core.embed_tokens(ids.masked_fill(place, 0))
        return embeds.masked_scatter(place[..., None].to(embeds.device), rows.to(embeds))

    def _before_core(self, core: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        check_not_training(core)
        self._enter_thread()
        kwargs = named(core.forward, args) | kwargs
        self._decoder.call = self._prefill = None
        self.settle()
        cache, embeds = kwargs.get("past_key_values"), kwargs.get("inputs_embeds")
        if cache is not None and cache.get_seq_length() > 0:
            state = recall(cache)
            if state is not None:
                # this release does not count on: positions come from the mask, behind the prompt's last
                kwargs |= {"position_ids": None, "cache_position": None}
                self._decoder.call = continue_prompt(kwargs, state)
            return (), kwargs
        forget(cache)
        waiting, self._waiting = self._waiting, None
        if waiting is None or embeds is None:
            return (), kwargs
        times = len(embeds) // len(waiting.embeds)
        if embeds.shape != (times * len(waiting.embeds), *waiting.embeds.shape[1:]):
            raise BadUsage(
                "other embeddings reached the model than those of the prompt", fix="call generate(...) again"
            )
        prefill = _repeated(waiting.prefill, times) if times > 1 else waiting.prefill
        mask = waiting.mask
        kwargs |= {
            "position_ids": waiting.positions.repeat_interleave(times, 0),
            "attention_mask": None if mask is None else mask.repeat_interleave(times, 0),
            "cache_position": None,
        }
        self._prefill, self._decoder.call = prefill, prefill.call
        return (), kwargs


def _repeated(prefill: Prefill, times: int) -> Prefill:
    """The prefill of a batch in which every prompt stands ``times`` times in a row, as beam search repeats it."""

    def each(values: list) -> list:
        return [value for value in values for _ in range(times)]

    def rows(values: Tensor) -> Tensor:
        return values.repeat_interleave(times, 0)

    call, old = prefill.call, prefill.call.state
    base = View(rows(old.base.ids), rows(old.base.positions), tuple(each(list(old.base.pads))))
    state = PromptState(
        given=old.given,
        caller_shift=rows(old.caller_shift),
        next_position=rows(old.next_position),
        base=base,
        kinds=each(old.kinds),
        views=[base] * len(old.views),
    )
    again = Call(state, prefill=True, kinds=each(call.kinds), initial=each(call.initial), groups=each(call.groups))
    return Prefill(again, prefill.samples, times, prefill.started, prefill.device)
