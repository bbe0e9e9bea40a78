import pytest
import torch
from torch.nn.functional import cosine_similarity

from golden.loader import Golden, cases
from holitom.ops import similarity
from holitom.ops.similarity import gram, nearest_row, neighbour_cosine, row_norms


@pytest.mark.parametrize("name", sorted({name for name, _ in cases("holitom_outer_*")}))
def test_equals_the_release(name):
    golden = Golden(name)
    torch.testing.assert_close(neighbour_cosine(golden["features"]), golden["sim"], atol=1e-6, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("block", [1, 40, 1 << 21])
def test_blocks_and_precision(dtype, block, monkeypatch):
    """However the rows are cut into blocks, half precision is upcast before anything is multiplied."""
    monkeypatch.setattr(similarity, "_BLOCK", {"cpu": block})
    tokens = torch.randn(9, 5, 8, generator=torch.Generator().manual_seed(0)).to(dtype)
    found = neighbour_cosine(tokens)
    expected = torch.nn.functional.cosine_similarity(tokens[:-1].double(), tokens[1:].double(), dim=-1)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), expected, atol=1e-6, rtol=0)


def test_float16_does_not_overflow():
    tokens = torch.full((2, 1, 64), 60000.0, dtype=torch.float16)
    torch.testing.assert_close(neighbour_cosine(tokens), torch.ones(1, 1))


def test_zero_vectors_one_frame_and_nan():
    assert neighbour_cosine(torch.zeros(3, 2, 4)).tolist() == [[0, 0], [0, 0]]
    assert neighbour_cosine(torch.ones(1, 2, 4)).shape == (0, 2)
    broken = torch.ones(2, 2, 4)
    broken[1, 0, 3] = torch.nan
    assert row_norms(broken).isfinite().tolist() == [[True, True], [False, True]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_nearest_row_is_the_most_similar_one_however_it_is_cut(dtype):
    draw = torch.Generator().manual_seed(0)
    rows = torch.randn(300, 8, generator=draw).to(dtype)
    ids, heads = torch.arange(1, 300, 2), torch.arange(0, 300, 10)
    expected = cosine_similarity(rows[ids].float()[:, None], rows[heads].float()[None], dim=-1).max(1)
    likeness, nearest = nearest_row(rows, ids, heads)
    assert torch.equal(nearest, expected.indices)
    torch.testing.assert_close(likeness, expected.values)
    assert [x.shape for x in nearest_row(rows, ids[:0], heads)] == [(0,), (0,)]
    assert nearest_row(torch.ones(4, 2), torch.arange(4), torch.arange(3))[1].tolist() == [0, 0, 0, 0]
    rows[7] = torch.nan
    assert nearest_row(rows, ids, heads)[0].isfinite().tolist() == [i != 7 for i in ids.tolist()]


def test_gram_is_exactly_symmetric():
    x = torch.randn(3, 50, 70, generator=torch.Generator().manual_seed(1))
    found = gram(x)
    assert torch.equal(found, found.transpose(1, 2))
    torch.testing.assert_close(found, x @ x.transpose(1, 2), atol=1e-4, rtol=1e-5)
    assert gram(x[:, :0]).shape == (3, 0, 0)
    for n in (1, 31, 32, 64, 97, 128, 160, 300):
        y = torch.randn(2, n, 40, generator=torch.Generator().manual_seed(n))
        torch.testing.assert_close(gram(y), y @ y.transpose(1, 2), atol=1e-4, rtol=1e-5)
