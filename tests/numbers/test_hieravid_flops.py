"""HieraVid's percentage is a mean over layers: the schedule behind it, its FLOPs, and the smaller decoder's."""

import pytest

from holitom_repro import paper
from holitom_repro.claims import Verdict
from holitom_repro.claims.hieravid import flops_pct, hieravid_headlines
from holitom.flops import LLMShape
from holitom_repro.tables.hieravid import layer_means


@pytest.mark.parametrize(("preset", "flops", "mean"), [(30, 24.47, 30.0), (20, 17.18, 21.0), (10, 8.54, 11.0)])
def test_a_preset_has_these_flops_and_this_mean(preset, flops, mean):
    assert flops_pct(preset) == pytest.approx(flops, abs=0.02)  # whole tokens; shares alone give 24.47
    assert 100 * layer_means(28, f"{preset}%")[1] == pytest.approx(mean, abs=0.05)


def test_the_printed_flops_need_the_stages_and_not_a_flat_share():
    shape = LLMShape.named("video-7b")
    full = shape.paper([10816] * 28)
    staged = [round(10816 * share) for share in (0.5, 0.35, 0.245, 0.105) for _ in range(7)]
    assert round(100 * shape.paper(staged) / full, 1) == 24.5
    assert round(100 * shape.paper([int(0.3 * 10816)] * 28) / full, 1) == 23.8  # FrameFusion's, at the same mean
    assert sum(staged) / 28 / 10816 == pytest.approx(0.30, abs=1e-3)


@pytest.mark.parametrize("preset", ["30%", "20%", "10%"])
def test_the_stages_stay_apart_in_a_small_decoder(preset):
    starts, mean = layer_means(6, preset)
    assert starts == [0, 2, 3, 5]
    assert 0 < mean < 1 and mean > layer_means(28, preset)[1]


def test_by_hand_at_six_layers():
    assert layer_means(6, "30%")[1] == pytest.approx((0.5 + 0.5 + 0.35 + 0.245 + 0.245 + 0.10535) / 6, abs=1e-6)


def test_headlines_are_derived_or_say_what_would_check_them():
    judged = {claim.id: claim for claim in hieravid_headlines()}
    saving = judged.pop("hieravid/flops_reduction")
    assert saving.verdict is Verdict.REPRODUCED and saving.computed == pytest.approx(75.53, abs=0.02)
    assert len(judged) == 3
    assert all(claim.verdict is Verdict.QUOTED and claim.computed is None for claim in judged.values())
    assert "--tier paper" in judged["hieravid/ov-7b/HieraVid/30/relative"].reason


def test_the_settings_name_the_mean_as_what_it_is():
    note = paper.settings().query("table == 'hieravid' and method == 'HieraVid' and retained_pct == 30")["note"].iloc[0]
    assert "mean over layers" in note
