"""CPU and CUDA give the same tokens: every method here, every precision, and no hidden copies to the host."""

from dataclasses import replace

import pytest
import torch

from holitom_repro.bench import NAMES, bench_methods, prompt_of, synthetic_video, with_every_field
from holitom.layout import arrange
from holitom.methods import DyCokeDecode, HoliTom, HoliTomMerge
from stages import INNER, OUTER, call, reach

pytestmark = pytest.mark.gpu
METHODS = [*OUTER, HoliTom(static_by="saliency", dynamic_by="cluster")]


def on_cuda(item):
    """A dataclass of tensors on the device."""
    moved = {name: value.cuda() for name, value in vars(item).items() if isinstance(value, torch.Tensor)}
    return replace(item, **moved)


def assert_same(cpu, cuda):
    """As many tokens, and the same ones but for ties: between candidates that are alike to the last digits rounding
    decides, so one token in thirty may be another, or stand for others. On a stand-in that rounds otherwise, two of 299
    cases needed that."""
    assert cuda.tokens.is_cuda and len(cpu) == len(cuda)
    allowed = max(1, len(cpu) // 30)
    where = {place: i for i, place in enumerate(zip(cpu.frame.tolist(), cpu.cell.tolist(), strict=True))}
    found = [where.get(place) for place in zip(cuda.frame.tolist(), cuda.cell.tolist(), strict=True)]
    mine = [i for i in found if i is not None]
    theirs = [j for j, i in enumerate(found) if i is not None]
    assert len(found) - len(mine) <= allowed
    tolerance = 1e-5 if cpu.tokens.dtype == torch.float32 else 2 * torch.finfo(cpu.tokens.dtype).eps
    expected, tokens = cpu.tokens[mine].float(), cuda.tokens.cpu()[theirs].float()
    close = torch.isclose(tokens, expected, atol=tolerance, rtol=tolerance).all(1)
    close &= cpu.size[mine] == cuda.size.cpu()[theirs]
    assert int((~close).sum()) <= allowed, tokens[~close] - expected[~close]


@pytest.mark.parametrize("method", METHODS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(1, (3, 5)), (7, (1, 1)), (32, (14, 14)), (40, (4, 4))])
def test_outer_methods(method, dtype, shape):
    frames, grid = shape
    video = with_every_field(synthetic_video(frames, grid, 64, seed=frames, dtype=dtype), key_dim=24)
    for budget in (0.1,) if frames * grid[0] * grid[1] > 5000 else (0.1, 0.25, 1.0):
        share = reach(method, budget)
        assert_same(method(video, share), method(on_cuda(video), share))


def test_the_size_of_a_7b_model():
    video = synthetic_video(32, (14, 14), 3584, dtype=torch.bfloat16)
    assert_same(HoliTom()(video, 0.15), HoliTom()(on_cuda(video), 0.15))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("stage", INNER, ids=str)
@pytest.mark.parametrize("grouped", [True, False])
def test_inner_methods(stage, dtype, grouped):
    prompt = prompt_of(synthetic_video(8, (6, 6), 64, dtype=dtype), heads=3)
    moved = on_cuda(prompt)
    (keep, rows), (keep_cuda, rows_cuda) = (
        call(stage, (p.hidden, p.text_score, p.visual, p.group, p.gain), grouped) for p in (prompt, moved)
    )
    assert keep.tolist() == keep_cuda.tolist()
    tolerance = 1e-5 if dtype == torch.float32 else 2 * torch.finfo(dtype).eps
    torch.testing.assert_close(rows, rows_cuda.cpu(), atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("stage", [DyCokeDecode(), DyCokeDecode(released=True)], ids=str)
def test_decode_methods(stage):
    row, visual = torch.rand(200, generator=torch.Generator().manual_seed(0)), torch.arange(10, 190)
    assert stage(row, visual).tolist() == stage(row.cuda(), visual.cuda()).tolist()


def test_the_bench_runs_on_the_device():
    rows = bench_methods(frames=8, dim=64, repeats=2, device="cuda", dtype=torch.bfloat16)
    assert {row["method"] for row in rows} == set(NAMES) and all(row["peak"] > 0 for row in rows)


@pytest.mark.parametrize("order", ["end", "row"])
def test_layouts(order):
    video = synthetic_video(6, (4, 5), 16)
    newline = torch.ones(16)
    cpu = arrange(HoliTom()(video, 0.3), video.grid, newline, order)
    cuda = arrange(HoliTom()(on_cuda(video), 0.3), video.grid, newline.cuda(), order)
    assert torch.equal(cpu.visual, cuda.visual.cpu())
    assert torch.equal(cpu.cell, cuda.cell.cpu())


def test_copies_to_the_host():
    """One per video in the outer stage; in the inner stage one flag each for its scores and its states."""
    video = on_cuda(synthetic_video(16, (8, 8), 64))
    hidden, score, visual = (x.cuda() for x in (torch.randn(80, 16), torch.rand(80), torch.arange(5, 70)))
    HoliTom()(video, 0.2)
    HoliTomMerge(3, 0.5)(hidden, score, visual, n0=65)
    with torch.profiler.profile() as profile:
        HoliTom()(video, 0.2)
        torch.cuda.synchronize()
    assert copies(profile) == 1
    with torch.profiler.profile() as profile:
        HoliTomMerge(3, 0.5)(hidden, score, visual, n0=65)
        torch.cuda.synchronize()
    assert copies(profile) == 2


def copies(profile):
    return sum("DtoH" in event.name for event in profile.events())


def test_twice_the_same():
    """Sums over groups have a fixed order: no atomics."""
    video = on_cuda(synthetic_video(24, (14, 14), 256))
    first, second = HoliTom()(video, 0.2), HoliTom()(video, 0.2)
    assert torch.equal(first.tokens, second.tokens)
    assert torch.equal(first.cell, second.cell)
