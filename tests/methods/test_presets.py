import pytest

from holitom.errors import BadUsage
from holitom.methods import FastV, HoliTom, HoliTomMerge
from holitom.methods.presets import preset, preset_names


@pytest.mark.parametrize("budget", [0.25, 0.20, 0.15, 0.10])
def test_table1(budget):
    cell = preset("table1", "HoliTom", budget)
    tau = 0.65 if budget == 0.10 else 0.80
    assert cell.reduction.outer == HoliTom(tau=tau, beta=0.6, k=7, max_window=1024)
    assert cell.reduction.budget == budget
    assert cell.reduction.inner == (HoliTomMerge(layer=18, ratio=0.5),)
    assert (cell.model, cell.frames, cell.layers) == ("ov-7b", 32, 28)
    without = preset("table1", "HoliTom (w/o M)", budget)
    assert (without.reduction.outer, without.reduction.inner) == (cell.reduction.outer, ())


@pytest.mark.parametrize(("model", "layer", "frames", "layers"), [("ov-72b", 60, 32, 80), ("video-7b", 18, 64, 28)])
def test_table2(model, layer, frames, layers):
    cell = preset("table2", "HoliTom", model=model)
    assert cell.reduction.outer == HoliTom(tau=0.80)
    assert (cell.budget, cell.frames, cell.layers) == (0.15, frames, layers)
    assert cell.reduction.inner == (HoliTomMerge(layer=layer, ratio=0.5),)
    fastv = preset("table2", "FastV", model=model).reduction
    assert (fastv.outer, fastv.budget, fastv.inner) == (None, 1.0, (FastV(2, 0.8),))


def test_full_tokens_are_no_reduction():
    for table, model in (("table1", "ov-7b"), ("table2", "ov-72b"), ("table2", "video-7b")):
        full = preset(table, "Vanilla", model=model).reduction
        assert (full.outer, full.budget, full.inner) == (None, 1.0, ())


def test_inner_sweep():
    names = [row for _, row, _, _ in preset_names("fig-inner")]
    assert {row for row in names if "r=0.5" in row} == {
        f"{m} K={k} r=0.5" for m in ("FastV", "HoliTom") for k in (2, 7, 14, 18, 21)
    }
    assert {row for row in names if "K=14" in row} == {
        f"{m} K=14 r={r}" for m in ("FastV", "HoliTom") for r in (0.3, 0.4, 0.5, 0.6, 0.7)
    }
    assert len(names) == 18
    merging, dropping = (preset("fig_inner", f"{m} K=18 r=0.5").reduction for m in ("HoliTom", "FastV"))
    assert merging.outer == dropping.outer == preset("table1", "HoliTom", 0.10).reduction.outer
    assert merging.inner == (HoliTomMerge(18, 0.5),)
    assert dropping.inner == (FastV(18, 0.5),)


def test_frames():
    rows = preset_names("fig-frames")
    assert len(rows) == 8
    assert [preset("fig-frames", f"HoliTom (w/o M), {n} frames").frames for n in (16, 32, 64, 128)] == [16, 32, 64, 128]


def test_every_name_is_a_preset_and_describes_itself():
    cells = [preset(*arguments) for arguments in preset_names()]
    assert len({(c.table, c.row, c.budget, c.model) for c in cells}) == len(cells)
    for cell in cells:
        assert cell.reduction.describe()["budget"] == cell.budget
        assert cell.row.startswith(cell.reduction.name.split(",")[0])


def test_the_released_variant():
    stage = preset("table1", "HoliTom", 0.15, released=True).reduction.inner[0]
    assert (stage.causal, stage.include_newlines, stage.average, stage.fidelity) == (False, True, "running", "golden")
    assert preset("table1", "HoliTom", 0.15).reduction.inner[0].causal


@pytest.mark.parametrize(("layers", "expected"), [(28, 18), (6, 4), (12, 8), (80, 51), (2, 1)])
def test_scaled_to_another_depth(layers, expected):
    assert preset("table1", "HoliTom", 0.10).scaled(layers).inner[0].layer == expected


def test_scaled_stays_inside_the_decoder():
    assert preset("table2", "FastV", model="ov-72b").scaled(6).inner[0].layer == 1
    assert preset("fig-inner", "HoliTom K=21 r=0.5").scaled(6).inner[0].layer == 5
    assert preset("fig-inner", "HoliTom K=21 r=0.5").scaled(2).inner[0].layer == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("table9", "HoliTom"), "no presets for 'table9'. Choose from table1"),
        (("table1", "Nonsense"), "no row 'Nonsense' here. Choose from Vanilla, FastV"),
        (("table1", "HoliTom", 0.3), "no budget 0.3 here. Choose from 0.25, 0.2, 0.15, 0.1"),
        (("table1", "HoliTom"), "several cells. Say which of model=ov-7b budget=0.25"),
        (("table2", "HoliTom", 0.15), "several cells. Say which of model=ov-72b"),
        (("table2", "HoliTom", 0.15, "gpt"), "no model 'gpt' here. Choose from ov-72b, video-7b"),
    ],
)
def test_unknown_cells_name_the_choices(arguments, message):
    with pytest.raises(BadUsage) as error:
        preset(*arguments)
    assert message in str(error.value)
