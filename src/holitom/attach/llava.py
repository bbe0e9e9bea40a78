"""The ``with`` block on a model of the original llava package, which turns prompts into embeddings before generating.

Its ``prepare_inputs_labels_for_multimodal`` is where videos enter the prompt: here they enter reduced. As the package
generates from embeddings, it returns new tokens alone, and what reads ids while generating never sees the prompt."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from holitom.attach.checks import check_generation
from holitom.attach.session import Run, named
from holitom.errors import BadUsage, UnsupportedModel


class PackageRun(Run):
    """``reduce_tokens`` on ``LlavaQwenForCausalLM``: outer and inner stages, greedy, sampling and beams, batches."""

    def install(self) -> None:
        if self.reduction.decode is not None:
            raise UnsupportedModel(
                "decode stages need the cache layers of transformers 5, and the llava package has transformers 4.51",
                fix="leave the decode stage out, or convert the checkpoint",
            )
        super().install()
        self._override(self._host, "prepare_inputs_labels_for_multimodal", self._prepare)

    def _generate(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        with self._alone():
            given = named(original, args) | kwargs
            check_generation(self._host, given)
            if self._provided is not None:
                if given.get("images") is not None:
                    raise BadUsage("features were provided, and images are given too", fix="give one of the two")
                given |= {"images": [], "modalities": ["video"] * len(self._provided.videos)}
            try:
                return original(**given)
            finally:
                self._waiting = None

    def _prepare(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> tuple:
        """In place of the package's own: (None, position_ids, mask, cache, embeddings, labels) of the reduced prompt;
        prompts without a video pass unchanged."""
        with self._alone():
            given = named(original, args) | kwargs
            ids, images = given["input_ids"], given.get("images")
            modalities = given.get("modalities", ["image"])
            modalities = [modalities] if isinstance(modalities, str) else list(modalities)
            if ids.shape[1] == 1 or (self._provided is None and (images is None or "video" not in modalities)):
                return original(**given)
            if self._provided is None and (len(modalities) != len(images) or set(modalities) != {"video"}):
                raise BadUsage(
                    f"{len(images)} images of the modalities {modalities}",
                    fix="give videos alone, and modalities=['video'] * number of videos",
                )
            found = {"input_ids": ids, "attention_mask": given.get("attention_mask")}
            found["pixel_values_videos"] = images if self._provided is None else None
            self._has_video(found)
            embeds, self._waiting = self._spliced(found)
            limit = getattr(self._adapter.config, "tokenizer_model_max_length", None)
            if limit is not None and embeds.shape[1] > limit:
                raise BadUsage(
                    f"a prompt of {embeds.shape[1]} tokens, and the model's limit is {limit} (llava would cut its end)",
                    fix="give fewer frames, or a smaller budget",
                )
            return None, self._waiting.positions, self._waiting.mask, given.get("past_key_values"), embeds, None
