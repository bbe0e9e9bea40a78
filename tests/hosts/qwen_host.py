"""A tiny Qwen2.5-VL: videos of 3 x 4 x 6 and 2 x 2 x 4 tokens, windows of 2 x 2 tokens in half of its blocks."""

from __future__ import annotations

import torch
from hosting import LAYERS, PAD, VIDEO, Host, randomise, words
from seam import batch
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

START, END, IMAGE = 296, 297, 298
GRIDS = ((3, 8, 12), (2, 4, 8))
SECONDS = (1.0, 0.5)


def tiny(attention):
    config = Qwen2_5_VLConfig(
        vision_config={
            "depth": 4, "hidden_size": 32, "intermediate_size": 64, "num_heads": 4, "patch_size": 14, "window_size": 56,
            "fullatt_block_indexes": [1, 2], "out_hidden_size": 32, "tokens_per_second": 2,
        },
        text_config={
            "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": LAYERS, "num_attention_heads": 4,
            "num_key_value_heads": 2, "vocab_size": 300, "max_position_embeddings": 2048, "pad_token_id": PAD,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]},
        },
        image_token_id=IMAGE, video_token_id=VIDEO, vision_start_token_id=START, vision_end_token_id=END,
        tie_word_embeddings=False,
    )  # fmt: skip
    config._attn_implementation = attention
    model = Qwen2_5_VLForConditionalGeneration(config)
    model.set_attn_implementation(attention)
    return randomise(model)


class QwenHost(Host):
    def __init__(self, attention):
        self.model = tiny(attention)

    def head(self, which):
        return torch.cat([words(self.before[which] - 1, 10 + which), torch.tensor([START])])

    def tail(self, which):
        return torch.cat([torch.tensor([END]), words(self.after[which] - 1, 20 + which)])

    def patches(self, which):
        t, h, w = GRIDS[which]
        return torch.randn(t * h * w, 3 * 2 * 14 * 14, generator=torch.Generator().manual_seed(which))

    def grid(self, which):
        return GRIDS[which][1] // 2, GRIDS[which][2] // 2

    def inputs(self, *which):
        given = batch(*(self.prompt(i) for i in which))
        return given | {
            "pixel_values_videos": torch.cat([self.patches(i) for i in which]),
            "video_grid_thw": torch.tensor([GRIDS[i] for i in which]),
            "second_per_grid_ts": torch.tensor([SECONDS[i] for i in which]),
            "mm_token_type_ids": (given["input_ids"] == VIDEO).int() * 2,
        }

    @torch.no_grad()
    def stock_rows(self, which):
        return self.model.model.visual(self.patches(which), grid_thw=torch.tensor([GRIDS[which]])).pooler_output

    def visual(self, which):
        return torch.ones(len(self.rows(which)), dtype=torch.bool)

    def numbers(self, which):
        """Written out here: text counts on; a token of the video has its time, row and column behind the text before
        it, and the text goes on behind the larger side of the grid."""
        (t, _, _), (rows, columns) = GRIDS[which], self.grid(which)
        first, rest = self.before[which], self.after[which]
        text = torch.arange(first).expand(3, -1)
        time = (torch.arange(t) * 2 * SECONDS[which]).long()
        axes = torch.meshgrid(time, torch.arange(rows), torch.arange(columns), indexing="ij")
        video = torch.stack(axes).flatten(1) + first
        later = (torch.arange(rest) + first + max(rows, columns)).expand(3, -1)
        return torch.cat([text, video, later], dim=1)

    def places(self, which, frame, cell):
        """Rows of the video at which the tokens stand."""
        rows, columns = self.grid(which)
        return frame * rows * columns + cell
