"""The reduced prompt of one video and question as embeddings: everything before the language model, and nothing of it.

An engine that takes prompt embeddings (vLLM ``prompt_embeds``, SGLang ``input_embeds``) continues from them with its
own parallelism. Stages inside the decoder cannot travel in this form and are refused.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from holitom.attach import reduce_tokens
from holitom.errors import BadUsage, CannotRun
from holitom.models import adapter_for
from holitom.types import Reduction

FORMAT = "holitom prompt embeddings 1"


@dataclass(frozen=True)
class PromptEmbeds:
    """embeds: [S, D] in the model's dtype; position_ids: [S]; provenance: plain values, what they were made from."""

    embeds: Float[Tensor, "tokens dim"]
    position_ids: Int[Tensor, " tokens"]
    provenance: dict[str, Any] = field(default_factory=dict)

    @property
    def contiguous(self) -> bool:
        """Positions count 0, 1, 2, ..., as engines number a prompt of embeddings themselves."""
        return torch.equal(self.position_ids.cpu(), torch.arange(len(self.position_ids)))


class _Reached(Exception):
    """The language model is about to run: its arguments are what was wanted."""


def check_travels(reduction: Reduction) -> None:
    """BadUsage for stages inside the decoder, which the engine runs."""
    if reduction.inner or reduction.decode is not None:
        named = ", ".join([f"inner stage at layer {s.layer}" for s in reduction.inner])
        raise BadUsage(
            f"{reduction.name} acts inside the language model ({named or 'while generating'}), which the engine runs",
            fix="export its outer stage alone, or run it here with reduce_tokens",
        )


@torch.inference_mode()
def prompt_embeds(model: nn.Module, inputs: Mapping[str, Any], reduction: Reduction) -> PromptEmbeds:
    """What the language model of ``model`` gets for one prompt with a video under ``reduction``.

    inputs: as for ``model.generate``, batch 1 (``VideoProcessor(frames, question)``). The language model is not run.
    BadUsage: stages inside the decoder, several prompts, or positions of several axes (Qwen2.5-VL), which no engine
    takes beside embeddings.
    """
    check_travels(reduction)
    if len(inputs["input_ids"]) != 1:
        raise BadUsage(f"{len(inputs['input_ids'])} prompts at once", fix="export one prompt per file")
    text, found = adapter_for(model).text, {}

    def reached(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        found.update(kwargs)
        raise _Reached

    with reduce_tokens(model, reduction=reduction) as run:
        handle = text.register_forward_pre_hook(reached, with_kwargs=True)
        try:
            model(**inputs)
        except _Reached:
            pass
        finally:
            handle.remove()
        calls, removed = dict(run.stats.calls), dict(run.stats.removed)
    if reduction.outer is not None and reduction.budget < 1 and not removed.get("outer"):
        raise CannotRun(
            f"{reduction.name} kept every token (it ran {calls.get('outer', 0)} times)",
            fix="ask for fewer tokens, or give a longer video",
        )
    embeds, positions = found["inputs_embeds"][0], found.get("position_ids")
    if positions is None:
        positions = torch.arange(len(embeds))[None]
    if positions.ndim != 2:
        raise BadUsage("this family numbers positions on several axes", fix="run it here with reduce_tokens")
    return PromptEmbeds(embeds.cpu(), positions[0].cpu(), {"removed_tokens": removed.get("outer", 0)})


def save(prompt: PromptEmbeds, path: Path | str) -> Path:
    """Write ``prompt_embeds``, ``position_ids`` and the provenance (in the file's metadata, as JSON), the whole file or
    nothing. CannotRun when it cannot be written."""
    path = Path(path)
    tensors = {"prompt_embeds": prompt.embeds.contiguous(), "position_ids": prompt.position_ids.contiguous()}
    partial = path.with_name(path.name + ".partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(tensors, partial, {"format": FORMAT, "provenance": json.dumps(prompt.provenance, default=str)})
        partial.replace(path)
    except BaseException as error:
        with suppress(OSError):
            partial.unlink()
        if isinstance(error, (OSError, SafetensorError)):
            raise cannot_write(path, error) from error
        raise
    return path


def cannot_write(path: Path, error: Exception) -> CannotRun:
    """In the kit's words; safetensors' own error keeps the system's only as text."""
    if any(sign in str(error) for sign in ("No space left", "uota exceeded")):
        return CannotRun(f"the disk is full: {path} could not be written", fix="free some space and run it again")
    return CannotRun(f"{path} cannot be written ({error})", fix="name a place where you may write")


def load(path: Path | str) -> PromptEmbeds:
    """Read a file of ``save``. CannotRun for anything else."""
    try:
        with safe_open(str(path), "pt") as file:
            stored = file.metadata() or {}
            if stored.get("format") != FORMAT:
                raise CannotRun(f"{path} holds no prompt embeddings", fix="make it with ./reproduce.sh export-embeds")
            tensors = {name: file.get_tensor(name) for name in ("prompt_embeds", "position_ids")}
    except (OSError, SafetensorError) as error:
        raise CannotRun(f"{path} cannot be read ({error})", fix="make it with ./reproduce.sh export-embeds") from error
    return PromptEmbeds(tensors["prompt_embeds"], tensors["position_ids"], json.loads(stored["provenance"]))
