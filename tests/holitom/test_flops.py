"""The three counts of a prefill: the papers' (their printed cells: methods/test_presets.py), the exact one, and what
torch executes."""

from collections.abc import Mapping

import pytest
import torch
from hosts import onevision
from torch.utils.flop_counter import FlopCounterMode

from holitom.attach import reduce_tokens
from holitom.errors import BadUsage
from holitom.flops import (
    LLM_SHAPES,
    LLMShape,
    VisionShape,
    paper_flops,
    projector_flops,
    tokens_per_layer,
    vision_flops,
)
from holitom.methods import EarlyTom


def vision_shape(config):
    """Of a tiny model: 8 x 8 patches, three layers."""
    vision = config.vision_config
    return VisionShape("tiny", vision.hidden_size, vision.intermediate_size, vision.num_hidden_layers, 64, 14)


def measured_flops(run, inputs=()):
    """FLOPs that torch executes in ``run(**inputs)`` or ``run(*inputs)``, without gradients. For eager attention, which
    takes the full score matrix: compare with ``LLMShape.exact(..., causal=False)``. (torch 2.13 does not count the
    kernel of scaled_dot_product_attention on a CPU.)"""
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        run(**inputs) if isinstance(inputs, Mapping) else run(*inputs)
    return float(counter.get_total_flops())


def test_the_papers_formula_by_hand():
    assert paper_flops([1], hidden_size=3, intermediate_size=5) == 4 * 9 + 2 * 3 + 2 * 15


@pytest.mark.parametrize(("tokens", "tera_macs"), [(6272, 48.82), (10816, 94.06)])
def test_true_shapes_give_the_baselines_of_a_later_paper(tokens, tera_macs):
    macs = LLM_SHAPES["ov-7b"].exact([tokens] * 28, causal=False, lm_head=False) / 2
    assert macs / 1e12 == pytest.approx(tera_macs, abs=0.005)


def test_tower_and_projector_by_hand():
    """Attention stays inside a frame (taken as one sequence, the tower costs what EarlyTom counts); the projector runs
    before pooling."""
    assert vision_flops(32) / 2e12 == pytest.approx(10.27, abs=0.005) and vision_flops(64) == 2 * vision_flops(32)
    flat = VisionShape("flat", 1152, 4304, 26, 32 * 729, 14)
    assert vision_flops(1, flat) / 2e12 == pytest.approx(41.83, abs=0.03)
    assert projector_flops(1, 3584) == 2 * 729 * (1152 * 3584 + 3584 * 3584)


def test_exact_counts_agree_with_the_measured_ones():
    model = onevision("eager")
    text, tower, projector = model.model.language_model, model.model.vision_tower, model.model.multi_modal_projector
    shape, vision = LLMShape.from_config(model.config), vision_shape(model.config)
    ids = torch.randint(0, 290, (1, 37))

    def prefill():
        hidden = text(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).last_hidden_state
        model.lm_head(hidden[:, -1:])

    exact = shape.exact([32] * 5, text_tokens=5, causal=False)
    assert measured_flops(prefill) == pytest.approx(exact, rel=0.01)
    pixels = {"pixel_values": torch.randn(3, 3, 112, 112)}
    assert measured_flops(tower, pixels) == pytest.approx(vision_flops(3, vision), rel=0.01)
    patches = torch.randn(3, vision.patches, 32)
    assert measured_flops(projector, [patches]) == pytest.approx(projector_flops(3, 32, vision), rel=0.01)


def test_causality_halves_attention_only_and_grouped_heads_shrink_keys_and_values_only():
    whole, grouped = (LLMShape("x", 32, 64, 1, 4, heads, 8) for heads in (4, 1))
    assert whole.exact([101], causal=False) - whole.exact([101]) == 2 * 2 * 32 * (101**2 - 101 * 102 / 2)
    assert whole.exact([10]) - grouped.exact([10]) == 2 * 2 * 10 * 32 * (32 - 8)


def test_one_count_for_each_layer():
    config = onevision().config
    assert LLMShape.from_config(config) == LLMShape.from_config(config.text_config)
    for count in (LLM_SHAPES["ov-7b"].paper, LLM_SHAPES["ov-7b"].exact):
        with pytest.raises(BadUsage, match="28 layers, but 3 counts"):
            count([1, 2, 3])
    with pytest.raises(BadUsage, match="26 layers, but 2 counts"):
        vision_flops([4, 3])


def test_tokens_per_layer():
    stages = [(2, 0.5), (7, 0.25), (14, 0.125)]
    assert tokens_per_layer(6272, 28, stages) == [6272] * 2 + [3136] * 5 + [1568] * 7 + [784] * 14
    assert tokens_per_layer(6272, 28, [(2, 0.2)]) == [6272] * 2 + [1254] * 26
    assert tokens_per_layer(7, 3) == [7, 7, 7] and tokens_per_layer(10, 2, [(0, 0.5)]) == [5, 5]
    for stages in ([(28, 0.5)], [(-1, 0.5)], [(7, 0.5), (2, 0.2)], [(2, 0.5), (2, 0.2)], [(2, 1.5)]):
        with pytest.raises(BadUsage):
            tokens_per_layer(100, 28, stages)


def test_a_stage_in_the_tower_saves_what_its_frames_would_cost():
    model, spent = onevision("eager"), {}
    pixels = torch.randn(1, 10, 3, 112, 112, generator=torch.Generator().manual_seed(1)).mul(0.3).cumsum(1)
    for tower in (None, EarlyTom((0, 1), tau=0.0)):
        with reduce_tokens(model, tower=tower) as run:
            spent[tower] = measured_flops(run.encode, [pixels])
            merged = run.encode(pixels)[0].merged
    shape, left = vision_shape(model.config), len(merged.first)
    whole = vision_flops(10, shape) + projector_flops(10, 32, shape)
    fewer = vision_flops(merged.entered, shape) + projector_flops(left, 32, shape)
    assert spent[None] - spent[tower] == whole - fewer > 0
