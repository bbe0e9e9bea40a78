"""The papers' model as a shape with random weights, or the shipped tiny one; and what they are shown.

Sizes are those of the published config (SigLIP so400m at 384 pixels, Qwen2-7B). A random model answers nothing, and
costs what the trained one costs as long as no stage looks at the features; for those that do, the features are drawn.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForImageTextToText, LlavaOnevisionConfig, Qwen2Config, SiglipVisionConfig

from holitom.errors import CannotRun
from holitom.models.inputs import load_config, load_model
from holitom.types import VideoFeatures
from holitom_repro import paths

SIGLIP = {"hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 26, "num_attention_heads": 16}
QWEN2 = {
    "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28, "num_attention_heads": 28,
    "num_key_value_heads": 4,
}  # fmt: skip
CONTENT = (
    "drawn features: a new scene every 8 frames, in which half of the cells stay (cosine 0.99 from frame to frame) and "
    "the others are new in every frame; the tower runs on noise and is timed, then these replace its output"
)
WORDS = (14, 26)  # before and after the video: about LLaVA-OneVision's evaluation prompt and a short question


@dataclass(frozen=True)
class Model:
    """A model to time: "ov-7b", LLaVA-OneVision-7B's shape with random weights, or "tiny", the shipped one. device:
    "cpu" or "cuda"; attention: "sdpa", "flash_attention_2" or "eager". ``load`` gives the same with its ``module``;
    CannotRun without such attention."""

    name: str
    device: str = "cpu"
    dtype: str = "bfloat16"
    attention: str = "sdpa"
    module: Any = field(default=None, compare=False, repr=False)

    @cached_property
    def config(self) -> Any:
        """The transformers config, of a random model made here."""
        if self.name == "tiny":
            return load_config(paths.data("tiny", "onevision"))
        rope = {"rope_theta": 1000000.0, "rope_type": "default"}
        return LlavaOnevisionConfig(
            vision_config=SiglipVisionConfig(**SIGLIP, image_size=384, patch_size=14, vision_use_head=False),
            text_config=Qwen2Config(**QWEN2, vocab_size=152064, rope_parameters=rope, tie_word_embeddings=False),
            image_token_index=151646,
            video_token_index=151647,
            vision_feature_layer=-1,
            vision_feature_select_strategy="full",
            tie_word_embeddings=False,
        )

    @property
    def depth(self) -> int:
        """Decoder layers."""
        return self.config.text_config.num_hidden_layers

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of a frame after pooling."""
        side = -(-(self.config.vision_config.image_size // self.config.vision_config.patch_size) // 2)
        return side, side

    def facts(self) -> dict[str, Any]:
        """What a record says about the model and where it runs."""
        return {
            "tier": "tiny" if self.name == "tiny" else "speed",
            "model": self.name,
            "layers": self.depth,
            "full_layers": self.depth,
            "device": "CPU" if self.device == "cpu" else torch.cuda.get_device_name(),
            "dtype": self.dtype,
            "attention": self.attention,
        }

    def load(self) -> Model:
        """Random weights are made on the device, from a fixed seed."""
        if self.name == "tiny":
            module = load_model(paths.data("tiny", "onevision"), self.dtype, self.device)
        else:
            with torch.device(self.device), torch.random.fork_rng():
                torch.manual_seed(0)
                module = AutoModelForImageTextToText.from_config(self.config, dtype=getattr(torch, self.dtype)).eval()
        try:
            module.set_attn_implementation(self.attention)
        except (ImportError, ValueError) as error:
            raise CannotRun(f"no {self.attention} attention here ({error})", fix="use sdpa") from error
        return replace(self, module=module)


def make_inputs(model: Model, frames: int, batch: int = 1) -> tuple[Tensor, Tensor, list[VideoFeatures]]:
    """Noise as pixels [B, T, 3, H, W]; prompts [B, S] of random words, with as many placeholders in the middle as the
    unreduced model needs; and a drawn video for each."""
    where: dict[str, Any] = {"device": model.device, "dtype": getattr(torch, model.dtype)}
    config, (rows, columns) = model.config, model.grid
    video = torch.full((batch, frames * rows * columns + 1), config.video_token_id)  # one for the newline
    high, draw = min(2048, config.text_config.vocab_size), torch.Generator().manual_seed(0)
    before, after = (torch.randint(8, high, (batch, words), generator=draw) for words in WORDS)
    dim, side = config.text_config.hidden_size, config.vision_config.image_size
    features = [drawn_video(frames, model.grid, dim, seed=sample, **where) for sample in range(batch)]
    ids = torch.cat([before, video, after], dim=1).to(model.device)
    return torch.randn(batch, frames, 3, side, side, **where), ids, features


def drawn_video(
    frames: int, grid: tuple[int, int], dim: int, *, seed: int = 0, dtype: Any = torch.float32, device: Any = "cpu"
) -> VideoFeatures:
    """Features [T, N, D] of normal numbers as ``CONTENT`` says, with saliency (a softmax of normals over a frame's
    cells), keys (the tokens' first 72 channels, the width of SigLIP's heads) and frame_embed (their mean)."""
    draw, cells = torch.Generator(device).manual_seed(seed), grid[0] * grid[1]
    tokens = torch.empty(frames, cells, dim, dtype=dtype, device=device)
    for part in tokens.split(8):
        base = torch.randn(cells, dim, generator=draw, device=device)
        still = (torch.rand(cells, generator=draw, device=device).argsort() < cells // 2)[:, None]
        news = torch.randn(part.shape, generator=draw, device=device)
        part.copy_(torch.where(still, base + 0.1 * news, news))
    saliency = torch.randn(frames, cells, generator=draw, device=device).softmax(-1)
    return VideoFeatures(tokens, grid, saliency, tokens[..., :72].clone(), tokens.mean(1, dtype=torch.float32))
