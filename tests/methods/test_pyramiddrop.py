import pytest
import torch
from transformers import LlamaConfig, LlamaModel
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from golden.loader import Golden, cases
from holitom.errors import BadUsage
from holitom.flops import paper_flops
from holitom.methods.pyramiddrop import PyramidDrop, PyramidDropStage
from holitom.types import Inner

torch.set_num_threads(1)


def attention_row(layer, hidden, cos, sin):
    """Mean over heads of the last row of softmax(q k^T) in a layer that is about to run."""
    attention = layer.self_attn
    normed = layer.input_layernorm(hidden)
    shape = (1, hidden.shape[1], -1, attention.head_dim)
    q, k = (proj(normed).view(shape).transpose(1, 2) for proj in (attention.q_proj, attention.k_proj))
    q, k = apply_rotary_pos_emb(q, k, cos, sin)
    return (q[0, :, -1:] @ k[0].transpose(1, 2) * attention.scaling).float().softmax(-1).mean(0)[0]


def run_layers(model, embeds, stages, visual):
    """Layer by layer with causal masks; before a stage's layer, the stage chooses. -> what the golden files hold."""
    hidden, n0, original = embeds[None], len(visual), visual.clone()
    kept, entering = [], []
    places = torch.arange(embeds.shape[0])
    by_layer = {stage.layer: stage for stage in stages}
    for index, layer in enumerate(model.layers):
        stage = by_layer.get(index)
        if stage:
            cos, sin = model.rotary_emb(hidden, places[None])
            ids, rows = stage(hidden[0], attention_row(layer, hidden, cos, sin), visual, n0)
            alive = torch.isin(visual, ids)
            original = original[alive]
            visual = torch.searchsorted(ids, visual[alive])
            hidden = rows[None]
            places = torch.arange(len(ids)) if stage.positions == "contiguous" else places[ids]
            kept.append(original)
            entering.append(hidden[0])
        cos, sin = model.rotary_emb(hidden, places[None])
        seq = hidden.shape[1]
        mask = torch.full((seq, seq), float("-inf")).triu(1)[None, None]
        hidden = layer(hidden, attention_mask=mask, position_embeddings=(cos, sin))
    return kept, entering, model.norm(hidden)[0]


@pytest.mark.parametrize(("name", "run"), cases("pyramiddrop"))
@torch.no_grad()
def test_released_mode_equals_the_release(name, run):
    golden = Golden(name)
    setting = golden.runs[run]
    model = LlamaModel(LlamaConfig(**golden.params["config"], attn_implementation="eager")).eval()
    model.load_state_dict(golden.weights())
    start = setting["image_start"]
    visual = torch.arange(start, start + setting["image_len"])
    schedule = PyramidDrop(tuple(setting["layer_list"]), tuple(setting["ratios"]), released=True)
    kept, entering, last = run_layers(model, golden[run, "inputs_embeds"].float(), schedule.stages(), visual)
    for j, (ids, hidden) in enumerate(zip(kept, entering, strict=True)):
        assert (ids - start).tolist() == golden[run, f"stage{j}_kept"].tolist()
        torch.testing.assert_close(hidden, golden[run, f"stage{j}_hidden"], atol=1e-4, rtol=0)
    torch.testing.assert_close(last, golden[run, "hidden_last"], atol=1e-4, rtol=0)

    clean, _, other = run_layers(
        model, golden[run, "inputs_embeds"].float(), PyramidDrop(schedule.layers, schedule.ratios).stages(), visual
    )
    assert clean[0].tolist() == kept[0].tolist()  # positions play no part before the first stage
    assert [len(ids) for ids in clean] == [len(ids) for ids in kept]
    assert (other - last).abs().max() > 1e-3


def stage_output(stage, tokens=40, first=3, after=5, n0=None, seed=0):
    draw = torch.Generator().manual_seed(seed)
    seq = first + tokens + after
    hidden, score = torch.randn(seq, 8, generator=draw), torch.rand(seq, generator=draw)
    visual = torch.arange(first, first + tokens)
    ids, rows = stage(hidden, score, visual, n0 or tokens)
    assert torch.equal(rows, hidden[ids]) and (ids.diff() > 0).all()
    text = torch.cat([torch.arange(first), torch.arange(first + tokens, seq)])
    assert torch.isin(text, ids).all()
    best = sorted(range(tokens), key=lambda i: (-float(score[first + i]), i))
    chosen = (ids[torch.isin(ids, visual)] - first).tolist()
    assert chosen == sorted(best[: len(chosen)])
    return chosen


@pytest.mark.parametrize(("ratio", "n0", "expected"), [(0.5, 40, 20), (0.33, 40, 13), (0.25, 100, 25), (0.001, 40, 1)])
def test_counts_are_relative_to_the_start_of_prefill(ratio, n0, expected):
    assert len(stage_output(PyramidDropStage(2, ratio), n0=n0)) == expected


def test_ratio_one_and_a_video_smaller_than_the_share_change_nothing():
    assert len(stage_output(PyramidDropStage(2, 1.0))) == 40
    assert PyramidDropStage(2, 1.0).identity and not PyramidDropStage(2, 0.9).identity
    assert len(stage_output(PyramidDropStage(2, 0.5), tokens=10, n0=40)) == 10
    assert len(stage_output(PyramidDropStage(2, 0.5), tokens=1)) == 1


def test_ties_keep_the_lowest_ids():
    ids, _ = PyramidDropStage(2, 0.5)(torch.zeros(8, 4), torch.zeros(8), torch.arange(1, 7), 6)
    assert ids.tolist() == [0, 1, 2, 3, 7]


@pytest.mark.parametrize("tokens,printed", [(6272, 10.5), (10816, 19.5)])
def test_the_default_schedule_costs_what_the_tables_print(tokens, printed):
    left = {layer: int(tokens * ratio) for layer, ratio in zip((2, 7, 14), (0.5, 0.25, 0.125), strict=True)}
    per_layer = [left[max(k for k in left if k <= layer)] if layer >= 2 else tokens for layer in range(28)]
    assert round(paper_flops(per_layer, 3584, 18944) / 1e12, 1) == printed


def test_stages_of_the_default_schedule():
    stages = PyramidDrop().stages()
    assert [(s.layer, s.ratio) for s in stages] == [(2, 0.5), (7, 0.25), (14, 0.125)]
    assert [*PyramidDrop(released=True)] == [*PyramidDrop(released=True).stages()]
    assert all(isinstance(stage, Inner) for stage in stages)
    clean, released = PyramidDropStage(2, 0.5), PyramidDropStage(2, 0.5, released=True)
    assert (clean.positions, clean.include_newlines, clean.fidelity) == ("original", False, "port")
    assert (released.positions, released.include_newlines, released.fidelity) == ("contiguous", True, "golden")


def test_bad_settings_are_refused():
    for bad in ({"layers": (2, 7)}, {"layers": (7, 2, 14)}, {"ratios": (0.1, 0.5, 0.6)}, {"ratios": (0.5, 0.2, 0.0)}):
        with pytest.raises(BadUsage):
            PyramidDrop(**bad)
    with pytest.raises(BadUsage, match="layer 7 hold a NaN"):
        PyramidDropStage(7, 0.5)(torch.zeros(4, 2), torch.full((4,), float("nan")), torch.arange(4), 4)
