"""The three counts of a prefill: the papers', the exact one, and what torch executes."""

from __future__ import annotations

import pytest
import torch
from transformers import LlavaOnevisionConfig, LlavaOnevisionForConditionalGeneration, Qwen2Config, SiglipVisionConfig

from holitom.errors import BadUsage
from holitom.flops import (
    LLM_SHAPES,
    SIGLIP_384,
    LLMShape,
    VisionShape,
    exact_flops,
    measured_flops,
    outer_tokens,
    paper_flops,
    projector_flops,
    tokens_per_layer,
    vision_flops,
)

FRAMES, PROMPT = 3, 37


@pytest.fixture(scope="module")
def tiny() -> LlavaOnevisionForConditionalGeneration:
    vision = SiglipVisionConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        image_size=112,
        patch_size=14,
        vision_use_head=False,
    )
    text = Qwen2Config(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=5,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=300,
    )
    config = LlavaOnevisionConfig(vision_config=vision, text_config=text, image_token_index=298, video_token_index=299)
    torch.manual_seed(0)
    return LlavaOnevisionForConditionalGeneration(config).eval()


def test_the_papers_formula_on_the_vanilla_model() -> None:
    assert paper_flops([6272] * 28, hidden_size=3584, intermediate_size=18944) == pytest.approx(4.0765e13, rel=1e-4)
    assert paper_flops([1], hidden_size=3, intermediate_size=5) == 4 * 9 + 2 * 3 + 2 * 15


@pytest.mark.parametrize(("tokens", "tera_macs"), [(6272, 48.82), (10816, 94.06)])
def test_true_shapes_give_the_baselines_of_a_later_paper(tokens: int, tera_macs: float) -> None:
    macs = LLM_SHAPES["ov-7b"].exact([tokens] * 28, causal=False, lm_head=False) / 2
    assert macs / 1e12 == pytest.approx(tera_macs, abs=0.005)


def test_attention_is_counted_per_frame_in_the_tower() -> None:
    assert vision_flops(32) / 2e12 == pytest.approx(10.27, abs=0.005)
    one_sequence = VisionShape("flat", 1152, 4304, 26, 32 * 729, 14)
    assert vision_flops(1, one_sequence) / 2e12 == pytest.approx(41.83, abs=0.03)  # the count of EarlyTom
    assert vision_flops(64) == 2 * vision_flops(32)


def test_the_projector_runs_before_pooling() -> None:
    assert projector_flops(1, 3584) == 2 * 729 * (1152 * 3584 + 3584 * 3584)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_exact_prefill_agrees_with_the_measured_one(tiny, attention: str) -> None:
    language_model, shape = tiny.model.language_model, LLMShape.from_config(tiny.config)
    language_model.set_attn_implementation(attention)
    ids = torch.randint(0, 290, (1, PROMPT))
    mask = torch.ones_like(ids)

    def prefill() -> None:
        hidden = language_model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
        tiny.lm_head(hidden[:, -1:])

    exact = shape.exact([PROMPT - 5] * 5, text_tokens=5, causal=False)
    assert measured_flops(prefill) == pytest.approx(exact, rel=0.01)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_exact_vision_tower_agrees_with_the_measured_one(tiny, attention: str) -> None:
    tower = tiny.model.vision_tower
    tower.set_attn_implementation(attention)
    measured = measured_flops(tower, {"pixel_values": torch.randn(FRAMES, 3, 112, 112)})
    assert measured == pytest.approx(vision_flops(FRAMES, VisionShape.from_config(tiny.config)), rel=0.01)


def test_exact_projector_agrees_with_the_measured_one(tiny) -> None:
    shape = VisionShape.from_config(tiny.config)
    measured = measured_flops(tiny.model.multi_modal_projector, [torch.randn(FRAMES, shape.patches, 32)])
    assert measured == pytest.approx(projector_flops(FRAMES, 32, shape), rel=0.01)


def test_the_attention_kernel_is_really_counted() -> None:
    q, k = torch.randn(1, 4, 10, 8), torch.randn(1, 2, 10, 8)
    attend = torch.nn.functional.scaled_dot_product_attention
    assert measured_flops(lambda: attend(q, k, k, enable_gqa=True, is_causal=True)) == 2 * 2 * 4 * 10 * 10 * 8


def test_causality_halves_attention_only() -> None:
    sizes = {"num_heads": 4, "num_key_value_heads": 4}
    full, half = (exact_flops([101], 32, 64, causal=c, **sizes) for c in (False, True))
    assert full - half == 2 * 2 * 32 * (101**2 - 101 * 102 / 2)


def test_grouped_heads_shrink_only_keys_and_values() -> None:
    full, grouped = (exact_flops([10], 32, 64, num_heads=4, num_key_value_heads=h) for h in (4, 1))
    assert full - grouped == 2 * 2 * 10 * 32 * (32 - 8)


def test_shapes_by_name_and_from_configs(tiny) -> None:
    assert LLMShape.named("ov-72b").layers == 80
    with pytest.raises(BadUsage, match="ov-72b"):
        LLMShape.named("ov-13b")
    assert LLMShape.from_config(tiny.config) == LLMShape.from_config(tiny.config.text_config)
    assert VisionShape.from_config(tiny.config).patches == 64
    assert SIGLIP_384.patches == 27 * 27
    with pytest.raises(BadUsage, match="28 layers, but 3"):
        LLM_SHAPES["ov-7b"].paper([1, 2, 3])
    with pytest.raises(BadUsage, match="negative"):
        paper_flops([5, -1], 2, 2)


@pytest.mark.parametrize(
    ("frames", "cells", "ratio", "tokens"),
    [(32, 196, 0.25, 1568), (32, 196, 0.20, 1280), (32, 196, 0.15, 960), (32, 196, 0.10, 640), (64, 169, 0.15, 1664)],
)
def test_tokens_after_the_outer_stage(frames: int, cells: int, ratio: float, tokens: int) -> None:
    assert outer_tokens(frames, cells, ratio) == tokens


def test_the_outer_count_does_not_stumble_over_floating_point() -> None:
    assert 100 * 0.07 > 7  # the product of the floats is above 7
    assert outer_tokens(1, 100, 0.07) == 7


def test_tokens_per_layer_of_the_three_kinds() -> None:
    assert tokens_per_layer(6272, 28, [(2, 0.2)]) == [6272] * 2 + [1254] * 26
    pyramid = tokens_per_layer(6272, 28, [(2, 0.5), (7, 0.25), (14, 0.125)])
    assert pyramid == [6272] * 2 + [3136] * 5 + [1568] * 7 + [784] * 14
    assert tokens_per_layer(640, 28, [(18, 0.5)]) == [640] * 18 + [320] * 10
    assert tokens_per_layer(7, 3) == [7, 7, 7]
    assert tokens_per_layer(10, 2, [(0, 0.5)]) == [5, 5]


@pytest.mark.parametrize("stages", [[(28, 0.5)], [(-1, 0.5)], [(7, 0.5), (2, 0.2)], [(2, 0.5), (2, 0.2)], [(2, 1.5)]])
def test_stages_that_do_not_fit_are_refused(stages: list[tuple[int, float]]) -> None:
    with pytest.raises(BadUsage):
        tokens_per_layer(100, 28, stages)
