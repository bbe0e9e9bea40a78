"""The language model of a LLaVA-OneVision as a checkpoint of its own, which is all that an engine needs to continue."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from holitom.errors import BadUsage
from holitom_repro.refusals import folder_to_write
from holitom_repro.serving.embeds import cannot_write


def export(model: Any, tokenizer: Any, folder: Path | str) -> Path:
    """Write the text model, its output head and the tokenizer as a plain causal language model (Qwen2ForCausalLM).

    The weights are those of ``model``, in its dtype. BadUsage when the folder is there already and not empty.
    """
    from transformers import AutoModelForCausalLM

    folder = check_new(Path(folder))
    config = model.config.text_config
    alone = AutoModelForCausalLM.from_config(config, dtype=model.dtype)
    alone.model.load_state_dict(model.model.language_model.state_dict())
    alone.lm_head.load_state_dict(model.lm_head.state_dict())
    alone.generation_config = model.generation_config
    try:
        alone.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    except (OSError, SafetensorError) as error:
        raise cannot_write(folder, error) from error
    return folder


def check_new(folder: Path) -> Path:
    """The folder, if it can be made or is empty; BadUsage otherwise."""
    if folder_to_write(folder, "--language-model").exists() and any(folder.iterdir()):
        raise BadUsage(f"{folder} is there already", fix="name a new folder")
    return folder
