"""What is shipped in data/tiny: small enough, as good as its card says, and an adverse control that is adverse."""

import json

import pytest
import torch

from holitom_repro import paths
from holitom_repro.tiny import card, instruct
from holitom_repro.tiny.recipes import RECIPES
from holitom_repro.tiny.vocabulary import QUESTION_TYPES
from holitom_repro.tiny.world import development_rng

FOLDERS = sorted(p.parent.name for p in paths.data("tiny").glob("*/training.json"))
MODELS = [name for name in FOLDERS if RECIPES[name].lessons]


def evaluation(name):
    return json.loads(paths.data("tiny", "evaluation", f"{name}.json").read_text())


def test_the_models_of_the_tables_are_there():
    assert {"onevision", "video", "control_tower"} <= set(FOLDERS) <= set(RECIPES)


def test_twelve_megabytes_are_enough():
    assert sum(f.stat().st_size for f in paths.data("tiny").rglob("*") if f.is_file()) <= 12e6


@pytest.mark.parametrize("name", FOLDERS)
def test_the_whole_recipe_was_run(name):
    log = json.loads(paths.data("tiny", name, "training.json").read_text())
    recipe = RECIPES[name]
    assert log["scale"] == 1 and log["recipe"]["seed"] == recipe.seed
    for stage, lessons in recipe.lessons:
        assert log["curves"][stage][-1]["step"] == lessons.steps
    assert log["curves"].get("vision", [{"step": 0}])[-1]["step"] == recipe.vision_steps


@pytest.mark.parametrize("name", MODELS)
def test_the_card_holds_what_is_required(name):
    accuracy = evaluation(name)["accuracy"]
    assert accuracy["all"] >= 0.95
    assert min(accuracy[t] for t in QUESTION_TYPES) >= 0.85, accuracy


@pytest.mark.parametrize("name", MODELS)
def test_files_cost_at_most_a_point(name):
    for benchmark, scores in evaluation(name)["files"].items():
        assert abs(scores["drawn"] - scores["decoded"]) <= 0.01, benchmark


def test_the_weights_are_those_of_the_card():
    torch.manual_seed(0)
    model = card.load(paths.data("tiny", "onevision"))
    again = instruct.accuracy(model, development_rng(77), 16, 32, rows=False)["all"]
    assert again >= evaluation("onevision")["accuracy"]["all"] - 0.04


def test_the_control_tower_looks_at_the_background():
    assert evaluation("onevision")["attention"]["auc"] > 0.85
    assert evaluation("control_tower")["attention"]["auc"] < 0.15
