import pytest
import torch

from holitom.errors import BadUsage
from holitom.layout import arrange
from holitom.types import TokenSet


def token_set(places, cells, dim=2):
    ids = torch.tensor(places, dtype=torch.long)
    return TokenSet(ids[:, None].float().expand(-1, dim).contiguous(), ids // cells, ids % cells)


NEWLINE = torch.tensor([-1.0, -2.0])


def test_end():
    placed = arrange(token_set([7, 2, 9], 6), (2, 3), NEWLINE, "end")
    assert placed.rows[:, 0].tolist() == [7, 2, 9, -1]
    assert placed.visual.tolist() == [True, True, True, False]
    assert placed.frame.tolist() == [1, 0, 1, 1]
    assert placed.cell.tolist() == [1, 2, 3, 5]
    assert len(arrange(token_set([7, 2], 6), (2, 3), None, "end")) == 2


def test_none():
    placed = arrange(token_set([7, 2, 9], 6), (2, 3), NEWLINE, "none")
    assert placed.rows[:, 0].tolist() == [7, 2, 9]
    assert placed.visual.all()


def test_row_sorts_and_closes_every_row_that_holds_a_token():
    placed = arrange(token_set([7, 9, 2, 0, 17], 6), (2, 3), NEWLINE, "row")
    assert placed.rows[:, 0].tolist() == [0, 2, -1, 7, -1, 9, -1, 17, -1]
    assert placed.visual.tolist() == [True, True, False, True, False, True, False, True, False]
    assert placed.frame.tolist() == [0, 0, 0, 1, 1, 1, 1, 2, 2]
    assert placed.cell.tolist() == [0, 2, 2, 1, 2, 3, 5, 5, 5]


def test_all_tokens_with_row_newlines_have_one_per_row():
    """The unreduced LLaVA-Video prompt: 13 newlines for a frame of 13 x 13."""
    placed = arrange(token_set(range(2 * 169), 169), (13, 13), NEWLINE, "row")
    assert len(placed) == 2 * (169 + 13)
    assert (~placed.visual).nonzero().flatten().tolist() == [14 * (i + 1) - 1 for i in range(26)]


def test_no_token_at_all():
    nothing = token_set([], 6)
    assert len(arrange(nothing, (2, 3), NEWLINE, "row")) == 0
    assert arrange(nothing, (2, 3), NEWLINE, "end").visual.tolist() == [False]


def test_newlines_take_the_precision_of_the_tokens():
    kept = TokenSet(torch.ones(1, 2, dtype=torch.bfloat16), torch.tensor([0]), torch.tensor([0]))
    assert arrange(kept, (2, 3), NEWLINE, "row").rows.dtype == torch.bfloat16
    assert arrange(kept, (2, 3), NEWLINE, "end").rows.dtype == torch.bfloat16


def test_a_missing_newline_is_refused():
    with pytest.raises(BadUsage, match="needs the newline embedding"):
        arrange(token_set([1], 6), (2, 3), None, "row")
