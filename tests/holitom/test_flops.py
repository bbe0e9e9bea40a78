"""The three counts of a prefill: the papers', the exact one, and what torch executes."""

from __future__ import annotations

import pytest
import torch
from counting import measured_flops
from hosts import onevision

from holitom.errors import BadUsage
from holitom.flops import (
    LLM_SHAPES,
    SIGLIP_384,
    LLMShape,
    VisionShape,
    outer_tokens,
    paper_flops,
    projector_flops,
    tokens_per_layer,
    vision_flops,
)

OV, VIDEO = 32 * 196, 64 * 169
FASTV, PDROP, HOLITOM = [(2, 0.2)], [(2, 0.5), (7, 0.25), (14, 0.125)], [(18, 0.5)]


@pytest.mark.parametrize(
    ("model", "tokens", "stages", "printed"),
    [
        ("ov-7b", OV, [], 40.8),
        *[("ov-7b", outer_tokens(32, 196, r), [], v) for r, v in ((0.25, 8.7), (0.2, 7.0), (0.15, 5.2), (0.1, 3.4))],
        ("ov-7b", outer_tokens(32, 196, 0.25), HOLITOM, 7.1), ("ov-7b", outer_tokens(32, 196, 0.2), HOLITOM, 5.8),
        ("ov-7b", outer_tokens(32, 196, 0.15), HOLITOM, 4.3), ("ov-7b", outer_tokens(32, 196, 0.1), HOLITOM, 2.8),
        ("ov-7b", OV, FASTV, 9.3), ("ov-7b", OV, PDROP, 10.5),
        ("ov-72b", OV, [], 429.3), ("ov-72b", outer_tokens(32, 196, 0.15), [], 59.0),
        ("ov-72b", outer_tokens(32, 196, 0.15), [(60, 0.5)], 51.6), ("ov-72b", OV, FASTV, 86.4),
        ("video-7b", VIDEO, [], 80.2), ("video-7b", outer_tokens(64, 169, 0.15), [], 9.3),
        ("video-7b", outer_tokens(64, 169, 0.15), HOLITOM, 7.6), ("video-7b", VIDEO, FASTV, 17.1),
        ("video-7b", VIDEO, PDROP, 19.5),
    ],
)  # fmt: skip
def test_every_printed_cell_of_tables_1_and_2(model: str, tokens: int, stages: list, printed: float) -> None:
    shape = LLMShape.named(model)
    assert round(shape.paper(tokens_per_layer(tokens, shape.layers, stages)) / 1e12, 1) == printed


def test_the_papers_formula_by_hand() -> None:
    assert paper_flops([1], hidden_size=3, intermediate_size=5) == 4 * 9 + 2 * 3 + 2 * 15


@pytest.mark.parametrize(("tokens", "tera_macs"), [(6272, 48.82), (10816, 94.06)])
def test_true_shapes_give_the_baselines_of_a_later_paper(tokens: int, tera_macs: float) -> None:
    macs = LLM_SHAPES["ov-7b"].exact([tokens] * 28, causal=False, lm_head=False) / 2
    assert macs / 1e12 == pytest.approx(tera_macs, abs=0.005)


def test_tower_and_projector_by_hand() -> None:
    """Attention stays inside a frame (taken as one sequence, the tower costs what EarlyTom counts); the projector runs
    before pooling."""
    assert vision_flops(32) / 2e12 == pytest.approx(10.27, abs=0.005) and vision_flops(64) == 2 * vision_flops(32)
    flat = VisionShape("flat", 1152, 4304, 26, 32 * 729, 14)
    assert vision_flops(1, flat) / 2e12 == pytest.approx(41.83, abs=0.03)
    assert projector_flops(1, 3584) == 2 * 729 * (1152 * 3584 + 3584 * 3584)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_exact_counts_agree_with_the_measured_ones(attention: str) -> None:
    model = onevision(attention)
    text, tower, projector = model.model.language_model, model.model.vision_tower, model.model.multi_modal_projector
    shape, vision = LLMShape.from_config(model.config), VisionShape.from_config(model.config)
    ids = torch.randint(0, 290, (1, 37))

    def prefill() -> None:
        hidden = text(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).last_hidden_state
        model.lm_head(hidden[:, -1:])

    exact = shape.exact([32] * 5, text_tokens=5, causal=False)
    assert measured_flops(prefill) == pytest.approx(exact, rel=0.01)
    pixels = {"pixel_values": torch.randn(3, 3, 112, 112)}
    assert measured_flops(tower, pixels) == pytest.approx(vision_flops(3, vision), rel=0.01)
    patches = torch.randn(3, vision.patches, 32)
    assert measured_flops(projector, [patches]) == pytest.approx(projector_flops(3, 32, vision), rel=0.01)


def test_the_attention_kernel_is_really_counted() -> None:
    q, k = torch.randn(1, 4, 10, 8), torch.randn(1, 2, 10, 8)
    attend = torch.nn.functional.scaled_dot_product_attention
    assert measured_flops(lambda: attend(q, k, k, enable_gqa=True, is_causal=True)) == 2 * 2 * 4 * 10 * 10 * 8


def test_causality_halves_attention_only_and_grouped_heads_shrink_keys_and_values_only() -> None:
    whole, grouped = (LLMShape("x", 32, 64, 1, 4, heads, 8) for heads in (4, 1))
    assert whole.exact([101], causal=False) - whole.exact([101]) == 2 * 2 * 32 * (101**2 - 101 * 102 / 2)
    assert whole.exact([10]) - grouped.exact([10]) == 2 * 2 * 10 * 32 * (32 - 8)


def test_shapes_by_name_and_from_configs() -> None:
    config = onevision().config
    assert LLMShape.from_config(config) == LLMShape.from_config(config.text_config)
    assert VisionShape.from_config(config).patches == 64 and SIGLIP_384.patches == 27 * 27
    for wrong, words in ((lambda: LLMShape.named("ov-13b"), "ov-72b"), (lambda: paper_flops([5, -1], 2, 2), "negative"),
                         (lambda: LLM_SHAPES["ov-7b"].paper([1, 2, 3]), "28 layers, but 3")):  # fmt: skip
        with pytest.raises(BadUsage, match=words):
            wrong()


def test_tokens_per_layer() -> None:
    assert outer_tokens(1, 100, 0.07) == 7 and 100 * 0.07 > 7  # the product of the floats is above 7
    assert tokens_per_layer(6272, 28, FASTV) == [6272] * 2 + [1254] * 26
    assert tokens_per_layer(6272, 28, PDROP) == [6272] * 2 + [3136] * 5 + [1568] * 7 + [784] * 14
    assert tokens_per_layer(7, 3) == [7, 7, 7] and tokens_per_layer(10, 2, [(0, 0.5)]) == [5, 5]
    for stages in ([(28, 0.5)], [(-1, 0.5)], [(7, 0.5), (2, 0.2)], [(2, 0.5), (2, 0.2)], [(2, 1.5)]):
        with pytest.raises(BadUsage):
            tokens_per_layer(100, 28, stages)
