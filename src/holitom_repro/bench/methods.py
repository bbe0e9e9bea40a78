"""Every method on the same tokens in one process: milliseconds, and what they mean.

A time alone belongs to one machine. Beside it stand two ratios measured in the same rounds: to reading the tokens once
(their sum), and to HoliTom's outer stage; and the most memory held beyond the input, over the input's size.

An outer stage gets the whole video. A stage inside the language model gets one step on all of the video's tokens
(6272 at 32 frames of 196), as if nothing had acted before it, and, where its paper puts it behind an outer stage, a
second row with the tokens that it then meets.

Two inner stages cannot come near HoliTom's outer stage on a CPU, whoever computes them, because an exact answer needs
inner products by the million: HoliTomMerge compares every folded token with every kept one (70 GFLOP at 6272 tokens of
3584), and HieraVidSelect needs those of every two tokens of a segment (13 GFLOP at the least where the schedule puts
it, on half of the tokens). The row "its products" below a stage is the time of these products alone, without the
gathering, the norms and the search: about the least that an exact answer costs.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from holitom_repro.bench.memory import peak_bytes
from holitom_repro.bench.videos import Prompt, prompt_of, synthetic_video, with_every_field
from holitom.errors import BadUsage
from holitom.methods import (
    AveragePool,
    DyCoke,
    DyCokeDecode,
    FastV,
    FastVID,
    HieraVid,
    HieraVidSelect,
    HoliTom,
    HoliTomMerge,
    MMGVid,
    PruneVid,
    PruneVidSelect,
    PyramidDropStage,
    RandomDrop,
    SaliencyTopK,
    ToMe,
    UniformStride,
    VisionZip,
)
from holitom.ops.similarity import gram
from holitom.types import VideoFeatures

Row = dict[str, Any]
OUTER = {
    "HoliTom": HoliTom(tau=0.8),
    "FastVID": FastVID(),
    "PruneVid": PruneVid(),
    "MMGVid": MMGVid(),
    "HieraVid": HieraVid(),
    "VisionZip": VisionZip(),
    "DyCoke": DyCoke(),
    "ToMe": ToMe(),
    "ToMe(tokens)": ToMe(metric="tokens"),
    "RandomDrop": RandomDrop(),
    "UniformStride": UniformStride(),
    "SaliencyTopK": SaliencyTopK(),
    "AveragePool": AveragePool(),
}
INNER = {  # the stage, and the shares of the video's tokens that it meets
    "FastV": (FastV(2, 0.5), (1.0,)),
    "PyramidDropStage": (PyramidDropStage(7, 0.5), (1.0,)),
    "HoliTomMerge": (HoliTomMerge(18, 0.5), (1.0, 0.15)),
    "PruneVidSelect": (PruneVidSelect(10), (1.0, 0.15)),
    "HieraVidSelect": (HieraVidSelect(7, 0.3), (1.0, 0.5)),
}
DECODE = {"DyCokeDecode": DyCokeDecode()}
NAMES = (*OUTER, *INNER, *DECODE)
_LONG = 10.0  # seconds: what one case may take over all rounds before it is not repeated


@dataclass(frozen=True)
class Case:
    """One row: a call on what it works on. ``budget``: the share of tokens kept, None for a stage's own ratio."""

    name: str
    kind: str
    tokens: int
    nbytes: int
    budget: float | None
    call: Callable[[], object]


def cases(video: VideoFeatures, budget: float, names: Iterable[str]) -> list[Case]:
    """The rows of these methods. DyCoke cannot go below a quarter of the tokens and is measured there."""
    wanted = list(dict.fromkeys(names))
    for name in wanted:
        if name not in NAMES:
            raise BadUsage(f"bench ops has no method {name!r}", fix=f"choose from {', '.join(NAMES)}")
    total, found = video.frames * video.cells, []
    for name in (n for n in OUTER if n in wanted):
        share = max(budget, 0.25) if name == "DyCoke" else budget
        found.append(Case(name, "outer", total, video.tokens.nbytes, share, partial(OUTER[name], video, share)))
    shares = sorted({share for name in INNER if name in wanted for share in INNER[name][1]}, reverse=True)
    prompts = {share: prompt_of(video, share) for share in shares}
    for name in (n for n in INNER if n in wanted):
        stage, places = INNER[name]
        for share in places:
            prompt = prompts[share]
            count = len(prompt.visual)
            found.append(Case(name, "inner", count, prompt.hidden.nbytes, None, _inner(stage, prompt)))
            if products := _products(stage, prompt):
                found.append(Case(name, "product", count, prompt.hidden.nbytes, None, products))
    row, ids = (make(total, device=video.tokens.device) for make in (torch.rand, torch.arange))
    for name in (n for n in DECODE if n in wanted):
        found.append(Case(name, "decode", total, row.nbytes + ids.nbytes, None, partial(DECODE[name], row, ids)))
    return found


def bench_methods(
    names: Sequence[str] = NAMES,
    *,
    frames: int = 32,
    dim: int = 3584,
    budget: float = 0.15,
    repeats: int = 5,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    bar: bool = False,
) -> list[Row]:
    """One row per case: milliseconds (median), ``reads`` and ``holitom`` (ratios to the medians of reading the tokens
    once and of HoliTom's outer stage), ``peak`` (most extra memory, the result included, over the input's size).

    All cases take turns, round after round, so that a machine that slows down slows all of them; a case that takes
    long is timed less often (``timed``).
    """
    video = with_every_field(synthetic_video(frames, (14, 14), dim, dtype=dtype, device=device))
    chosen = cases(video, budget, names)
    read = Case("read", "read", frames * 196, video.tokens.nbytes, None, video.tokens.sum)
    (measure,) = cases(video, budget, ["HoliTom"])
    times: list[list[float]] = [[] for _ in range(len(chosen) + 2)]
    with torch.inference_mode(), tqdm(total=(repeats + 2) * len(chosen), disable=not bar, unit="call") as progress:
        for turn in range(repeats + 1):
            for case, seconds in zip([read, measure, *chosen], times, strict=True):
                progress.set_postfix_str(case.name)
                if turn == 0 or sum(seconds) < _LONG:
                    taken = _timed(case.call, video.tokens)
                    # The first call also loads what it needs, so it counts only where there is no second.
                    seconds[:] = [taken] if turn < 2 and (turn == 0 or seconds[0] < _LONG) else [*seconds, taken]
                if case.kind != "read" and case is not measure:
                    progress.update()
        once, holitom = (statistics.median(seconds) for seconds in times[:2])
        rows = []
        for case, seconds in zip(chosen, times[2:], strict=True):
            progress.set_postfix_str(f"memory of {case.name}")
            peak = peak_bytes(case.call, video.tokens.device)
            progress.update()
            middle = statistics.median(seconds)
            rows.append(
                {
                    "kind": case.kind,
                    "method": case.name,
                    "frames": frames,
                    "dim": dim,
                    "dtype": str(dtype).removeprefix("torch."),
                    "device": device,
                    "threads": torch.get_num_threads(),
                    "tokens": case.tokens,
                    "budget": case.budget,
                    "milliseconds": 1e3 * middle,
                    "timed": len(seconds),
                    "reads": middle / once,
                    "holitom": middle / holitom,
                    "peak": peak / case.nbytes,
                }
            )
    return rows


def methods_table(rows: Sequence[Row]) -> str:
    """The rows as a plain table; empty without rows of this section."""
    own = [row for row in rows if row["kind"] in ("outer", "inner", "product", "decode")]
    if not own:
        return ""
    head = ("method", "stage", "tokens", "budget", "ms", "/ one read", "/ HoliTom", "peak / input")
    body = [
        (
            "  its products" if row["kind"] == "product" else row["method"],
            row["kind"],
            f"{row['tokens']}",
            "-" if row["budget"] is None else f"{row['budget']:g}",
            f"{row['milliseconds']:.2f}",
            f"{row['reads']:.1f}x",
            f"{row['holitom']:.2f}x",
            f"{row['peak']:.2f}x",
        )
        for row in own
    ]
    line = "{:<17} {:<7} {:>7} {:>7} {:>10} {:>11} {:>10} {:>13}"
    return "\n".join(line.format(*cells) for cells in (head, *body))


def _timed(call: Callable[[], object], like: Tensor) -> float:
    if like.is_cuda:
        torch.cuda.synchronize()
    began = time.perf_counter()
    call()
    if like.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - began


def _inner(stage: Any, prompt: Prompt) -> Callable[[], object]:
    score = prompt.text_score if stage.query == "text" else prompt.score
    groups = {"group": prompt.group, "gain": prompt.gain} if getattr(stage, "reads_groups", False) else {}
    return partial(stage, prompt.hidden, score, prompt.visual, len(prompt.visual), **groups)


def _products(stage: Any, prompt: Prompt) -> Callable[[], object] | None:
    """The inner products that dominate a stage, and nothing else: as many as it needs, of whichever rows."""
    if not isinstance(stage, HoliTomMerge | HieraVidSelect):
        return None
    rows = prompt.hidden[prompt.visual].float()
    if isinstance(stage, HoliTomMerge):
        kept = round(len(rows) * (1 - stage.ratio))
        return partial(torch.mm, rows[kept:], rows[:kept].T)
    segments = [rows[prompt.group == g][None] for g in prompt.group.unique()]
    return lambda: [gram(part) for part in segments]
