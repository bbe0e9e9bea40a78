"""The cost of one real prefill, part by part: what the exact formula says beside what torch counts while it runs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import torch

from holitom.flops import LLMShape, VisionShape, measured_flops, projector_flops, vision_flops
from holitom.models.processing import VideoProcessor, load_model


def count_prefill(path: str | Path, frames: int, question: str = "what colour is the circle ?") -> pd.DataFrame:
    """One prefill of a model folder on ``frames`` blank frames: rows vision tower and projector, language model, total;
    columns exact (``flops.exact_flops`` and its companions, full score matrix), measured (``measured_flops``) and their
    ratio; FLOPs, 2 per multiply-accumulate. The counts do not depend on what the frames show or the weights hold.
    """
    processor = VideoProcessor.from_pretrained(path)
    model = load_model(path, torch.float32, "cpu")
    size = model.config.vision_config.image_size
    inputs = processor(np.zeros((frames, size, size, 3), dtype=np.uint8), question)
    pixels = inputs["pixel_values_videos"]
    language, vision = LLMShape.from_config(model.config), VisionShape.from_config(model.config)
    visual = (
        int((inputs["input_ids"] == model.config.video_token_id).sum()) - 1
    )  # the closing newline is no visual token
    text = inputs["input_ids"].shape[1] - visual
    exact_vision = vision_flops(frames, vision) + projector_flops(frames, language.hidden_size, vision)
    exact_language = language.exact([visual] * language.layers, text, causal=False)
    seen = measured_flops(lambda: model.model.get_video_features(pixel_values_videos=pixels))
    whole = measured_flops(model, inputs | {"logits_to_keep": 1})
    parts = {
        f"vision tower and projector, {frames} frames": (exact_vision, seen),
        f"language model, {visual} visual + {text} other tokens": (exact_language, whole - seen),
        "total": (exact_vision + exact_language, whole),
    }
    table = pd.DataFrame(parts, index=["exact", "measured"]).T
    return table.assign(ratio=table["measured"] / table["exact"])
