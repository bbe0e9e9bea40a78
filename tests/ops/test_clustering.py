import numpy as np
import pytest
import torch

import oracle
from golden.loader import Golden, cases
from holitom.ops.clustering import density_peaks
from holitom.ops.merging import merge_members
from holitom.ops.selection import mask_ids

ROOMY = 1 << 24


@pytest.mark.parametrize(("name", "run"), cases("holitom_cluster"))
def test_equals_the_release(name, run):
    golden = Golden(name)
    setting = golden.runs[run]
    rows = golden[run, "x"]
    if setting["clusters"] == 0:
        assert len(golden[run, "tokens"]) == 0  # the outer stage leaves such a group out
        return
    centre, owner = density_peaks(rows, np.array([len(rows)]), np.array([setting["clusters"]]), setting["K"], ROOMY)
    centres = mask_ids(centre, setting["clusters"])
    assert centres.tolist() == golden[run, "centres"].tolist()
    assert golden[run, "pos"][centres].tolist() == golden[run, "token_pos"].tolist()
    merged, _ = merge_members(rows, owner, centres, None if setting["no_beta"] else setting["beta"])
    torch.testing.assert_close(merged, golden[run, "tokens"], atol=1e-5, rtol=0)


def groups(seed, sizes, dim=16):
    return torch.randn(sum(sizes), dim, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("room", [1, 3000, ROOMY])
def test_padded_groups_equal_one_group_at_a_time(seed, room):
    """Groups of 1 to 40 rows, in one chunk, in several, and one by one, against the plain loop."""
    draw = np.random.default_rng(seed)
    sizes = draw.integers(1, 40, size=7)
    clusters = np.array([draw.integers(1, n + 1) for n in sizes])
    rows = groups(seed, sizes.tolist())
    centre, owner = density_peaks(rows, sizes, clusters, 7, room)
    start = 0
    for size, count in zip(sizes, clusters, strict=True):
        part = rows[start : start + size]
        centres, members = oracle.density_peaks(part, int(count), 7)
        assert centre[start : start + size].nonzero().flatten().tolist() == centres
        for head, joined in members.items():
            assert (owner[start : start + size] == start + head).nonzero().flatten().tolist() == sorted([head, *joined])
        start += size


@pytest.mark.parametrize("clusters", [1, 2, 3, 6])
def test_equal_rows_and_ties_go_to_the_lowest_ids(clusters):
    rows = torch.full((6, 5), 0.3)
    centre, owner = density_peaks(rows, np.array([6]), np.array([clusters]), 7, ROOMY)
    assert centre.nonzero().flatten().tolist() == list(range(clusters))
    assert owner[clusters:].tolist() == [0] * (6 - clusters)


def test_duplicates_do_not_take_every_centre():
    """Two piles of equal rows: the second centre is the other pile, not a copy of the first."""
    rows = torch.cat([torch.zeros(5, 3), torch.ones(5, 3)])
    centre, owner = density_peaks(rows, np.array([10]), np.array([2]), 5, ROOMY)
    assert centre.nonzero().flatten().tolist() == [0, 5]
    assert owner.tolist() == [0] * 5 + [5] * 5


def test_distances_far_from_the_origin_keep_their_precision():
    """A Gram matrix cancels when all rows share a large offset; clustering must not notice the offset."""
    rows = (groups(3, [30]) * 8).round() / 8
    near = density_peaks(rows, np.array([30]), np.array([6]), 7, ROOMY)
    far = density_peaks(rows + 4096, np.array([30]), np.array([6]), 7, ROOMY)
    assert all(torch.equal(a, b) for a, b in zip(near, far, strict=True))


def test_half_precision_rows_are_upcast():
    rows = groups(5, [20]).half()
    half = density_peaks(rows, np.array([20]), np.array([4]), 7, ROOMY)
    full = density_peaks(rows.float(), np.array([20]), np.array([4]), 7, ROOMY)
    assert all(torch.equal(a, b) for a, b in zip(half, full, strict=True))
