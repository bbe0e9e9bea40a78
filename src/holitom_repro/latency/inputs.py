"""What a measurement is fed: pixels, a prompt, and features with stated similarities."""

from __future__ import annotations

import statistics
import time
from pathlib import Path
from typing import Any

import torch

from holitom_repro.latency.content import Similarity, drawn_video
from holitom_repro.latency.passes import Inputs
from holitom_repro.latency.shapes import Loaded
from holitom.models.llava_onevision import full_length, pooled_grid

TEXT_BEFORE, TEXT_AFTER = 14, 26
"""Words around the video: what the evaluation prompt of LLaVA-OneVision and a short question come to."""


def make_inputs(
    loaded: Loaded, frames: int, batch: int, similarity: Similarity | None, *, seed: int = 0, pixels: Any = None
) -> Inputs:
    """pixels [T, 3, H, W] of a real clip for every sample, or None: normal noise. similarity None: the tower's own
    features are used; else every sample gets a drawn video of its own."""
    config, device = loaded.config, loaded.device
    dtype = next(loaded.model.parameters()).dtype
    side = config.vision_config.image_size
    draw = torch.Generator(device).manual_seed(seed)
    if pixels is None:
        shown = torch.empty(batch, frames, 3, side, side, dtype=dtype, device=device).normal_(generator=draw)
    else:
        shown = pixels.to(device, dtype)[None].expand(batch, -1, -1, -1, -1).contiguous()
    features = None
    if similarity is not None:
        features = tuple(
            drawn_video(
                similarity,
                frames,
                pooled_grid(config),
                config.text_config.hidden_size,
                seed=seed + 1 + sample,
                dtype=dtype,
                device=device,
                requires=("saliency", "keys", "frame_embed"),
            )
            for sample in range(batch)
        )
    return Inputs(shown, prompt_ids(config, frames, batch, seed).to(device), features)


def prompt_ids(config: Any, frames: int, batch: int, seed: int = 0) -> torch.Tensor:
    """Random words around the placeholders of one video [B, S], on the CPU."""
    special = {config.image_token_id, config.video_token_id}
    words = [i for i in range(8, min(2048, config.text_config.vocab_size)) if i not in special]
    draw = torch.Generator().manual_seed(seed)
    chosen = torch.tensor(words)[torch.randint(len(words), (batch, TEXT_BEFORE + TEXT_AFTER), generator=draw)]
    video = torch.full((batch, full_length(config, frames)), config.video_token_id)
    return torch.cat([chosen[:, :TEXT_BEFORE], video, chosen[:, TEXT_BEFORE:]], dim=1)


def host_stages(
    video: Path | None, frames: int, side: int, repeats: int
) -> tuple[dict[str, list[float]], str, torch.Tensor | None]:
    """Seconds of decoding and preprocessing a video file on the host, a note on how, and its pixels [T, 3, H, W].

    Nothing is measured, and the note says why, without a file, PyAV or Pillow. Fewer frames than asked: None as pixels.
    """
    if video is None:
        return {}, "not measured: no video file given (--video FILE)", None
    try:
        from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

        from holitom.video import DECODER, load_frames
    except ImportError as error:
        return {}, f"not measured: {error.name or error} is not installed", None
    half = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    processor = SiglipImageProcessorPil(size={"height": side, "width": side}, **half)
    spent: dict[str, list[float]] = {"video_decoding": [], "preprocessing": []}
    pixels = None
    for _ in range(repeats):
        began = time.perf_counter()
        found = load_frames(video, frames)
        decoded = time.perf_counter()
        pixels = processor(list(found.pixels), return_tensors="pt")["pixel_values"]
        spent["video_decoding"].append(decoded - began)
        spent["preprocessing"].append(time.perf_counter() - decoded)
    height, width = found.pixels.shape[1:3]
    what = f"{video.name}, {len(found)} of {found.total} frames of {width} x {height}, {DECODER}, Pillow, one process"
    median = statistics.median(spent["video_decoding"])
    note = what if median > 0 else f"{what} (cached)"
    return spent, note, pixels if len(found) == frames else None
