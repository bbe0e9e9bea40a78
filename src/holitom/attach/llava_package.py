"""The ``with`` block on a model of the original llava package, which turns prompts into embeddings before generating.

Its ``prepare_inputs_labels_for_multimodal`` is where videos enter the prompt: here they enter reduced. As it generates
from embeddings, it returns new tokens alone, and what reads ids while generating never sees the prompt."""

from collections.abc import Callable
from typing import Any

from holitom.attach.rows import cache_of
from holitom.attach.session import Run, check_generation
from holitom.errors import BadUsage, UnsupportedModel


class PackageRun(Run):
    """``reduce_tokens`` on ``LlavaQwenForCausalLM``: every stage, greedy, sampling and beams, batches."""

    def install(self) -> None:
        if any(stage.prune_past for stage in self.reduction.inner):
            what = "stages that prune caches need transformers 5, and the llava package has 4.51"
            raise UnsupportedModel(what, fix="leave them out, or convert the checkpoint")
        super().install()
        self._override(self._host, "prepare_inputs_labels_for_multimodal", self._prepare)

    def _generate(self, original: Callable[..., Any], given: dict[str, Any]) -> Any:
        check_generation(self._host, given)
        if self._provided is not None and given.get("images") is None:
            given |= {"images": [], "modalities": ["video"] * len(self._provided)}
        try:
            return original(**given)
        finally:
            self._waiting = None

    def _prepare(self, original: Callable[..., Any], given: dict[str, Any]) -> tuple:
        """In place of the package's own: (None, position_ids, mask, cache, embeddings, labels) of the reduced prompt;
        prompts without a video pass unchanged."""
        images, kinds = given.get("images") or None, given.get("modalities", ["image"])
        kinds = [kinds] if isinstance(kinds, str) else list(kinds)
        found = {name: given.get(name) for name in ("input_ids", "attention_mask")} | {"pixel_values_videos": images}
        if (images is not None and "video" not in kinds) or not self._has_video(found):
            return original(**given)
        if images is not None and (len(kinds) != len(images) or set(kinds) != {"video"}):
            what = f"{len(images)} images of the modalities {kinds}"
            raise BadUsage(what, fix="give videos alone, and modalities=['video'] * number of videos")
        ours, self._waiting = self._spliced(found)
        return None, ours["position_ids"], ours["attention_mask"], cache_of(given), ours["inputs_embeds"], None
