"""Prefill of a prompt with videos: the outer stage runs, the prompt is spliced, and what happened is written down."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from holitom.attaching.calls import Call
from holitom.attaching.kinds import Kinds, video_runs
from holitom.attaching.precision import own_precision
from holitom.attaching.prompt import GivenPrompt, Insert, SplicedPrompt, insert_of, splice
from holitom.attaching.stats import RunStats, SampleStats
from holitom.errors import BadUsage
from holitom.flops import LLMShape
from holitom.layout import arrange
from holitom.models import Adapter
from holitom.models.encoding import EncodedVideos, clock
from holitom.ops.transfer import riding, to_device
from holitom.types import Reduction, TokenSet, VideoFeatures


@dataclass
class Prefill:
    """A prefill under way: its call, and the statistics that are complete once it has run."""

    call: Call
    samples: list[SampleStats]
    beams: int
    started: Any
    device: torch.device

    def finish(self, stats: RunStats) -> None:
        """Add the samples of this prefill to the run's statistics, one per prompt."""
        views, seconds = self.call.state.views, clock(self.device) - self.started
        for i, sample in enumerate(self.samples):
            b = i * self.beams
            layers = [kinds[b] for kinds in self.call.kinds_per_layer]
            stats.later.add(*_counted(sample, layers))
            sample.prompt_per_layer = tuple(map(len, layers))
            sample.cached_per_layer = tuple(view.length - view.pads[b] for view in views)
            sample.seconds["prefill"] = seconds
        stats.add(sample for sample in self.samples if sample.videos)


def begin_prefill(
    kwargs: dict[str, Any],
    encoded: EncodedVideos,
    adapter: Adapter,
    reduction: Reduction,
    stats: RunStats,
    repeats: int = 1,
) -> Prefill | None:
    """Reduce the videos of a batch and rewrite the core's arguments in ``kwargs`` for the shorter prompts; None, and
    nothing is rewritten, if no prompt has a place for a video.

    repeats: how many rows generation has made of each prompt (beams, returned sequences); every video is reduced once
    all the same. The prompts reach the host in the copy that the outer stage makes.
    """
    videos, device = encoded.videos, kwargs["input_ids"].device
    on_grid = adapter.grid_positions(kwargs)
    names = ("input_ids", "attention_mask", *(("position_ids",) if on_grid is None else ()))
    present = [name for name in names if kwargs.get(name) is not None]
    started = clock(device)
    with riding(*(kwargs[name] for name in present)) as ride:
        inserts = [_reduced(video, adapter, reduction) for video in videos]
        arrived = dict(zip(present, ride.arrived(), strict=True))
    given = GivenPrompt(*(arrived.get(name) for name in ("input_ids", "attention_mask", "position_ids")))
    ids = given.ids
    runs = [video_runs(row, adapter.video_token_id) for row in ids]
    total = sum(map(len, runs))
    if not total:
        return None
    if total != repeats * len(videos) or len(ids) % repeats:
        raise BadUsage(
            f"{len(videos)} videos, but {total // repeats} runs of video placeholders in {len(ids) // repeats} prompts",
            fix="give one unbroken run of placeholders per video, with text between two videos; a video that several "
            "prompts ask about is given once for each",
        )
    if reduction.outer is not None:
        stats.calls["outer"] += 1
        entering = sum(insert.tokens for insert in inserts)
        stats.removed["outer"] += sum(video.frames * video.cells for video in videos) - entering
    per_row: list[list[Insert]] = []
    per_prompt: list[list[VideoFeatures]] = []
    cursor = 0
    for first in range(0, len(runs), repeats):
        stop = cursor + len(runs[first])
        per_row += [inserts[cursor:stop]] * repeats
        per_prompt.append(list(videos[cursor:stop]))
        cursor = stop
    if [len(run) for run in runs] != [len(insert) for insert in per_row]:
        raise BadUsage(
            "the videos do not match the prompts' placeholders", fix="give the videos in the order of the prompts"
        )
    if on_grid is not None:
        _check_placeholders(runs, per_row)
    positions = reduction.outer.positions if reduction.outer is not None else "contiguous"
    prompt = splice(
        given,
        per_row,
        device=device,
        video_token_id=adapter.video_token_id,
        pad_id=adapter.text.config.pad_token_id or 0,
        positions=positions if on_grid is None else "original",
        layers=len(adapter.layers),
    )
    numbers = prompt.position_ids if on_grid is None else keep_on_grid(prompt, on_grid)
    kwargs |= {
        "input_ids": prompt.input_ids,
        "attention_mask": prompt.attention_mask,
        "position_ids": numbers,
        "mm_encoder_outputs": {
            **(kwargs.get("mm_encoder_outputs") or {}),
            "video": EncodedVideos(pooler_output=adapter.packed(prompt.features[0])),
        },
    }
    now = clock(device)
    seconds = {**(encoded.seconds or {}), "outer": now - started}
    samples = [
        _describe(per_prompt[i], per_row[i * repeats], prompt, i * repeats, reduction.budget, adapter, dict(seconds))
        for i in range(len(per_prompt))
    ]
    call = Call(prompt.state, prefill=True, kinds=prompt.kinds, initial=prompt.kinds, groups=prompt.groups)
    return Prefill(call, samples, repeats, now, device)


def keep_on_grid(prompt: SplicedPrompt, positions: Tensor) -> Tensor:
    """Positions [1 + axes, B, S'] of a reduced prompt whose tokens keep their places in time, rows and columns:
    columns of ``positions`` [axes, B, S], behind a row that counts the tokens. Tells the prompt's state."""
    base, state = prompt.state.base, prompt.state
    pads = to_device(torch.tensor([state.given - before for before in prompt.before]), like=positions)[0]
    columns = (base.positions.to(positions.device) + pads[:, None]).expand(len(positions), -1, -1)
    kept = positions.gather(2, columns)
    state.on_grid = True
    state.next_position = kept[:, :, -1].amax(0) + 1
    return torch.cat([base.ids.to(positions.device).clamp_min(0)[None], kept])


def _check_placeholders(runs: Sequence[Sequence[tuple[int, int]]], inserts: Sequence[Sequence[Insert]]) -> None:
    for row, mine in zip(runs, inserts, strict=True):
        for (start, stop), insert in zip(row, mine, strict=True):
            if stop - start != insert.full_length:
                raise BadUsage(
                    f"{stop - start} placeholders for a video of {insert.full_length} tokens, whose positions are read "
                    "from the prompt",
                    fix="give the prompt that the model's own processor makes",
                )


def _reduced(video: VideoFeatures, adapter: Adapter, reduction: Reduction) -> Insert:
    """One video through the outer stage (or whole), with newlines, ready to be spliced in."""
    outer = reduction.outer
    if outer is None:
        kept = whole(video)
    else:
        missing = [name for name in sorted(outer.requires) if getattr(video, name) is None]
        if missing:
            raise BadUsage(
                f"{type(outer).__name__} needs {', '.join(missing)}, which the given features lack",
                fix="take the features from run.encode(...) inside this reduce_tokens block",
            )
        with own_precision(video.tokens.device):
            kept = outer(video, reduction.budget)
    if not len(kept):
        raise BadUsage(f"budget {reduction.budget} leaves no token of {video.frames} frames", fix="raise the budget")
    placed = arrange(kept, video.grid, adapter.newline, adapter.newline_order)
    return insert_of(placed, len(kept), frames=video.frames, grid=video.grid, order=adapter.newline_order)


def whole(video: VideoFeatures) -> TokenSet:
    """All tokens of a video, frame by frame."""
    place = torch.arange(video.frames * video.cells, device=video.tokens.device)
    return TokenSet(video.tokens.flatten(0, 1), frame=place // video.cells, cell=place % video.cells)


def _describe(
    videos: Sequence[VideoFeatures],
    inserts: Sequence[Insert],
    prompt: SplicedPrompt,
    row: int,
    budget: float | int,
    adapter: Adapter,
    seconds: dict[str, Any],
) -> SampleStats:
    kinds, frames = prompt.kinds[row], sum(video.frames for video in videos)
    full = sum(video.frames * video.cells for video in videos)
    return SampleStats(
        videos=len(videos),
        frames=frames,
        cells=full / frames if len({video.cells for video in videos}) > 1 else videos[0].cells if videos else 0,
        budget=budget,
        requested=sum(round(budget * (video.frames * video.cells)) for video in videos),
        kept=int(kinds.visual),
        newlines=int(kinds.newlines),
        full_newlines=sum(insert.full_length for insert in inserts) - full,
        prompt_before=prompt.before[row],
        prompt_after=len(kinds),
        shape=LLMShape.from_config(adapter.text.config),
        seconds=seconds,
    )


def _counted(sample: SampleStats, layers: Sequence[Kinds]) -> tuple[list[Tensor], Callable[..., None]]:
    """Fills in the visual tokens and newlines that entered each layer: the counts that only the device knows, and what
    is to be done when they are read."""
    counts = [count for kinds in layers for count in (kinds.visual, kinds.newlines)]

    def fill(*found: Tensor) -> None:
        read = iter(found)
        known = [int(next(read)) if isinstance(count, Tensor) else count for count in counts]
        sample.per_layer, sample.newlines_per_layer = tuple(known[::2]), tuple(known[1::2])

    return [count for count in counts if isinstance(count, Tensor)], fill
