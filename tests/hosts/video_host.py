"""A tiny LLaVA-Video in the OneVision class: 3 x 3 means of 7 x 7 patches a frame, a newline after each row."""

from __future__ import annotations

import torch
from hosting import PAD, VIDEO, Host, randomise
from seam import batch, tiny_model
from transformers import SiglipVisionConfig, SiglipVisionModel

FRAMES = 3


class VideoHost(Host):
    def __init__(self, attention):
        model = tiny_model(attention, mm_newline_position="grid", mm_spatial_pool_mode="average")
        tower = SiglipVisionConfig(**{**model.config.vision_config.to_dict(), "image_size": 98})
        model.config.vision_config = tower
        model.model.vision_tower = SiglipVisionModel(tower)
        self.model = randomise(model)
        assert self.model.config.video_token_id == VIDEO and self.model.generation_config.pad_token_id == PAD

    def clip(self, which):
        return torch.randn(FRAMES, 3, 98, 98, generator=torch.Generator().manual_seed(which))

    def grid(self, which):
        return 3, 3

    def inputs(self, *which):
        clips = torch.stack([self.clip(i) for i in which])
        return {**batch(*(self.prompt(i) for i in which)), "pixel_values_videos": clips}

    @torch.no_grad()
    def stock_rows(self, which):
        """The stock class pools and ends its videos otherwise; here from its parts, by other means than the kit's."""
        core = self.model.model
        layer = self.model.config.vision_feature_layer
        patches = core.vision_tower(self.clip(which), output_hidden_states=True).hidden_states[layer]
        maps = core.multi_modal_projector(patches).unflatten(1, (7, 7))[:, :6, :6]
        means = maps.unflatten(2, (3, 2)).unflatten(1, (3, 2)).mean((2, 4))
        return torch.cat([means, core.image_newline.expand(FRAMES, 3, 1, -1)], dim=2).flatten(0, 2)

    def visual(self, which):
        return torch.arange(FRAMES * 12) % 4 != 3

    def places(self, which, frame, cell):
        return (frame * 3 + cell // 3) * 4 + cell % 3
