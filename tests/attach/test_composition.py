"""Any outer stage with any inner stages and a decode stage: every outer stage that the package exports."""

import pytest
import torch
from seam import CELLS, FRAMES, LAYERS, batch, pixels, prompt, tiny_model
from test_manners import marks

from holitom import methods
from holitom.attach import reduce_tokens
from holitom.methods import DyCokeDecode, FastV, HieraVidSelect, HoliTomMerge, PruneVidSelect, PyramidDrop
from holitom.types import Reduction

OUTER = [name for name in methods.__all__ if hasattr(getattr(methods, name), "requires")]
NEAR = {"HoliTom", "PruneVid", "AveragePool"}  # their counts follow from the video, or from what grids allow
LAYOUTS = {
    "end": ({}, 1),
    "row": ({"mm_newline_position": "grid", "mm_spatial_pool_mode": "average"}, 4 * FRAMES),
}
NEW = 3
GENERATE = {"max_new_tokens": NEW, "do_sample": False, "return_dict_in_generate": True, "output_logits": True}

INNER = {
    "none": ((), ()),
    "FastV": ((FastV(2, 0.6),), (0.4,)),
    "HoliTomMerge": ((HoliTomMerge(3, 0.5),), (0.5,)),
    "PyramidDrop": (PyramidDrop((1, 2, 4), (0.5, 0.25, 0.125)).stages(), (0.5, 0.25, 0.125)),
    "PruneVidSelect": ((PruneVidSelect(2, 0.4),), (0.4,)),
    "HieraVidSelect": ((HieraVidSelect(1, 0.3), HieraVidSelect(4, 0.5)), (0.7, 0.5)),
    "four kinds": ((FastV(1, 0.2), PruneVidSelect(2, 0.8), HoliTomMerge(3, 0.2), HieraVidSelect(4, 0.3)),
                   (0.8, 0.8, 0.8, 0.7)),
}  # fmt: skip


def expected_layers(stages, shares, entering):
    """Visual tokens that enter every layer, and those that its cache holds of them, from the shares that stay."""
    left, layers, cached = entering, [], []
    by_layer = {stage.layer: (stage, share) for stage, share in zip(stages, shares, strict=True)}
    for layer in range(LAYERS):
        if layer in by_layer:
            stage, share = by_layer[layer]
            total = type(stage).__name__ == "PyramidDropStage"
            left = max(1, int(entering * share) if total else round(left * share))
            if stage.prune_past:
                cached = [left] * layer
        layers.append(left)
        cached.append(left)
    return layers, cached


@pytest.fixture(scope="module", params=LAYOUTS)
def layout(request):
    settings, newlines = LAYOUTS[request.param]
    model = tiny_model(**settings)
    model.model.get_video_features(pixels())  # transformers leaves hooks of its own in the tower at the first call
    return model, newlines


def test_all_of_the_papers_are_there():
    assert {"HoliTom", "ToMe", "VisionZip", "FastVID", "PruneVid", "DyCoke", "MMGVid", "HieraVid", "RandomDrop",
            "UniformStride", "SaliencyTopK", "AveragePool"} <= set(OUTER)  # fmt: skip


@pytest.mark.parametrize("name", OUTER)
def test_every_outer_stage_composes(layout, name):
    model, newlines = layout
    outer, budget = getattr(methods, name)(), 0.5
    rows = [prompt(5, 7, FRAMES * CELLS + newlines), prompt(2, 3, FRAMES * CELLS + newlines, seed=1)]
    noise = torch.randn(2, FRAMES, 3, 112, 112, generator=torch.Generator().manual_seed(3))
    given = {**batch(*rows), "pixel_values_videos": pixels(2) + 2 * noise}
    untouched = marks(model)
    for inner, (stages, shares) in INNER.items():
        setting = Reduction(f"{name}, {inner}", outer, budget, stages, DyCokeDecode(2, 0.5))
        with reduce_tokens(model, reduction=setting) as run:
            videos = run.encode(given["pixel_values_videos"])
            out = model.generate(**given, **GENERATE)
            features = [outer(video, budget) for video in videos]
        assert marks(model) == untouched
        assert all(torch.isfinite(step).all() for step in out.logits)
        assert len(run.stats.samples) == 2 and run.stats.acted, setting.name
        run.stats.check_acted()
        held = [0] * LAYERS
        for sample, kept, row in zip(run.stats.samples, features, rows, strict=True):
            text = len(row) - FRAMES * CELLS - newlines
            assert (sample.frames, sample.cells, sample.videos) == (FRAMES, CELLS, 1)
            assert sample.requested == FRAMES * CELLS * budget and sample.kept == len(kept)
            assert abs(sample.off_per_frame) <= 1 if name in NEAR else sample.kept == sample.requested
            lines = 1 if newlines == 1 else len(torch.unique(kept.frame * 4 + kept.cell // 4))
            assert (sample.newlines, sample.full_newlines) == (lines, newlines)
            layers, cached = expected_layers(stages, shares, sample.kept)
            assert list(sample.per_layer) == layers
            assert list(sample.newlines_per_layer) == [lines] * LAYERS
            assert list(sample.prompt_per_layer) == [n + lines + text for n in layers]
            assert list(sample.cached_per_layer) == [n + lines + text for n in cached]
            assert sample.prompt_before == len(row) and sample.prompt_after == text + lines + sample.kept
            assert 0 < sample.flops_paper < sample.flops_exact
            held = [max(a, b) for a, b in zip(held, sample.cached_per_layer, strict=True)]
        cache = out.past_key_values
        assert [cache.get_seq_length(i) - NEW + 1 for i in range(LAYERS)] == held
        spent = run.stats.budget
        assert spent.asked_share == budget and spent.full_tokens == FRAMES * CELLS
        layers = [sum(sample.per_layer) / LAYERS for sample in run.stats.samples]
        assert spent.layer_share == pytest.approx(sum(layers) / 2 / (FRAMES * CELLS))
        assert spent.share_with_newlines == pytest.approx(
            sum(s.kept + s.newlines for s in run.stats.samples) / 2 / (FRAMES * CELLS + newlines)
        )


@pytest.mark.parametrize("name", OUTER)
def test_at_budget_one_nothing_changes_but_what_inner_stages_do(layout, name):
    """The outer stage as the identity: same logits as without it, and no complaint that it kept everything."""
    model, newlines = layout
    outer = getattr(methods, name)()
    given = {**batch(prompt(5, 7, FRAMES * CELLS + newlines)), "pixel_values_videos": pixels()}
    with reduce_tokens(model, inner=FastV(2, 0.6)):
        without = model.generate(**given, **GENERATE)
    with reduce_tokens(model, outer, 1.0, FastV(2, 0.6)) as run:
        ours = model.generate(**given, **GENERATE)
    assert run.stats.last.kept == FRAMES * CELLS and run.stats.acted
    torch.testing.assert_close(torch.cat(ours.logits), torch.cat(without.logits), atol=3e-5, rtol=0)
