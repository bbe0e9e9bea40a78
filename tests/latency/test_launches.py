"""Operations per stage on the stand-in: they do not grow with the video, and every one has its stage."""

import pytest

from holitom_repro.latency.content import recorded_similarity
from holitom_repro.latency.inputs import make_inputs
from holitom_repro.latency.launches import count_launches, table
from holitom_repro.latency.passes import ADDED, STAGES
from holitom.methods import HoliTom, HoliTomMerge
from holitom.types import Reduction

BOTH = Reduction("HoliTom", HoliTom(), 0.25, (HoliTomMerge(3, 0.5),))


def counts(tiny, reduction, frames=6):
    inputs = make_inputs(tiny, frames, 1, recorded_similarity())
    return {stage: len(made) for stage, made in count_launches(tiny, reduction, inputs).items()}


def test_each_stage_has_its_operations(tiny):
    full, both = counts(tiny, Reduction("Vanilla")), counts(tiny, BOTH)
    assert tuple(both) == STAGES
    assert all(full[stage] == 0 for stage in ADDED) and all(both[stage] > 0 for stage in STAGES)
    outer = counts(tiny, Reduction("outer", HoliTom(), 0.25))
    assert outer["inner"] == 0 and outer["outer"] == both["outer"] and outer["prefill"] == both["prefill"]


def test_longer_videos_launch_as_often(tiny):
    few, many = counts(tiny, BOTH, 8), counts(tiny, BOTH, 16)
    assert sum(few[stage] for stage in ADDED) == pytest.approx(sum(many[stage] for stage in ADDED), abs=8)


def test_the_table_names_who_asks(tiny):
    inputs = make_inputs(tiny, 6, 1, recorded_similarity())
    shown = table({"HoliTom": count_launches(tiny, BOTH, inputs)})
    assert "outer: " in shown and "ops/" in shown and "received_attention" in shown
