"""What every token stands for: rebuilt for every outer method from the derivative alone, and known for some."""

import pytest
import torch

from holitom_repro.explorer.sources import NOBODY, rebuild_error, reduce_with_sources
from holitom_repro.explorer.state import outer_methods
from holitom.methods import AveragePool, FastVID, HoliTom, RandomDrop, ToMe, UniformStride
from holitom.types import TokenSet

BUDGET = 0.3


@pytest.mark.parametrize("name", outer_methods())
def test_tokens_are_the_sums_that_the_weights_say(name, noise):
    method = outer_methods()[name]()
    assert rebuild_error(method, noise, BUDGET) < 1e-5


@pytest.mark.parametrize("name", outer_methods())
def test_watching_a_method_does_not_change_it(name, noise):
    method = outer_methods()[name]()
    alone = method(noise, BUDGET)
    watched, owner = reduce_with_sources(method, noise, BUDGET)
    assert torch.equal(alone.tokens, watched.tokens) and torch.equal(alone.cell, watched.cell)
    assert not watched.tokens.requires_grad
    assert owner.shape == noise.tokens.shape[:2]
    assert torch.equal(owner[watched.frame, watched.cell], torch.arange(len(watched)))
    assert int(owner.min()) >= NOBODY and int(owner.max()) < len(watched)


@pytest.mark.parametrize("method", [HoliTom(), ToMe(), HoliTom(beta=None, tau=0.6)], ids=["HoliTom", "ToMe", "means"])
def test_sizes_agree_with_what_the_method_says(method, noise):
    kept, owner = reduce_with_sources(method, noise, BUDGET)
    counted = torch.bincount(owner[owner != NOBODY], minlength=len(kept))
    assert torch.equal(counted.float(), kept.size)


@pytest.mark.parametrize("method", [RandomDrop(), UniformStride()], ids=["random", "stride"])
def test_a_method_that_only_drops_stands_for_nothing_else(method, noise):
    kept, owner = reduce_with_sources(method, noise, BUDGET)
    assert int((owner != NOBODY).sum()) == len(kept)


def test_a_source_of_several_tokens_goes_to_the_heaviest_then_the_nearest(noise):
    """FastVID: every token that is not kept joins an anchor in each anchor frame of its segment."""
    method = FastVID(tau=-1.0, segments=1)
    kept, owner = reduce_with_sources(method, noise, BUDGET)
    merged = torch.bincount(owner[owner != NOBODY], minlength=len(kept)) > 1
    assert int(merged.sum()) > 1 and int((owner == NOBODY).sum()) == 0
    carriers = kept.frame[merged].unique()
    assert len(carriers) > 1


def test_overlapping_pools_go_to_the_nearest(noise):
    kept, owner = reduce_with_sources(AveragePool(), noise, BUDGET)
    frame = torch.arange(12)[:, None].expand(12, 36)
    used = owner != NOBODY
    assert torch.equal(kept.frame[owner[used]], frame[used])
    away = (kept.cell[owner[used]] // 6 - (torch.arange(36) // 6).expand(12, 36)[used]).abs()
    assert int(away.max()) <= 2


class Twice:
    """Keeps the first two frames' mean: a method that nobody has seen before."""

    requires = frozenset()
    positions = "contiguous"
    fidelity = "control"

    def __call__(self, video, budget):
        tokens = video.tokens[:2].mean(0)
        cells = torch.arange(video.cells)
        return TokenSet(tokens, torch.zeros_like(cells), cells)


def test_it_needs_nothing_from_the_method(noise):
    _, owner = reduce_with_sources(Twice(), noise, BUDGET)
    assert torch.equal(owner[:2], torch.arange(36).expand(2, 36)) and bool((owner[2:] == NOBODY).all())
