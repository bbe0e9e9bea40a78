"""One prompt with two videos of different grids (Qwen2.5-VL): what the statistics say of both together."""

from __future__ import annotations

import pytest
import torch
from hosting import VIDEO
from seam import Drop, KeepEvery

from holitom.attach import reduce_tokens
from holitom.attaching.stats import token_budget
from holitom.methods import HoliTom


def both(host):
    """The two prompts of the host in a row, as one: videos of 3 x 24 and 2 x 8 tokens."""
    given = host.inputs(0, 1)
    ids = torch.cat([host.prompt(0), host.prompt(1)])[None]
    given["input_ids"], given["attention_mask"] = ids, torch.ones_like(ids)
    return given | {"mm_token_type_ids": (ids == VIDEO).int() * 2}


@pytest.mark.parametrize("outer", [KeepEvery(), HoliTom()])
def test_shares_are_over_all_tokens_of_all_videos(qwen, outer):
    with reduce_tokens(qwen.model, outer, 0.5, Drop(2)) as run:
        qwen.model(**both(qwen))
    last = run.stats.last
    asked = [round(0.5 * frames * cells) for frames, cells in ((3, 24), (2, 8))]
    assert (last.videos, last.frames, last.full, last.requested) == (2, 5, 88, sum(asked))
    assert last.cells == pytest.approx(88 / 5)
    alone = []
    for which in (0, 1):
        with reduce_tokens(qwen.model, outer, 0.5, Drop(2)) as run:
            qwen.model(**qwen.inputs(which))
        alone.append(run.stats.last)
    assert [sample.full for sample in alone] == [72, 16] and [sample.cells for sample in alone] == [24, 8]
    assert last.kept == sum(sample.kept for sample in alone) == last.per_layer[0]
    assert last.realised == last.kept / 88 != last.kept / (5 * 24)
    assert last.realised == pytest.approx(sum(sample.realised * sample.full for sample in alone) / 88)
    assert last.as_dict()["realised"] == last.realised
    assert token_budget([last]).full_tokens == 88 and token_budget([last]).share == pytest.approx(last.realised)
    assert run.stats.removed["outer"] == alone[1].full - alone[1].kept
