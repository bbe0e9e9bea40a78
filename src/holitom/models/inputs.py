"""Frames and a question -> model inputs, and loading a model, without torchvision and without transformers' processor.

For LLaVA-OneVision, and LLaVA-Video in the same format; other families bring their own processor. Theirs cannot be
built without torchvision; this one needs the tokenizer, the folder's image preprocessing and the model's config."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoConfig, AutoTokenizer, LlavaOnevisionForConditionalGeneration
from transformers.utils import cached_file

from holitom.errors import BadUsage, BadVideo, CannotRun, UnsupportedModel, first_line
from holitom.models import require_transformers
from holitom.models.llava_onevision import full_length

QWEN_PROMPT = (
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n{video}\n{question}<|im_end|>\n"
    "<|im_start|>assistant\n"
)
"""Conversation qwen_1_5 of LLaVA-NeXT (conversation.py), in which the releases ask LLaVA-OneVision and LLaVA-Video.
They never use the tokenizer's chat template: Qwen2's cannot take a video, and those of the ports write other text."""

_SETTINGS = ("size", "resample", "do_resize", "do_rescale", "rescale_factor", "do_normalize", "image_mean", "image_std")
_DTYPES = {"auto": "auto", "float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


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
        """Raises UnsupportedModel for a folder that is no model of this family, CannotRun if the hub is needed and
        cannot be reached, or pillow (which resizes pictures) is missing."""
        config = load_config(path)
        try:
            from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

            tokenizer = AutoTokenizer.from_pretrained(str(path), padding_side="left")
            image_processor = SiglipImageProcessorPil(**_image_settings(path, config))
        except ImportError as error:
            raise CannotRun(f"pictures cannot be resized ({first_line(error)})", fix="pip install pillow") from error
        except (OSError, ValueError) as error:
            what = f"{path} has no tokenizer that loads ({first_line(error)})"
            raise CannotRun(what, fix="add tokenizer.json and its config") from error
        return cls(tokenizer, image_processor, config, _conversation(tokenizer))

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
        if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != np.uint8:
            raise BadUsage(f"frames of shape {frames.shape} and type {frames.dtype}", fix="give uint8 [T, H, W, 3]")
        if not len(frames):
            raise BadVideo("the video has no frames", fix="give a video with at least one frame")
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
    if set(marks) <= set(ids) and (tokenizer.unk_token_id is None or tokenizer.unk_token_id not in ids):
        return QWEN_PROMPT
    turn = {"role": "user", "content": [{"type": "video"}, {"type": "text", "text": "{question}"}]}
    try:
        text = tokenizer.apply_chat_template([turn], tokenize=False, add_generation_prompt=True)
    except Exception:  # none at all, or one for text alone: a template raises what it likes
        text = ""
    if text.count("<video>") != 1 or text.count("{question}") != 1 or "'type'" in text:
        what = "the tokenizer can neither spell the conversation qwen_1_5, nor has it a chat template with a video"
        raise UnsupportedModel(what, fix="use the model's own tokenizer, or give VideoProcessor a conversation")
    return text.replace("<video>", "{video}")


def load_config(path: str | Path) -> Any:
    """The config of a model that inputs can be prepared for; UnsupportedModel or CannotRun otherwise."""
    if Path(path).is_dir() and not (Path(path) / "config.json").is_file():
        raise UnsupportedModel(f"{path} is not a model folder: it has no config.json", fix="give a Hugging Face folder")
    require_transformers()
    try:
        stored = _read_json(path, "config.json")
        if "mm_vision_tower" in stored:
            raise UnsupportedModel(
                f"{path} is a checkpoint of the original LLaVA-NeXT repository ({stored.get('architectures')})",
                fix=f"convert it once: python -m holitom_repro convert --from {path} --to FOLDER (a downloaded folder)",
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
    names to devices, "cpu" and "disk"): spread over several devices by accelerate, instead of ``device``. attention:
    "sdpa", "eager", "flash_attention_2" (None: the library's choice). Raises UnsupportedModel (no model folder, another
    family, broken weights), CannotRun (no hub, no GPU, no accelerate) and BadUsage.
    """
    load_config(path)
    if device is not None and device_map is not None:
        raise BadUsage("a device and a device_map are given", fix="give one of the two")
    if device_map is not None and find_spec("accelerate") is None:
        raise CannotRun("a device_map needs accelerate, which is not installed", fix="pip install accelerate")
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if device.type == "cuda" and not torch.cuda.is_available():
        raise CannotRun(f"device {device} was asked for, and there is no CUDA device", fix="use device='cpu'")
    if isinstance(dtype, str) and dtype not in _DTYPES:
        raise BadUsage(f"dtype {dtype!r} is not known", fix=f"use {', '.join(_DTYPES)}")
    chosen = {"dtype": _DTYPES.get(dtype or "auto", dtype), "attn_implementation": attention, "device_map": device_map}
    try:
        model = LlavaOnevisionForConditionalGeneration.from_pretrained(str(path), **chosen)
    except ImportError as error:
        raise CannotRun(f"attention {attention!r} cannot be had ({first_line(error)})", fix="use 'sdpa'") from error
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise _cannot_load(path, error) from error
    return (model if device_map is not None else model.to(device)).eval()


def _cannot_load(path: str | Path, error: Exception) -> CannotRun:
    why = first_line(error)
    if Path(path).exists():
        return UnsupportedModel(f"{path} does not load ({why})", fix="give a complete Hugging Face folder")
    what = f"{path} is no local folder, and it cannot be fetched from the model hub ({why})"
    return CannotRun(what, fix="check the spelling, or copy the checkpoint here and give the folder's path")


def _image_settings(path: str | Path, config: Any) -> dict[str, Any]:
    """Resampling and normalisation from the folder's preprocessing files; the size is the vision tower's."""
    whole, plain = _read_json(path, "processor_config.json"), _read_json(path, "preprocessor_config.json")
    video = _read_json(path, "video_preprocessor_config.json") or whole.get("video_processor") or {}
    places = [video, plain] if "image_grid_pinpoints" in plain else [plain, video]  # pinpoints are for images alone
    stored = next((place for place in [*places, whole.get("image_processor") or {}] if "image_mean" in place), None)
    if stored is None:
        what = f"{path} says nothing about image preprocessing"
        raise UnsupportedModel(what, fix="add its preprocessor_config.json with image_mean")
    side = config.vision_config.image_size
    settings = {name: stored[name] for name in _SETTINGS if stored.get(name) is not None}
    return settings | {"size": {"height": side, "width": side}, "do_convert_rgb": True}


def _read_json(path: str | Path, name: str) -> dict[str, Any]:
    try:
        found = cached_file(str(path), name, _raise_exceptions_for_missing_entries=False)
    except OSError:
        return {}
    return json.loads(Path(found).read_text(encoding="utf-8")) if found else {}
