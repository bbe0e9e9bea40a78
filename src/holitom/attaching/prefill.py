"""Prefill of a prompt with videos: the outer stage runs, the prompt is spliced, and what happened is written down."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from holitom.attaching.calls import Call
from holitom.attaching.prompt import NEWLINE, VISUAL, Insert, SplicedPrompt, insert_of, splice, video_runs
from holitom.attaching.stats import RunStats, SampleStats
from holitom.errors import BadUsage
from holitom.flops import LLMShape
from holitom.layout import arrange
from holitom.models import Adapter
from holitom.models.encoding import EncodedVideos, clock
from holitom.types import Reduction, TokenSet, VideoFeatures


@dataclass
class Prefill:
    """A prefill under way: its call, and the statistics that are complete once it has run."""

    call: Call
    samples: list[SampleStats]
    beams: int
    started: float
    device: torch.device

    def finish(self, stats: RunStats) -> None:
        """Add the samples of this prefill to the run's statistics, one per prompt."""
        views, seconds = self.call.state.views, clock(self.device) - self.started
        for i, sample in enumerate(self.samples):
            b = i * self.beams
            layers = [kinds[b] for kinds in self.call.kinds_per_layer]
            sample.per_layer = tuple(_count(kind, VISUAL) for kind in layers)
            sample.newlines_per_layer = tuple(_count(kind, NEWLINE) for kind in layers)
            sample.prompt_per_layer = tuple(len(kind) for kind in layers)
            sample.cached_per_layer = tuple(view.length - view.pads[b] for view in views)
            sample.seconds["prefill"] = seconds
        stats.samples += [sample for sample in self.samples if sample.videos]


def begin_prefill(
    kwargs: dict[str, Any], encoded: EncodedVideos, adapter: Adapter, reduction: Reduction, stats: RunStats
) -> Prefill:
    """Reduce the videos of a batch and rewrite the core's arguments in ``kwargs`` for the shorter prompts.

    With beams or several returned sequences, rows are already repeated; every video is reduced once all the same.
    """
    ids, videos = kwargs["input_ids"], encoded.videos
    runs = [video_runs(row, adapter.video_token_id) for row in ids.cpu()]
    total = sum(map(len, runs))
    beams = total // len(videos)
    if total != beams * len(videos) or len(ids) % beams or not _repeated(ids, beams):
        raise BadUsage(
            f"{len(videos)} videos, but {total} runs of video placeholders in {len(ids)} prompts",
            fix="give one unbroken run of placeholders per video, with text between two videos",
        )
    started = clock(ids.device)
    inserts = [_reduced(video, adapter, reduction) for video in videos]
    if reduction.outer is not None:
        stats.calls["outer"] += 1
        entering = sum(_count(insert.kind, VISUAL) for insert in inserts)
        stats.removed["outer"] += sum(video.frames * video.cells for video in videos) - entering
    per_row: list[list[Insert]] = []
    per_prompt: list[list[VideoFeatures]] = []
    cursor = 0
    for first in range(0, len(runs), beams):
        stop = cursor + len(runs[first])
        per_row += [inserts[cursor:stop]] * beams
        per_prompt.append(list(videos[cursor:stop]))
        cursor = stop
    if [len(run) for run in runs] != [len(insert) for insert in per_row]:
        raise BadUsage(
            "the videos do not match the prompts' placeholders", fix="give the videos in the order of the prompts"
        )
    on_grid = adapter.grid_positions(kwargs)
    if on_grid is not None:
        _check_placeholders(runs, per_row)
    positions = reduction.outer.positions if reduction.outer is not None else "contiguous"
    prompt = splice(
        ids,
        kwargs.get("attention_mask"),
        kwargs.get("position_ids") if on_grid is None else None,
        per_row,
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
    now = clock(ids.device)
    seconds = {**(encoded.seconds or {}), "outer": now - started}
    samples = [
        _describe(per_prompt[i], per_row[i * beams], prompt, i * beams, reduction.budget, adapter, dict(seconds))
        for i in range(len(per_prompt))
    ]
    call = Call(prompt.state, prefill=True, kinds=prompt.kinds, initial=prompt.kinds, groups=prompt.groups)
    return Prefill(call, samples, beams, now, ids.device)


def keep_on_grid(prompt: SplicedPrompt, positions: Tensor) -> Tensor:
    """Positions [1 + axes, B, S'] of a reduced prompt whose tokens keep their places in time, rows and columns:
    columns of ``positions`` [axes, B, S], behind a row that counts the tokens. Tells the prompt's state."""
    base, state = prompt.state.base, prompt.state
    pads = torch.tensor([state.given - before for before in prompt.before], device=positions.device)
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


def _repeated(ids: Tensor, beams: int) -> bool:
    """Whether every prompt stands there ``beams`` times in a row, as beam search repeats them."""
    return beams == 1 or bool((ids.unflatten(0, (-1, beams)) == ids[::beams, None]).all())


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
        kept = outer(video, reduction.budget)
    if not len(kept):
        raise BadUsage(f"budget {reduction.budget} leaves no token of {video.frames} frames", fix="raise the budget")
    placed = arrange(kept, video.grid, adapter.newline, adapter.newline_order)
    return insert_of(placed, frames=video.frames, grid=video.grid, order=adapter.newline_order)


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
    seconds: dict[str, float],
) -> SampleStats:
    kind = prompt.kinds[row]
    full = sum(video.frames * video.cells for video in videos)
    return SampleStats(
        videos=len(videos),
        frames=sum(video.frames for video in videos),
        cells=videos[0].cells if videos else 0,
        budget=budget,
        requested=sum(round(budget * (video.frames * video.cells)) for video in videos),
        kept=_count(kind, VISUAL),
        newlines=_count(kind, NEWLINE),
        full_newlines=sum(insert.full_length for insert in inserts) - full,
        prompt_before=prompt.before[row],
        prompt_after=len(kind),
        shape=LLMShape.from_config(adapter.text.config),
        seconds=seconds,
    )


def _count(kind: Tensor, which: int) -> int:
    return int((kind == which).sum())
