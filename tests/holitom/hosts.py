"""A tiny random model of every host, with weights large enough for a wrong number to show, and pixels for it."""

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaNextVideoConfig,
    LlavaNextVideoForConditionalGeneration,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2Config,
    SiglipVisionConfig,
)

torch.set_num_threads(1)

PAD, IMAGE, VIDEO = 0, 298, 299
START, END = 296, 297  # around a video of Qwen2.5-VL
LAYERS, FRAMES = 5, 4
GRIDS = ((3, 8, 12), (2, 4, 8))  # of Qwen2.5-VL's two videos: pairs of frames, rows and columns of patches
_VISION = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4, "image_size": 112, "patch_size": 14}
_TEXT = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": LAYERS, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 300, "max_position_embeddings": 2048, "pad_token_id": PAD,
    "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip


def randomise(model, attention="sdpa", dtype=torch.float32):
    """Weights of deviation 0.15 (norms stay), the same for the same names and shapes."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, weight in sorted(model.named_parameters()):
            if "norm" not in name and "ln_q" not in name:
                weight.copy_(torch.randn(weight.shape, generator=generator) * 0.15)
    if attention is not None:
        model.set_attn_implementation(attention)
    if hasattr(model, "generation_config"):
        model.generation_config.eos_token_id, model.generation_config.pad_token_id = None, PAD
    return model.to(dtype).eval()


def onevision(attention="sdpa", dtype=torch.float32, size=112, text=None, **extra):
    """LLaVA-OneVision: 8 x 8 patches and 4 x 4 tokens a frame (size 98: 7 x 7 patches), a Qwen2 decoder."""
    config = LlavaOnevisionConfig(
        vision_config=SiglipVisionConfig(**_VISION | {"image_size": size}, num_hidden_layers=3, vision_use_head=False),
        text_config=text or Qwen2Config(**_TEXT), image_token_index=IMAGE, video_token_index=VIDEO,
        image_grid_pinpoints=[[size, size]], tie_word_embeddings=False, **extra,
    )  # fmt: skip
    return randomise(LlavaOnevisionForConditionalGeneration(config), attention, dtype)


def llava_video(attention="sdpa", dtype=torch.float32):
    """LLaVA-Video in the OneVision class: 3 x 3 means of 7 x 7 patches a frame, a newline after each row."""
    return onevision(attention, dtype, 98, mm_newline_position="grid", mm_spatial_pool_mode="average")


def next_video(attention="sdpa", dtype=torch.float32):
    """LLaVA-NeXT-Video: 4 x 4 tokens a frame from 8 x 8 patches behind a class token, a Llama decoder."""
    config = LlavaNextVideoConfig(
        vision_config=CLIPVisionConfig(**_VISION, num_hidden_layers=4, projection_dim=32),
        text_config=LlamaConfig(**_TEXT), image_token_index=IMAGE, video_token_index=VIDEO,
        image_grid_pinpoints=[[112, 112]], spatial_pool_mode="average", spatial_pool_stride=2,
        tie_word_embeddings=False,
    )  # fmt: skip
    return randomise(LlavaNextVideoForConditionalGeneration(config), attention, dtype)


def qwen(attention="sdpa", dtype=torch.float32):
    """Qwen2.5-VL: windows of 2 x 2 tokens in half of its blocks."""
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]}
    config = Qwen2_5_VLConfig(
        vision_config={
            "depth": 4, "hidden_size": 32, "intermediate_size": 64, "num_heads": 4, "patch_size": 14, "window_size": 56,
            "fullatt_block_indexes": [1, 2], "out_hidden_size": 32, "tokens_per_second": 2,
        },
        text_config=_TEXT | {"rope_parameters": rope},
        image_token_id=IMAGE, video_token_id=VIDEO, vision_start_token_id=START, vision_end_token_id=END,
        tie_word_embeddings=False,
    )  # fmt: skip
    return randomise(Qwen2_5_VLForConditionalGeneration(config), attention, dtype)


HOSTS = {"llava_onevision": onevision, "llava_video": llava_video, "llava_next_video": next_video, "qwen2_5_vl": qwen}


def pixels(host="llava_onevision", seed=0):
    """The arguments of ``encode`` for two videos of a host."""
    draw = torch.Generator().manual_seed(seed)
    if host == "qwen2_5_vl":
        patches = torch.cat([torch.randn(t * h * w, 3 * 2 * 14 * 14, generator=draw) for t, h, w in GRIDS])
        return {"pixels": patches, "video_grid_thw": torch.tensor(GRIDS)}
    size = 98 if host == "llava_video" else 112
    scene = torch.randn(2, 1, 3, size, size, generator=draw)
    return {"pixels": scene + 0.4 * torch.randn(2, FRAMES, 3, size, size, generator=draw)}


def save_tokenizer(folder, *words):
    """One of bytes, as Qwen2's, with special tokens behind them."""
    alphabet = {token: i for i, token in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    core = Tokenizer(models.BPE(vocab=alphabet, merges=[]))
    core.pre_tokenizer, core.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    special = {"pad_token": "<|endoftext|>", "eos_token": "<|im_end|>", "extra_special_tokens": list(words)}
    made = PreTrainedTokenizerFast(tokenizer_object=core, **special)
    made.save_pretrained(folder)
    return made


QWEN2 = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""Qwen2-Instruct's chat template, which LLaVA-Video's tokenizer has."""
PORTS = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + ' '}}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'video') %}{{ '<video>\n' }}{% endfor %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}{{ content['text'] }}{% endfor %}"
    "{{'<|im_end|>'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""As the ports' chat_template.json: no system text."""
