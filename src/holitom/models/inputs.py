"""Frames and a question -> model inputs, and loading a model, without torchvision and without transformers' processor.

For LLaVA-OneVision, and LLaVA-Video in the same format; other families bring their own processor. Theirs cannot be
built without torchvision; this one needs the tokenizer, the folder's image preprocessing and the model's config."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoConfig, AutoTokenizer, LlavaOnevisionConfig, LlavaOnevisionForConditionalGeneration
from transformers.utils import cached_file

from holitom.errors import BadUsage, CannotRun, UnsupportedModel, first_line
from holitom.models import require_transformers
from holitom.models.llava_onevision import full_length

QWEN_PROMPT = (
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n{video}\n{question}<|im_end|>\n"
    "<|im_start|>assistant\n"
)
"""Conversation qwen_1_5 of LLaVA-NeXT (conversation.py), in which the releases ask LLaVA-OneVision and LLaVA-Video.
They never use the tokenizer's chat template: Qwen2's cannot take a video, and those of the ports write other text."""


@dataclass(frozen=True)
class VideoProcessor:
    """Tokenizer, image processor, config and conversation of one model folder or hub id. conversation: the prompt, with
    ``{video}`` and ``{question}`` in it."""

    tokenizer: Any
    image_processor: Any
    config: Any
    conversation: str = QWEN_PROMPT

    @classmethod
    def from_pretrained(cls, path: str | Path) -> VideoProcessor:
        """Resampling and normalisation as the folder has them for images; the size is the vision tower's. Raises
        UnsupportedModel for a folder that is no model of this family, or that lacks the files of the tokenizer or the
        preprocessing; CannotRun if the hub is needed and cannot be reached, or pillow (which resizes) is missing."""
        config = load_config(path)
        side = config.vision_config.image_size
        try:
            from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

            tokenizer = AutoTokenizer.from_pretrained(str(path), padding_side="left")
            file = cached_file(str(path), "preprocessor_config.json", _raise_exceptions_for_missing_entries=False)
            if file:
                settings = json.loads(Path(file).read_text(encoding="utf-8"))
            else:  # inside processor_config.json, where transformers 5 puts it
                settings, _ = SiglipImageProcessorPil.get_image_processor_dict(str(path))
            settings |= {"size": {"height": side, "width": side}, "do_convert_rgb": True}
            return cls(tokenizer, SiglipImageProcessorPil(**settings), config, _conversation(tokenizer))
        except (ImportError, OSError, ValueError) as error:
            raise _cannot_load(path, error) from error

    @property
    def video_token(self) -> str:
        return self.tokenizer.convert_ids_to_tokens(self.config.video_token_id)

    def __call__(self, frames: np.ndarray, question: str) -> dict[str, Any]:
        """One video and one question -> input_ids and attention_mask [1, S], pixel_values_videos [1, T, 3, H, W]."""
        return self.batch([(frames, question)])

    def batch(self, items: Sequence[tuple[np.ndarray, str]]) -> dict[str, Any]:
        """Several videos with a question each. pixel_values_videos becomes a list of [T, 3, H, W] if the videos differ
        in length, which works inside ``reduce_tokens`` only."""
        videos = [self.pixels(frames) for frames, _ in items]
        inputs: dict[str, Any] = self.prompts([question for _, question in items], [len(video) for video in videos])
        same = len({len(video) for video in videos}) == 1
        return inputs | {"pixel_values_videos": torch.stack(videos) if same else videos}

    def prompts(self, questions: Sequence[str], frames: Sequence[int] | None = None) -> dict[str, Tensor]:
        """Questions -> input_ids and attention_mask [B, S], padded on the left. frames: per video, for as many
        placeholders as the stock model needs; None: one each, which is all that ``run.provide`` needs."""
        counts = [1] * len(questions) if frames is None else [full_length(self.config, t) for t in frames]
        rows = [self._ids(question, count) for question, count in zip(questions, counts, strict=True)]
        left = {"batch_first": True, "padding_side": "left"}
        return {
            "input_ids": pad_sequence(rows, padding_value=self.tokenizer.pad_token_id or 0, **left),
            "attention_mask": pad_sequence([torch.ones_like(row) for row in rows], **left),
        }

    def pixels(self, frames: np.ndarray | Tensor) -> Tensor:
        """uint8 frames [T, H, W, 3] -> normalised pixels [T, 3, size, size], float32."""
        frames = np.asarray(frames)
        if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != np.uint8 or not len(frames):
            what = f"frames of shape {frames.shape} and type {frames.dtype}"
            raise BadUsage(what, fix="give uint8 [T, H, W, 3], at least one")
        return self.image_processor(list(frames), return_tensors="pt")["pixel_values"]

    def text(self, question: str) -> str:
        """The prompt with one video token in it."""
        if self.video_token in question:
            raise BadUsage(f"the question contains {self.video_token}", fix="leave the video token out of the text")
        before, after = self.conversation.split("{question}")
        return before.replace("{video}", self.video_token) + question + after

    def _ids(self, question: str, placeholders: int) -> Tensor:
        video = self.config.video_token_id
        ids = self.tokenizer(self.text(question), add_special_tokens=False)["input_ids"]
        at = ids.index(video)
        return torch.tensor(ids[:at] + [video] * placeholders + ids[at + 1 :])


def _conversation(tokenizer: Any) -> str:
    """QWEN_PROMPT where the tokenizer has its marks and words; else (a toy's few words, another language model) what
    its own chat template says of a video and a question."""
    ids = tokenizer(QWEN_PROMPT.replace("{video}", "").replace("{question}", ""), add_special_tokens=False)["input_ids"]
    marks = tokenizer.convert_tokens_to_ids(["<|im_start|>", "<|im_end|>"])
    if set(marks) <= set(ids) and tokenizer.unk_token_id not in ids:
        return QWEN_PROMPT
    turn = {"role": "user", "content": [{"type": "video"}, {"type": "text", "text": "{question}"}]}
    text = tokenizer.apply_chat_template([turn], tokenize=False, add_generation_prompt=True)
    if "<video>" not in text:
        what = "the tokenizer can neither spell the conversation qwen_1_5, nor has it a chat template with a video"
        raise UnsupportedModel(what, fix="use the model's own tokenizer, or give VideoProcessor a conversation")
    return text.replace("<video>", "{video}")


def load_config(path: str | Path) -> Any:
    """The config of a model that inputs can be prepared for; UnsupportedModel or CannotRun otherwise."""
    require_transformers()
    try:
        stored, _ = LlavaOnevisionConfig.get_config_dict(str(path))
        if "mm_vision_tower" in stored:
            raise UnsupportedModel(
                f"{path} is a checkpoint of the original LLaVA-NeXT repository ({stored.get('architectures')})",
                fix=f"convert it once: ./reproduce.sh convert --from {path} --to FOLDER (a downloaded folder)",
            )
        config = AutoConfig.from_pretrained(str(path))
    except (OSError, ValueError) as error:
        raise _cannot_load(path, error) from error
    if config.model_type != "llava_onevision":
        raise UnsupportedModel(
            f"{path} is a {config.model_type!r} model, and inputs are prepared for 'llava_onevision' models only",
            fix="load and feed the other families of docs/adapters.md by their own classes; reduce_tokens takes them",
        )
    return config


def load_model(
    path: str | Path,
    dtype: str | torch.dtype | None = "auto",
    device: str | torch.device | None = None,
    device_map: str | Mapping[str, Any] | None = None,
    attention: str | None = None,
) -> LlavaOnevisionForConditionalGeneration:
    """A model in eval mode.

    dtype "auto" or None: as stored. device None: the first GPU if there is one. device_map ("auto", or a dict of module
    names to devices, "cpu" and "disk"): spread over several devices by accelerate, whatever ``device`` is. attention:
    "sdpa", "eager", "flash_attention_2" (None: the library's choice). Raises UnsupportedModel (no model folder, another
    family, broken weights) and CannotRun (no hub, a package that is missing).
    """
    load_config(path)
    chosen = {"dtype": dtype or "auto", "attn_implementation": attention, "device_map": device_map}
    try:
        model = LlavaOnevisionForConditionalGeneration.from_pretrained(str(path), **chosen)
    except (ImportError, OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise _cannot_load(path, error) from error
    if device_map is None:
        model.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    return model.eval()


def _cannot_load(path: str | Path, error: Exception) -> CannotRun:
    why = first_line(error)
    if isinstance(error, ImportError):
        return CannotRun(f"{path} does not load with what is installed ({why})", fix="install or change what is named")
    if Path(path).exists():
        what = f"{path} does not load ({why})"
        return UnsupportedModel(what, fix="give a complete Hugging Face folder, or change what is named")
    what = f"{path} is no local folder, and it cannot be fetched from the model hub ({why})"
    return CannotRun(what, fix="check the spelling, or copy the checkpoint here and give the folder's path")
