"""The papers' own stages inside a model: PyramidDrop as released, and what drops against a masked forward."""

from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from recompute import embed, layout, recompute, stock_video
from seam import CELLS, FRAMES, LAYERS, batch, pixels, prompt
from test_golden_seams import watch, wrapped
from transformers import LlamaConfig

from golden.loader import Golden
from holitom.attach import reduce_tokens
from holitom.methods.hieravid import HieraVid, HieraVidSelect
from holitom.methods.mmg_vid import MMGVid
from holitom.methods.prunevid import PruneVid
from holitom.methods.prunevid_select import PruneVidSelect
from holitom.methods.pyramiddrop import PyramidDrop

TOTAL = FRAMES * CELLS
PROMPT = 5 + TOTAL + 1 + 7
GENERATE = {"max_new_tokens": 4, "do_sample": False, "return_dict_in_generate": True, "output_logits": True}


@dataclass
class Recorder:
    """A stage that also notes what it kept and what it was given."""

    stage: Any
    kept: list = field(default_factory=list)
    given: list = field(default_factory=list)

    def __getattr__(self, name):
        return getattr(self.stage, name)

    def __call__(self, hidden, score, visual, n0, **groups):
        ids, rows = self.stage(hidden, score, visual, n0, **groups)
        self.kept.append(ids)
        self.given.append(groups)
        return ids, rows


@pytest.mark.parametrize("number", range(2))
@torch.no_grad()
def test_pyramiddrop_in_a_llama_equals_the_release(number):
    golden = Golden("pyramiddrop")
    run, settings = golden.runs[number], dict(golden.params["config"])
    settings["rope_parameters"] = {"rope_type": "default", "rope_theta": settings.pop("rope_theta")}
    text = LlamaConfig(**settings, tie_word_embeddings=False)
    embeds = golden[number, "inputs_embeds"].float()
    model, ids, video = wrapped(golden, text, embeds, run["image_start"], run["image_len"])
    schedule = PyramidDrop(tuple(run["layer_list"]), tuple(run["ratios"]), released=True)
    layers = model.model.language_model.layers
    with reduce_tokens(model, inner=schedule.stages()) as done:
        entering = [watch(layers[layer], inputs=True) for layer in schedule.layers]
        normed = watch(model.model.language_model.norm, inputs=False)
        done.provide([video])
        model(input_ids=ids)
    for j, seen in enumerate(entering):
        torch.testing.assert_close(seen[0][0], golden[number, f"stage{j}_hidden"], atol=1e-4, rtol=0)
    torch.testing.assert_close(normed[0][0], golden[number, "hidden_last"], atol=1e-4, rtol=0)


DROPS = {
    "PyramidDrop": PyramidDrop((1, 2, 4), (0.5, 0.25, 0.125)).stages(),
    "PyramidDrop released": PyramidDrop((1, 2, 4), (0.5, 0.25, 0.125), released=True).stages(),
    "PruneVidSelect": (PruneVidSelect(3, 0.4),),
    "HieraVid": (HieraVidSelect(1, 0.3), HieraVidSelect(2, 0.3), HieraVidSelect(4, 0.57)),
}


@pytest.mark.parametrize("name", DROPS)
def test_drop_equals_mask(model, name):
    """Prefill and decoding with a cache, under grouped-query attention, against one forward that masks."""
    stages = [Recorder(stage) for stage in DROPS[name]]
    given = {**batch(prompt(5, 7)), "pixel_values_videos": pixels()}
    with reduce_tokens(model, inner=stages) as run:
        out = model.generate(**given, **GENERATE)
    answer = out.sequences[0, PROMPT:]
    tokens, newline = stock_video(model, pixels())
    embeds = embed(model, torch.cat([prompt(5, 7), answer]), [torch.cat([tokens, newline[None]])])
    plan, now = [], torch.arange(PROMPT)
    for stage in stages:
        now = now[stage.kept[0]]
        plan.append((stage.layer, now, stage.positions))
    pruned = [stage.layer for stage in stages if stage.prune_past]
    masks, positions = layout(LAYERS, PROMPT, len(embeds), plan, prune_past=pruned)
    expected = recompute(model, embeds, masks, positions)
    torch.testing.assert_close(torch.cat(out.logits), expected[PROMPT - 1 : -1], atol=3e-5, rtol=0)
    entering = [PROMPT] * LAYERS
    for layer, ids, _ in plan:
        entering[layer:] = [len(ids)] * (LAYERS - layer)
    cached = [entering[-1]] * LAYERS if pruned else entering
    cache = out.past_key_values
    assert [cache.get_seq_length(i) - len(answer) + 1 for i in range(LAYERS)] == cached
    assert list(run.stats.last.prompt_per_layer) == entering
    assert run.stats.acted


COMPLETE = {
    "PruneVid": (PruneVid(tau=2.0), 0.5, (PruneVidSelect(2, 0.4),), [32, 32, 13, 13, 13]),
    "MMG-Vid": (MMGVid(), 0.25, (), [16] * 5),
    "HieraVid": (
        HieraVid(),
        0.5,
        (HieraVidSelect(1, 0.3), HieraVidSelect(2, 0.3), HieraVidSelect(4, 0.57)),
        [32, 22, 15, 15, 6],
    ),
    "MMG-Vid with PyramidDrop": (MMGVid(), 0.5, PyramidDrop((2, 4), (0.5, 0.25)).stages(), [32, 32, 16, 16, 8]),
}


@pytest.mark.parametrize("name", COMPLETE)
@pytest.mark.parametrize("samples", [1, 2])
def test_tokens_per_layer_of_whole_methods(sdpa, name, samples):
    outer, budget, inner, expected = COMPLETE[name]
    given = {**batch(*[prompt(5, 7)] * samples), "pixel_values_videos": pixels(samples)}
    with reduce_tokens(sdpa, outer, budget, inner) as run:
        sdpa.generate(**given, **GENERATE)
    assert len(run.stats.samples) == samples
    for sample in run.stats.samples:
        assert list(sample.per_layer) == expected
    assert run.stats.acted


@pytest.mark.parametrize("name", ["PruneVid", "HieraVid"])
def test_the_outer_stage_names_the_groups_of_the_inner_ones(sdpa, name):
    outer, budget, inner, _ = COMPLETE[name]
    stages = [Recorder(stage) for stage in inner]
    given = {**batch(prompt(5, 7)), "pixel_values_videos": pixels()}
    with reduce_tokens(sdpa, outer, budget, stages) as run:
        features = run.encode(pixels())[0]
        sdpa.generate(**given, **GENERATE)
    group = outer(features, budget).group
    for stage in stages:
        assert stage.given[0]["group"].tolist() == group.tolist()
        kept = stage.kept[0]
        group = group[kept[(kept >= 5) & (kept < 5 + len(group))] - 5]
