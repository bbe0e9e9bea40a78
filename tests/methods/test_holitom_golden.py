"""HoliTom's two stages and FastV against what the released code returned (tests/golden)."""

import math

import pytest
import torch

from golden.loader import Golden, cases
from holitom.layout import arrange
from holitom.methods import FastV, HoliTom, HoliTomMerge
from holitom.types import VideoFeatures


def reduced(golden, run):
    setting = golden.runs[run]
    side = math.isqrt(setting["N"])
    video = VideoFeatures(golden["features"], (side, side), golden["attn"])
    method = HoliTom(setting["tau"], setting["beta"], setting["K"], setting["max_window"])
    return method, video, method(video, setting["ratio"])


@pytest.mark.parametrize(("name", "run"), cases("holitom_outer_*"))
def test_outer_stage(name, run):
    golden = Golden(name)
    method, video, kept = reduced(golden, run)
    segments = method.segments(video)
    assert segments.pairs == [tuple(pair) for pair in golden[run, "segments"].tolist()]
    assert segments.removed == int(golden[run, "total_reduced"])
    assert (torch.from_numpy(segments.static) == golden[run, "static_mask"]).all()
    per_segment = [int(((kept.frame >= a) & (kept.frame <= b)).sum()) for a, b in segments.pairs]
    if (run, "token_frame") in golden:
        assert per_segment == golden[run, "per_segment_tokens"].tolist()
        torch.testing.assert_close(kept.tokens, golden[run, "tokens"], atol=1e-5, rtol=0)
        assert kept.frame.tolist() == golden[run, "token_frame"].tolist()
        assert kept.cell.tolist() == golden[run, "token_cell"].tolist()


@pytest.mark.parametrize(("name", "run"), cases("holitom_outer_*"))
def test_prompt_layout(name, run):
    golden = Golden(name)
    _, video, kept = reduced(golden, run)
    grid = golden.runs[run]["newline"] == "grid"
    placed = arrange(kept, video.grid, golden["image_newline"], "row" if grid else "end")
    assert len(placed) == int(golden[run, "prompt_len"])
    if (run, "prompt_tokens") in golden:
        expected = golden[run, "prompt_tokens"]
    elif grid:
        expected = golden[run, "tokens"]
    else:
        expected = torch.cat([golden[run, "tokens"], golden["image_newline"][None]])
    torch.testing.assert_close(placed.rows, expected, atol=1e-5, rtol=0)
    assert (placed.rows[~placed.visual] == golden["image_newline"]).all()


@pytest.mark.parametrize("run", [i for i, r in enumerate(Golden("holitom_e2e").runs) if r["outer"]])
def test_outer_stage_of_the_tiny_llava(run):
    golden = Golden("holitom_e2e")
    setting = golden.runs[run]
    video = VideoFeatures(golden["pooled_features"], (7, 7), golden["pooled_attn"])
    kept = HoliTom(setting["tau"], setting["beta"], setting["K"], setting["max_window"])(video, setting["ratio"])
    torch.testing.assert_close(kept.tokens, golden[run, "video_tokens"][:-1], atol=1e-4, rtol=0)


@pytest.mark.parametrize("run", range(len(Golden("holitom_inner_step").runs)))
def test_inner_step(run):
    golden = Golden("holitom_inner_step")
    setting = golden.runs[run]
    visual = torch.arange(setting["image_start"], setting["image_start"] + setting["image_len"])
    stage = HoliTomMerge(layer=3, ratio=setting["r"])
    score = golden[run, "attn_last_row"].mean(0)
    keep, rows = stage(golden[run, "hidden"], score, visual, n0=len(visual))
    assert keep.tolist() == golden[run, "keep_index"].tolist()
    torch.testing.assert_close(rows, golden[run, "merged"], atol=1e-5, rtol=0)


@pytest.mark.parametrize("run", range(len(Golden("holitom_inner").runs)))
def test_inner_keeps_the_ids_of_the_release(run):
    golden = Golden("holitom_inner")
    setting = golden.runs[run]
    visual = torch.arange(setting["image_start"], setting["image_start"] + setting["image_len"])
    score = golden[run, "attn_last_row"].mean(0)
    hidden = torch.randn(len(score), 8, generator=torch.Generator().manual_seed(0))
    for stage in (HoliTomMerge(setting["k"], setting["r"]), FastV(setting["k"], setting["r"])):
        keep, rows = stage(hidden, score, visual, n0=len(visual))
        assert keep.tolist() == golden[run, "keep_index"].tolist()
        assert rows.shape == (len(keep), 8)


@pytest.mark.parametrize("run", range(len(Golden("fastv").runs)))
def test_fastv_on_its_own_decoder(run):
    """FastV's release kept these ids in a tiny Llama; the score is that decoder's, recomputed here layer by layer."""
    golden = Golden("fastv")
    setting = golden.runs[run]
    hidden, score = llama_states(golden.params["config"], golden.weights(), golden[run, "inputs_embeds"], setting["k"])
    visual = torch.arange(setting["image_start"], setting["image_start"] + setting["image_len"])
    keep, rows = FastV(setting["k"], setting["r"])(hidden, score, visual, n0=len(visual))
    assert keep.tolist() == golden[run, "keep_index"].tolist()
    torch.testing.assert_close(rows, golden[run, "hidden_into_layer_k"], atol=1e-4, rtol=0)


def llama_states(config, weights, hidden, layers):
    """States that enter layer ``layers`` and the last attention row (mean over heads) of the layer before."""
    heads, groups = config["num_attention_heads"], config["num_key_value_heads"]
    width = config["hidden_size"] // heads
    angle = torch.arange(len(hidden))[:, None] * config["rope_theta"] ** (-torch.arange(0, width, 2) / width)
    cos, sin = angle.cos().repeat(1, 2), angle.sin().repeat(1, 2)

    def rope(x):
        return x * cos + torch.cat([-x[..., width // 2 :], x[..., : width // 2]], dim=-1) * sin

    def norm(x, name):
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + config["rms_norm_eps"]) * weights[name]

    def project(x, name, count):
        return (x @ weights[name].T).reshape(len(x), count, -1).transpose(0, 1)

    above = torch.full((len(hidden), len(hidden)), -torch.inf).triu(1)
    for layer in range(layers):
        name = f"layers.{layer}."
        x = norm(hidden, name + "input_layernorm.weight")
        q = rope(project(x, name + "self_attn.q_proj.weight", heads))
        k = rope(project(x, name + "self_attn.k_proj.weight", groups)).repeat_interleave(heads // groups, 0)
        v = project(x, name + "self_attn.v_proj.weight", groups).repeat_interleave(heads // groups, 0)
        attention = (q @ k.transpose(1, 2) / width**0.5 + above).softmax(-1)
        mixed = (attention @ v).transpose(0, 1).reshape(len(x), -1)
        hidden = hidden + mixed @ weights[name + "self_attn.o_proj.weight"].T
        x = norm(hidden, name + "post_attention_layernorm.weight")
        gate = torch.nn.functional.silu(x @ weights[name + "mlp.gate_proj.weight"].T)
        hidden = (
            hidden + (gate * (x @ weights[name + "mlp.up_proj.weight"].T)) @ weights[name + "mlp.down_proj.weight"].T
        )
    return hidden, attention[:, -1].mean(0)
