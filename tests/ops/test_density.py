import math

import pytest
import torch

from holitom.ops.density import (
    frame_scores,
    group_scores,
    peak_scores,
    ranked_clusters,
    squared_distances,
    uniform_noise,
)

torch.set_num_threads(1)


def plain_scores(rows, k):
    """density * delta, one row at a time."""
    n = len(rows)
    apart = [
        [float((rows[i].double() - rows[j].double()).norm()) / math.sqrt(rows.shape[1]) for j in range(n)]
        for i in range(n)
    ]
    used = min(k, n)
    density = [math.exp(-sum(d * d for d in sorted(row)[:used]) / used) for row in apart]
    scores = []
    for i in range(n):
        denser = [apart[i][j] for j in range(n) if (density[j], -j) > (density[i], -i)]
        scores.append(density[i] * (min(denser) if denser else max(map(max, apart))))
    return scores


@pytest.mark.parametrize("k", [1, 4, 7, 100])
def test_scores_of_padded_groups_equal_plain_loops(k):
    draw = torch.Generator().manual_seed(k)
    sizes = [1, 2, 5, 12]
    x = torch.randn(4, 12, 6, generator=draw)
    valid = torch.arange(12) < torch.tensor(sizes)[:, None]
    score = peak_scores(squared_distances(x), valid, k)
    for group, size in enumerate(sizes):
        expected = torch.tensor(plain_scores(x[group, :size], k))
        torch.testing.assert_close(score[group, :size], expected, atol=2e-5, rtol=1e-4)
        assert (score[group, size:] == -1).all()


def test_clusters_are_ranked_and_every_row_joins_its_nearest_centre():
    rows = torch.randn(40, 5, generator=torch.Generator().manual_seed(1))
    ids = torch.stack([torch.arange(20), torch.arange(20, 40)])
    valid = torch.arange(20) < torch.tensor([[20], [9]])
    wanted = torch.tensor([6, 3])
    rank, nearest = ranked_clusters(rows, ids, valid, wanted, 4, room=1)
    again = ranked_clusters(rows, ids, valid, wanted, 4, room=1 << 24)
    for group, size in enumerate((20, 9)):
        scores = plain_scores(rows[ids[group, :size]], 4)
        by_score = sorted(range(size), key=lambda i: (-scores[i], i))
        assert [int(rank[group, i]) for i in by_score] == list(range(size))
        centres = sorted(by_score[: int(wanted[group])])
        for i in range(size):
            distance = [(float((rows[ids[group, i]] - rows[ids[group, c]]).norm()), c) for c in centres]
            assert int(nearest[group, i]) == (i if i in centres else min(distance)[1])
            assert int(again[0][group, i]) == int(rank[group, i]) and int(again[1][group, i]) == int(nearest[group, i])


def test_equal_rows_rank_by_index():
    rank, nearest = ranked_clusters(
        torch.ones(6, 3), torch.arange(6)[None], torch.ones(1, 6, dtype=torch.bool), torch.tensor([2]), 3, 1000
    )
    assert rank[0].tolist() == list(range(6))
    assert nearest[0].tolist() == [0, 1, 0, 0, 0, 0]


def test_noise_is_reproducible_and_small():
    square = squared_distances(torch.randn(2, 9, 4, generator=torch.Generator().manual_seed(0)))
    valid = torch.ones(2, 9, dtype=torch.bool)
    noise = uniform_noise(1e-6, 2, 9)
    assert torch.equal(noise, uniform_noise(1e-6, 2, 9)) and noise.min() >= 0 and noise.max() < 1e-6
    noisy = peak_scores(square, valid, 3, noise)
    assert torch.equal(noisy, peak_scores(square, None, 3, noise))
    assert not torch.equal(noisy, peak_scores(square, valid, 3))
    torch.testing.assert_close(noisy, peak_scores(square, valid, 3), atol=1e-4, rtol=0)


@pytest.mark.parametrize("room", [1, 1 << 24])
def test_scores_of_rows_in_place_equal_plain_loops(room):
    rows = torch.randn(24, 5, generator=torch.Generator().manual_seed(2))
    ids = torch.arange(24).view(2, 12)
    whole = group_scores(rows, ids, None, 4, room)
    assert torch.equal(whole, group_scores(rows, ids, torch.ones(2, 12, dtype=torch.bool), 4, room))
    for group in range(2):
        torch.testing.assert_close(whole[group], torch.tensor(plain_scores(rows[ids[group]], 4)), atol=2e-5, rtol=1e-4)
    noise = uniform_noise(0.1, 2, 12)
    noisy = group_scores(rows, ids, None, 4, room, noise)
    assert torch.equal(noisy, group_scores(rows, ids, None, 4, 1 << 12, noise))
    assert torch.equal(whole, frame_scores(rows.view(2, 12, 5), 4, room))
    assert torch.equal(noisy, frame_scores(rows.view(2, 12, 5), 4, room, noise))
    half = rows.bfloat16()
    assert torch.equal(group_scores(half, ids, None, 4, room), frame_scores(half.view(2, 12, 5), 4, room))
