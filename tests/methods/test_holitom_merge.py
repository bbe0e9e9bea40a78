import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import oracle
from holitom.errors import BadUsage
from holitom.methods import FastV, HoliTomMerge
from holitom.types import Inner


@st.composite
def states(draw):
    """hidden [S, D], score [S], ascending visual ids: not always one block, as newlines leave gaps."""
    seq = draw(st.integers(1, 60))
    visual = sorted(draw(st.sets(st.integers(0, seq - 1))))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    hidden = torch.randn(seq, 6, generator=generator)
    return hidden, torch.rand(seq, generator=generator), torch.tensor(visual, dtype=torch.long)


@given(states(), st.sampled_from([0.0, 0.1, 0.5, 0.8, 0.99]), st.sampled_from(["running", "mean"]))
def test_equals_folding_one_token_after_the_other(case, ratio, average):
    hidden, score, visual = case
    keep, rows = HoliTomMerge(4, ratio, average)(hidden, score, visual, n0=len(visual))
    if len(visual) == 0:
        assert keep.tolist() == list(range(len(hidden)))
        assert torch.equal(rows, hidden)
        return
    expected, expected_rows = oracle.fold(hidden, score, visual, ratio, average)
    assert keep.tolist() == expected
    torch.testing.assert_close(rows, expected_rows, atol=1e-5, rtol=1e-5)


@given(states(), st.sampled_from([0.0, 0.3, 0.8]))
def test_fastv_drops_what_holitom_folds(case, ratio):
    hidden, score, visual = case
    keep, rows = FastV(2, ratio)(hidden, score, visual, n0=len(visual))
    merged, _ = HoliTomMerge(2, ratio)(hidden, score, visual, n0=len(visual))
    assert keep.tolist() == merged.tolist()
    assert torch.equal(rows, hidden[keep])
    assert len(keep) == len(hidden) - len(visual) + min(len(visual), max(1, round(len(visual) * (1 - ratio))))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("average", ["running", "mean"])
def test_half_precision_states(dtype, average):
    generator = torch.Generator().manual_seed(5)
    hidden = torch.randn(50, 16, generator=generator).to(dtype)
    score, visual = torch.rand(50, generator=generator).to(dtype), torch.arange(4, 44)
    keep, rows = HoliTomMerge(3, 0.5, average)(hidden, score, visual, n0=40)
    expected, expected_rows = oracle.fold(hidden, score, visual, 0.5, average)
    assert rows.dtype == dtype
    assert keep.tolist() == expected
    torch.testing.assert_close(rows, expected_rows)


def test_equal_states_and_equal_scores_keep_the_first():
    hidden = torch.ones(10, 4)
    keep, rows = HoliTomMerge(1, 0.5)(hidden, torch.zeros(10), torch.arange(2, 8), n0=6)
    assert keep.tolist() == [0, 1, 2, 3, 4, 8, 9]
    torch.testing.assert_close(rows, torch.ones(7, 4))
    keep, rows = HoliTomMerge(1, 0.5, "mean")(torch.zeros(10, 4), torch.zeros(10), torch.arange(2, 8), n0=6)
    assert rows.isfinite().all()


def test_the_input_is_left_alone():
    hidden = torch.randn(12, 4, generator=torch.Generator().manual_seed(0))
    before = hidden.clone()
    HoliTomMerge(1, 0.5)(hidden, torch.rand(12), torch.arange(12), n0=12)
    assert torch.equal(hidden, before)


@pytest.mark.parametrize("stage", [HoliTomMerge, FastV])
def test_wrong_parameters_are_refused(stage):
    for layer in (0, -1):
        with pytest.raises(BadUsage, match=f"layer {layer} cannot be reduced"):
            stage(layer, 0.5)
    for ratio in (1.0, -0.1, 7.0):
        with pytest.raises(BadUsage, match=f"ratio {ratio} is outside"):
            stage(3, ratio)


@pytest.mark.parametrize("stage", [HoliTomMerge(3, 0.5), FastV(3, 0.5)])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_nan_among_the_scores_is_refused_by_name(stage, value):
    hidden, score, visual = torch.randn(10, 4), torch.rand(10), torch.arange(2, 8)
    score[5] = value
    with pytest.raises(BadUsage, match=f"{type(stage).__name__} at layer 3 hold a NaN"):
        stage(hidden, score, visual, n0=6)
    score[5], score[1] = 0.5, value  # a text token's score is not read
    assert len(stage(hidden, score, visual, n0=6)[0]) == 7


@pytest.mark.parametrize("place", [3, 6])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_nan_among_the_states_is_refused_by_name(place, value):
    """Of a token that is kept, and of one that is folded away."""
    hidden, score = torch.randn(10, 4), torch.arange(10.0).flip(0)
    hidden[place, 1] = value
    with pytest.raises(BadUsage, match="states that enter HoliTomMerge at layer 3 hold a NaN"):
        HoliTomMerge(3, 0.5)(hidden, score, torch.arange(2, 8), n0=6)


def test_only_ratio_zero_asks_for_nothing():
    assert HoliTomMerge(3, 0.0).identity and FastV(3, 0.0).identity
    assert not HoliTomMerge(3, 0.01).identity and not FastV(3, 0.01).identity


def test_protocol_and_fidelity():
    for stage in (HoliTomMerge(18, 0.5), FastV(2, 0.8)):
        assert isinstance(stage, Inner)
        assert (stage.score, stage.query, stage.positions, stage.prune_past) == ("prev", "last", "original", False)
    assert HoliTomMerge(18, 0.5).fidelity == "port"
    assert HoliTomMerge(18, 0.5, causal=False, include_newlines=True).fidelity == "golden"
