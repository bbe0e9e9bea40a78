"""Every operation that reaches the device exists on CUDA for its types, and no tensor of the host is among its inputs:
run on a pretended device, held against torch's own tables."""

from contextlib import suppress

import pytest
import torch
from cuda_support import tables, unsupported
from pretended_cuda import pretended_cuda

from holitom_repro.bench.methods import DECODE
from holitom_repro.bench.videos import prompt_of, synthetic_video, with_every_field
from holitom_repro.latency.content import recorded_similarity
from holitom_repro.latency.inputs import make_inputs
from holitom_repro.latency.passes import run_pass
from holitom_repro.latency.settings import setting
from holitom_repro.latency.shapes import load
from holitom_repro.latency.timeline import EventClock
from holitom.methods import DyCoke, DyCokeDecode
from holitom.types import Reduction
from stages import INNER, OUTER, reach

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
MANNERS = [
    ("tiny", "bfloat16", ("HoliTom", "PDrop", "PruneVid", "HieraVid", "FastVID")),
    ("tiny", "float16", ("Vanilla",)),
    ("tiny-video", "float16", ("HoliTom", "FastV")),
]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_stages(dtype):
    with pretended_cuda() as cuda:
        video = synthetic_video(8, (4, 4), 32, dtype=dtype, device="cuda")
        video = with_every_field(video, key_dim=24)
        for stage in OUTER:
            for share in {reach(stage, 0.1), 1.0}:
                kept = stage(video, share)
                assert kept.tokens.is_cuda and kept.frame.is_cuda and kept.cell.is_cuda and kept.size.is_cuda
        prompt = prompt_of(video, heads=3)
        for stage in INNER:
            score = prompt.text_score if stage.query == "text" else prompt.score
            extra = {"group": prompt.group, "gain": prompt.gain} if getattr(stage, "reads_groups", False) else {}
            ids, rows = stage(prompt.hidden, score, prompt.visual, len(prompt.visual), **extra)
            assert ids.is_cuda and rows.is_cuda
        for stage in (*DECODE.values(), DyCokeDecode(released=True)):
            assert stage(prompt.score, prompt.visual).is_cuda
    assert len(cuda.operations.seen) > 100 and not unsupported(cuda.operations.seen)


@pytest.mark.parametrize(("model", "dtype", "rows"), MANNERS, ids=lambda value: str(value)[:12])
def test_models(model, dtype, rows):
    """Tower, saliency, prompt, decoder and every way of decoding."""
    with pretended_cuda() as cuda:
        loaded = load(model, dtype=dtype, device="cuda")
        inputs = make_inputs(loaded, 6, 1, recorded_similarity())
        for row in rows:
            reduction = setting(row, 0.3 if row == "HieraVid" else 0.25, "ov-7b", loaded.layers)
            ways = ("eager", "graph") if row in ("Vanilla", "HoliTom") else ("eager",)
            run = None if row == "Vanilla" and loaded.stock else reduction
            done = run_pass(loaded, run, inputs, EventClock(), new_tokens=2, ways=ways)
            assert [each.outcome for each in done.decoded] == ["measured"] * len(ways)
        assert loaded.device.type == "cuda"
    assert not unsupported(cuda.operations.seen)


def test_a_stage_that_reads_again_runs_where_a_graph_cannot():
    with pretended_cuda() as cuda:
        loaded = load("tiny", dtype="bfloat16", device="cuda")
        inputs = make_inputs(loaded, 6, 1, recorded_similarity())
        reduction = Reduction("DyCoke", DyCoke(), 0.5, decode=DyCokeDecode(1, 0.6))
        done = run_pass(loaded, reduction, inputs, EventClock(), new_tokens=3, ways=("eager", "graph"))
    assert [each.outcome for each in done.decoded] == ["measured", "unsupported"]
    assert not unsupported(cuda.operations.seen)


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (lambda x: (x > 0).argmax(), "argmax of torch.bool"),
        (lambda x: x.long() @ x.long(), "mm of torch.int64"),
        (lambda x: torch.cdist(x, x), "_cdist_forward: in no table"),
        (lambda x: torch.linalg.qr(x), "linalg_qr of torch.bfloat16"),
        (lambda x: torch.isin(x.bool().cumsum(0) > 0, x > 0), "isin of torch.bool"),
    ],
)
def test_what_cuda_has_no_kernel_for_is_told(call, told):
    with pretended_cuda() as cuda, suppress(RuntimeError):  # where the CPU has none either
        call(cuda.put(torch.eye(3, dtype=torch.bfloat16)))
    assert any(told in line for line in unsupported(cuda.operations.seen)), unsupported(cuda.operations.seen)
    assert torch.float16 in tables()["mm"] and torch.bool not in tables()["mm"]
