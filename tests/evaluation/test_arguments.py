"""The setting that --model_args names."""

from __future__ import annotations

import re

import pytest

from holitom_repro import paths
from holitom.errors import BadUsage
from holitom_repro.evaluation.arguments import reduction_from
from holitom.methods import FastV, HoliTom, HoliTomMerge
from holitom.methods.presets import preset


def test_a_method_with_its_fields_and_an_inner_stage() -> None:
    made = reduction_from(
        "holitom", 0.1, layers=6, fields={"tau": 0.7, "inner": "holitommerge", "inner_layer": 4, "inner_ratio": 0.5}
    )
    assert (made.outer, made.budget, made.inner) == (HoliTom(tau=0.7), 0.1, (HoliTomMerge(layer=4, ratio=0.5),))


def test_an_inner_method_alone_and_no_method() -> None:
    made = reduction_from("FastV", layers=6, fields={"layer": 2, "ratio": 0.5})
    assert (made.outer, made.inner) == (None, (FastV(layer=2, ratio=0.5),))
    full = reduction_from(layers=6)
    assert (full.outer, full.budget, full.inner) == (None, 1.0, ())


def test_a_preset_is_scaled_to_the_model() -> None:
    made = reduction_from(preset="table1:HoliTom", budget=0.1, layers=6)
    assert made == preset("table1", "HoliTom", 0.1).scaled(6) and made.inner[0].layer == 4
    assert reduction_from(preset="table2:HoliTom:video-7b", budget=0.15, layers=6).outer is not None


def test_a_preset_may_name_its_budget() -> None:
    wanted = preset("table1", "HoliTom", 0.1).scaled(6)
    assert reduction_from(preset="table1:HoliTom:0.10", layers=6) == wanted
    assert reduction_from(preset="table1:HoliTom:ov-7b:0.10", layers=6) == wanted
    assert reduction_from(preset="table1:HoliTom:ov-7b", budget=0.1, layers=6) == wanted


def test_the_readmes_command_names_a_setting() -> None:
    from lmms_eval.utils import simple_parse_args_string

    text = (paths.root() / "README.md").read_text(encoding="utf-8")
    (words,) = re.findall(r"lmms_eval --model holitom --model_args (\S+)", text)
    given = simple_parse_args_string(words)
    assert (paths.root() / given.pop("pretrained") / "config.json").is_file()
    assert reduction_from(**given, layers=6) == preset("table1", "HoliTom", 0.1).scaled(6)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"method": "holytom"}, "choose one of full, .*HoliTom"),
        ({"method": "HoliTom", "fields": {"tua": 0.7}}, "it has tau"),
        ({"method": "FastV", "fields": {"decode_layer": 3}}, "decode="),
        ({"fields": {"tau": 0.7}}, "name a method"),
        ({"method": "HoliTom", "fields": {"inner_layer": 3}}, "inner=HoliTomMerge"),
        ({"method": "HoliTom", "preset": "table1:HoliTom"}, "preset fixes"),
        ({"preset": "table1"}, "table:row"),
        ({"preset": "table1:HoliTom:0.10", "budget": 0.1}, "stands beside it.*one of them"),
        ({"preset": "table1:HoliTom:0.10:ov-7b"}, "cannot be read.*table:row:model:budget"),
        ({"preset": "table1:HoliTom:ov-7b:many"}, "cannot be read"),
        ({"preset": "table1:HoliTom:0.11"}, "no budget 0.11 here"),
        ({"preset": "table9:HoliTom"}, "choose"),
    ],
)
def test_what_does_not_exist_is_refused_by_name(arguments: dict, words: str) -> None:
    with pytest.raises(BadUsage, match=f"(?i){words}"):
        reduction_from(layers=6, **arguments)
