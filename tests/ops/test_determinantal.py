import itertools

import numpy as np
import pytest
import torch

from holitom.ops.determinantal import _by_gram, _on_host, _Search, _Unit, greedy_map

torch.set_num_threads(1)


def brute_force(rows, quality, count):
    """Add whichever row makes the determinant largest, computed in full every time."""
    unit = torch.nn.functional.normalize(rows.double(), dim=-1)
    kernel = quality.double()[:, None] * (unit @ unit.T) * quality.double()
    chosen = []
    for _ in range(count):
        rest = [i for i in range(len(rows)) if i not in chosen]
        chosen.append(max(rest, key=lambda i: float(kernel[[*chosen, i]][:, [*chosen, i]].det())))
    return sorted(chosen)


def padded(sizes, start=0):
    n = max(sizes)
    valid = torch.arange(n) < torch.tensor(sizes)[:, None]
    ids = torch.tensor(list(itertools.accumulate([start, *sizes[:-1]])))[:, None] + torch.arange(n)
    return torch.where(valid, ids, start), valid


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("dim", [6, 64])  # more rows than dimensions, and fewer
def test_equals_brute_force_in_groups_of_unequal_size(seed, dim):
    draw = torch.Generator().manual_seed(seed)
    sizes, counts = [9, 4, 1, 12], [5, 4, 0, 6]
    rows = torch.randn(sum(sizes), dim, generator=draw)
    quality = torch.rand(sum(sizes), generator=draw) + 0.05
    ids, valid = padded(sizes)
    mask = greedy_map(rows, quality, ids, valid, np.array(counts))
    start = 0
    for group, (size, count) in enumerate(zip(sizes, counts, strict=True)):
        expected = brute_force(rows[start : start + size], quality[start : start + size], count)
        assert mask[group].nonzero().flatten().tolist() == expected
        start += size


def test_many_steps_equal_brute_force():
    """More steps than one block of the factor."""
    draw = torch.Generator().manual_seed(3)
    rows, quality = torch.randn(150, 200, generator=draw), torch.rand(150, generator=draw) + 0.05
    ids, valid = padded([150])
    mask = greedy_map(rows, quality, ids, valid, np.array([140]))
    unit = torch.nn.functional.normalize(rows.double(), dim=-1)
    kernel = quality.double()[:, None] * (unit @ unit.T) * quality.double()
    chosen = []
    residual = kernel.clone()  # its diagonal is what each row would multiply the determinant by
    for _ in range(140):
        gain = residual.diagonal().clone()
        gain[chosen] = -1
        best = int(gain.argmax())
        chosen.append(best)
        residual = residual - residual[:, best : best + 1] @ residual[best : best + 1] / residual[best, best]
    assert mask[0].nonzero().flatten().tolist() == sorted(chosen)


def test_spent_dimensions_are_followed_by_quality_not_by_noise():
    rows = torch.eye(3)[[0, 0, 1, 1, 2, 2, 0]]
    quality = torch.tensor([0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.95])
    ids, valid = padded([7])
    for count, expected in [(3, [2, 4, 6]), (4, [0, 2, 4, 6]), (6, [0, 1, 2, 3, 4, 6]), (7, list(range(7)))]:
        mask = greedy_map(rows, quality, ids, valid, np.array([count]))
        assert mask[0].nonzero().flatten().tolist() == expected


@pytest.mark.parametrize("value", [0.0, 2.0])
def test_equal_rows_take_the_first(value):
    ids, valid = padded([6, 3])
    mask = greedy_map(torch.full((9, 4), value), torch.full((9,), 1e-6), ids, valid, np.array([3, 3]))
    assert mask.tolist() == [[True] * 3 + [False] * 3] * 2


def test_tiny_quality_does_not_reach_the_threshold():
    """Quality scales the kernel, not the residual that decides whether a row still adds anything."""
    rows = torch.eye(4)
    ids, valid = padded([4])
    mask = greedy_map(rows, torch.tensor([1e-6, 1.0, 1e-6, 1e-6]), ids, valid, np.array([2]))
    assert mask[0].tolist() == [True, True, False, False]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_counts(dtype):
    ids, valid = padded([20, 11])
    mask = greedy_map(torch.randn(31, 8).to(dtype), torch.rand(31) + 1e-6, ids, valid, np.array([12, 5]))
    assert mask.sum(1).tolist() == [12, 5]
    assert not (mask & ~valid).any()


@pytest.mark.parametrize("dim", [300, 40])  # the residuals stay above eps, and reach it
def test_all_groups_together_take_what_each_takes_alone(dim):
    """What a GPU runs in one go is what a CPU runs group by group."""
    draw = torch.Generator().manual_seed(dim)
    sizes, counts = [170, 90, 3], np.array([150, 80, 3])
    rows = torch.randn(sum(sizes), dim, generator=draw)
    quality = torch.rand(sum(sizes), generator=draw) + 0.05
    ids, valid = padded(sizes)
    weight, spent = quality[ids].square(), torch.where(valid, quality[ids].square() - 16, -torch.inf)
    unit = _Unit(rows, ids, rows.norm(dim=-1)[ids])
    search = _Search(weight, valid.float(), spent.clone(), torch.from_numpy(counts), 1e-5)
    together = _by_gram(search, unit.gram(), int(counts.max()), np.array(sizes), counts) & valid
    for group, (size, count) in enumerate(zip(sizes, counts.tolist(), strict=True)):
        one = slice(group, group + 1), slice(size)
        search = _Search(weight[one], valid[one].float(), spent[one], torch.tensor([count]), 1e-5)
        alone = _on_host(search, unit.gram()[group, :size, :size].clone(), count)
        assert alone.sum() == count
        assert torch.equal(together[group, :size], alone)
