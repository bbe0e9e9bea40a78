"""MMG-Vid's numbers: what follows from others is derived, the headline is never called reproduced."""

import pandas as pd
import pytest

from holitom_repro import paper
from holitom_repro.claims import Verdict
from holitom_repro.claims.mmg_vid import Block, _of_block, blocks, derived_flops, mmg_vid_claims, share_of_means


def test_every_derivable_number_comes_out():
    judged = {claim.id: claim for claim in mmg_vid_claims()}
    assert len(judged) == len(mmg_vid_claims())
    derived = [claim for claim in judged.values() if claim.source == "derived"]
    assert len(derived) == 13 and {claim.verdict for claim in derived} == {Verdict.REPRODUCED}
    assert judged["mmg_vid/relative_at_25"].verdict is Verdict.QUOTED
    speed_up = judged["mmg_vid/prefill_speedup"]
    assert speed_up.source == "quoted" and speed_up.verdict in (Verdict.QUOTED, Verdict.NOT_RUN)


def test_flops_are_those_of_a_share_rounded_down_in_every_frame():
    assert derived_flops("video-7b", 15) == pytest.approx(10.954, abs=1e-3)
    assert derived_flops("video-7b", 10) == pytest.approx(6.892, abs=1e-3)
    counts = [paper.layer_tokens("mmg_vid", "video-7b", "MMG-Vid", share)[0] for share in (15, 10)]
    assert counts == [64 * int(169 * 0.15), 64 * int(169 * 0.10)]


def test_an_open_score_leaves_the_share_open():
    own = next(block for block in blocks() if block.key == "own")
    assert share_of_means(own, 25) is None
    other = next(block for block in blocks() if block.key == "infomerge2")
    assert share_of_means(other, 15) == pytest.approx(100 * (56.1 + 61.1) / (60.4 + 64.1))


@pytest.mark.parametrize("column", ["flops_t", "relative", "videomme"])
def test_a_wrong_digit_is_not_reproduced(column):
    block = next(block for block in blocks() if block.key == "infomerge2")
    rows = block.rows.copy()
    rows.loc[15, column] += 0.3
    wrong = {c.id for c in _of_block(Block(block.key, block.model, "", rows)) if c.verdict is Verdict.NOT_REPRODUCED}
    assert f"mmg_vid/video-7b/infomerge2/15/{column}" in wrong


def test_the_blocks_hold_every_printed_score():
    long = paper.table("mmg_vid")
    scores = long[long["unit"] == "%"]
    kept = sum(int(block.rows.drop(columns="flops_t", errors="ignore").notna().to_numpy().sum()) for block in blocks())
    assert kept == len(scores) and pd.notna(scores["value"]).all()
