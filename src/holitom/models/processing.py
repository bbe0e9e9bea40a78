"""Frames and a question -> model inputs, and loading a model, without torchvision and without transformers' processor.

The processor class of LLaVA-OneVision cannot be built without torchvision; this one needs the tokenizer, the numbers of
the folder's image preprocessing and the model's config. Frames come decoded, as uint8 arrays [T, H, W, 3].
"""

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
from transformers import AutoConfig, AutoTokenizer, LlavaOnevisionForConditionalGeneration
from transformers.utils import cached_file

from holitom.errors import BadUsage, BadVideo, CannotRun, UnsupportedModel
from holitom.models.llava_onevision import full_length
from holitom.models.original import is_original
from holitom.versions import require_transformers

require_transformers()  # before an import that older releases do not have

from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil  # noqa: E402

QWEN_PROMPT = (
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n{video}\n{question}<|im_end|>\n"
    "<|im_start|>assistant\n"
)
"""The prompt of LLaVA-OneVision's evaluation (conversation qwen_1_5), for tokenizers without a chat template."""

FAMILY = "llava_onevision"
"""``config.model_type`` of the models that this module prepares inputs for; others bring their own processor."""

_SETTINGS = ("size", "resample", "do_resize", "do_rescale", "rescale_factor", "do_normalize", "image_mean", "image_std")
_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class VideoProcessor:
    """Tokenizer, image processor and config of one model folder or hub id."""

    tokenizer: Any
    image_processor: SiglipImageProcessorPil
    config: Any

    @classmethod
    def from_pretrained(cls, path: str | Path) -> VideoProcessor:
        """Raises UnsupportedModel for a folder that is no model of a known family, CannotRun if the hub is needed and
        cannot be reached."""
        config = load_config(path)
        try:
            tokenizer = AutoTokenizer.from_pretrained(str(path), padding_side="left")
        except (OSError, ValueError) as error:
            raise CannotRun(
                f"{path} has no tokenizer that loads ({_first_line(error)})", fix="add tokenizer.json and its config"
            ) from error
        return cls(tokenizer, SiglipImageProcessorPil(**_image_settings(path, config)), config)

    @property
    def video_token(self) -> str:
        return self.tokenizer.convert_ids_to_tokens(self.config.video_token_id)

    def __call__(self, frames: np.ndarray, question: str) -> dict[str, Any]:
        """One video and one question -> input_ids and attention_mask [1, S], pixel_values_videos [1, T, 3, H, W]."""
        return self.batch([(frames, question)])

    def batch(self, items: Sequence[tuple[np.ndarray, str]]) -> dict[str, Any]:
        """Several videos with a question each, prompts padded on the left.

        pixel_values_videos is a tensor [B, T, 3, H, W], or a list of [T, 3, H, W] if the videos differ in length (that
        form works inside ``reduce_tokens`` only).
        """
        videos = [self.pixels(frames) for frames, _ in items]
        inputs: dict[str, Any] = self.prompts([question for _, question in items], [len(video) for video in videos])
        same = len({len(video) for video in videos}) == 1
        return inputs | {"pixel_values_videos": torch.stack(videos) if same else videos}

    def prompts(self, questions: Sequence[str], frames: Sequence[int] | None = None) -> dict[str, Tensor]:
        """Questions -> input_ids and attention_mask [B, S], padded on the left.

        frames: per video, for as many placeholders as the stock model needs; None: one placeholder each, which is all
        that ``reduce_tokens`` needs when features are given to ``run.provide``.
        """
        counts = [1] * len(questions) if frames is None else [full_length(self.config, t) for t in frames]
        rows = [self._ids(question, count) for question, count in zip(questions, counts, strict=True)]
        width = max(map(len, rows), default=0)
        pad = self.tokenizer.pad_token_id
        if pad is None:
            pad = self.tokenizer.eos_token_id or 0
        ids = torch.tensor([[pad] * (width - len(row)) + row for row in rows])
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
        return {"input_ids": ids, "attention_mask": mask}

    def pixels(self, frames: np.ndarray | Tensor) -> Tensor:
        """uint8 frames [T, H, W, 3] -> normalised pixels [T, 3, size, size], float32."""
        frames = np.asarray(frames)
        if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != np.uint8:
            raise BadUsage(
                f"frames of shape {list(frames.shape)} and type {frames.dtype}", fix="give uint8 [T, H, W, 3]"
            )
        if not len(frames):
            raise BadVideo("the video has no frames", fix="give a video with at least one frame")
        return self.image_processor(list(frames), return_tensors="pt")["pixel_values"]

    def text(self, question: str) -> str:
        """The prompt with one video token in it: the tokenizer's chat template, or Qwen's literal one."""
        if self.video_token in question:
            raise BadUsage(f"the question contains {self.video_token}", fix="leave the video token out of the text")
        if getattr(self.tokenizer, "chat_template", None):
            content = [{"type": "video"}, {"type": "text", "text": question}]
            text = self.tokenizer.apply_chat_template(
                [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
            )
            # text-only templates of the base language model print the list, or leave the video out
            if text.count(self.video_token) == 1 and "'type'" not in text:
                return text
        return QWEN_PROMPT.format(video=self.video_token, question=question)

    def _ids(self, question: str, placeholders: int) -> list[int]:
        ids = self.tokenizer(self.text(question), add_special_tokens=False)["input_ids"]
        video = self.config.video_token_id
        if ids.count(video) != 1:
            raise UnsupportedModel(
                f"the tokenizer does not know {self.video_token} as one token of id {video}",
                fix="use the tokenizer that belongs to the model",
            )
        at = ids.index(video)
        return ids[:at] + [video] * placeholders + ids[at + 1 :]


def load_config(path: str | Path) -> Any:
    """The config of a model that reduction knows; UnsupportedModel or CannotRun otherwise."""
    folder = Path(path)
    if folder.is_dir() and not (folder / "config.json").is_file():
        raise UnsupportedModel(f"{path} is not a model folder: it has no config.json", fix="give a Hugging Face folder")
    try:
        stored = _read_json(path, "config.json")
        config = None if is_original(stored) else AutoConfig.from_pretrained(str(path))
    except (OSError, ValueError) as error:
        raise _cannot_load(path, error) from error
    if config is None:
        raise UnsupportedModel(
            f"{path} is a checkpoint in the format of the original LLaVA-NeXT repository "
            f"({', '.join(stored.get('architectures') or ['mm_vision_tower in its config'])})",
            fix=f"convert it once: python -m holitom_repro convert --from {path} --to FOLDER (a downloaded folder)",
        )
    if config.model_type != FAMILY:
        raise UnsupportedModel(
            f"{path} is a {config.model_type!r} model, and inputs are prepared for {FAMILY!r} models only",
            fix=f"give a {FAMILY} folder; reduce_tokens itself also takes the families of docs/adapters.md, loaded and "
            "fed by their own classes",
        )
    return config


def load_model(
    path: str | Path, dtype: str | torch.dtype | None = None, device: str | torch.device | None = None
) -> LlavaOnevisionForConditionalGeneration:
    """A model in eval mode. dtype "auto" or None: as stored; device None: the first GPU if there is one.

    Raises UnsupportedModel (not a model folder, a family without adapter) and CannotRun (hub, broken weights, no GPU).
    """
    load_config(path)
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if device.type == "cuda" and not torch.cuda.is_available():
        raise CannotRun(f"device {device} was asked for, and there is no CUDA device", fix="use device='cpu'")
    if isinstance(dtype, str) and dtype != "auto":
        if dtype not in _DTYPES:
            raise BadUsage(f"dtype {dtype!r} is not known", fix=f"use auto, {', '.join(_DTYPES)}")
        dtype = _DTYPES[dtype]
    try:
        model = LlavaOnevisionForConditionalGeneration.from_pretrained(str(path), dtype=dtype or "auto")
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise _cannot_load(path, error) from error
    return model.to(device).eval()


def _cannot_load(path: str | Path, error: Exception) -> CannotRun:
    if Path(path).exists():
        return UnsupportedModel(
            f"{path} does not load ({_first_line(error)})", fix="give a complete Hugging Face folder"
        )
    return CannotRun(
        f"{path} is no local folder, and it cannot be fetched from the model hub ({_first_line(error)})",
        fix="check the spelling; on a host without the hub, copy the checkpoint there and give the folder's path",
    )


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:160] if lines else type(error).__name__


def _image_settings(path: str | Path, config: Any) -> dict[str, Any]:
    """Resampling and normalisation from the folder's preprocessing files; the size is the vision tower's."""
    files = [
        ("video_preprocessor_config.json", None),
        ("processor_config.json", "video_processor"),
        ("preprocessor_config.json", None),
        ("processor_config.json", "image_processor"),
    ]
    stored: Mapping[str, Any] = {}
    for name, part in files:
        read = _read_json(path, name)
        stored = (read.get(part) or {}) if part else read
        if "image_mean" in stored:
            break
    else:
        raise UnsupportedModel(
            f"{path} says nothing about image preprocessing", fix="add its preprocessor_config.json with image_mean"
        )
    settings = {name: stored[name] for name in _SETTINGS if stored.get(name) is not None}
    side = config.vision_config.image_size
    return settings | {"size": {"height": side, "width": side}, "do_convert_rgb": True}


def _read_json(path: str | Path, name: str) -> dict[str, Any]:
    try:
        found = cached_file(str(path), name, _raise_exceptions_for_missing_entries=False)
    except OSError:
        return {}
    return json.loads(Path(found).read_text()) if found else {}
