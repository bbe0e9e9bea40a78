"""What a block says that it has done: counts asked for and spent, and whether every stage acted."""

import pytest
from hosts import LAYERS
from seam import ALL, GREEDY, Drop, KeepEvery, Nearest

from holitom.attach import reduce_tokens
from holitom.errors import CannotRun
from holitom.methods import DyCokeDecode, HoliTom
from holitom.types import Reduction


def test_a_sample(plain):
    with reduce_tokens(plain.model, HoliTom(), 0.25, [Drop(2), Drop(4)]) as run:
        plain.model.generate(**plain.inputs(0), **GREEDY)
        run.stats.check_acted()
    last = run.stats.last
    assert (last.frames, last.full, last.requested, last.budget) == (4, 64, 16, 0.25)
    assert last.flops_paper < last.flops_exact
    assert last.realised == last.kept / 64 and last.off_per_frame == (last.kept - 16) / 4
    assert (last.full_newlines, last.newlines_per_layer, len(last.per_layer)) == (1, (1,) * LAYERS, LAYERS)
    assert run.stats.calls == {"outer": 1, "inner@2": 1, "inner@4": 1}
    assert run.stats.removed["outer"] == 64 - last.kept
    assert run.stats.removed["inner@2"] == last.per_layer[1] - last.per_layer[2]


KEEPS = {
    "outer": Reduction("outer", ALL, 0.5),
    "inner@2": Reduction("inner", inner=(Drop(2, 1.0),)),
    "inner@3": Reduction("one of two", KeepEvery(), 0.3, (Drop(1), Drop(3, 1.0))),
    "decode@2": Reduction("decode", decode=Nearest(2, 100)),
}


@pytest.mark.parametrize("name", KEEPS)
def test_a_stage_that_keeps_everything_has_not_acted(plain, name):
    with reduce_tokens(plain.model, reduction=KEEPS[name]) as run:
        plain.model.generate(**plain.inputs(0), **GREEDY)
    with pytest.raises(CannotRun, match=f"{name} kept every token of all 1 prompts"):
        run.stats.check_acted()


def test_a_stage_that_never_ran(plain):
    with reduce_tokens(plain.model, decode=DyCokeDecode(2, 0.5)) as run:
        plain.model.generate(**plain.inputs(0), max_new_tokens=1, do_sample=False)
    with pytest.raises(CannotRun, match="decode@2 never ran"):
        run.stats.check_acted()


def test_a_block_that_did_nothing(plain):
    with reduce_tokens(plain.model, HoliTom(), 0.25) as run:
        for ask in (run.stats.check_acted, lambda: run.stats.last):
            with pytest.raises(CannotRun, match="no video"):
                ask()
