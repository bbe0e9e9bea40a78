"""The prompt: every video is reduced, its newlines are placed, and what is left takes its place among the embeddings.

What a prompt consists of is written down on the host, in one copy per video; embeddings stay on their device.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from holitom.attach.stats import SampleStats
from holitom.errors import BadUsage
from holitom.flops import LLMShape
from holitom.models import Adapter
from holitom.types import Reduction, TokenSet, VideoFeatures

PAD, TEXT, VISUAL, NEWLINE = range(4)
"""What a slot of a prompt holds."""


@dataclass(frozen=True)
class Placed:
    """The rows [P, D] of one video in the order in which the model reads them, newlines among them.

    On the host: place [P], the place of each row among the embeddings of the whole video, newlines counted; kind [P];
    group, gain [P] as in the TokenSet (None: no groups), where a newline has those of the token before it. frames: of
    the whole video; cells: per frame; full: its embeddings; entered: as in its MergedFrames.
    """

    rows: Tensor
    place: Tensor
    kind: Tensor
    frames: int
    cells: int
    full: int
    group: Tensor | None
    gain: Tensor | None
    entered: tuple[int, ...]


def reduce_video(video: VideoFeatures, reduction: Reduction, adapter: Adapter) -> Placed:
    """One video through the outer stage (or whole), with its newlines. Where a tower stage has merged frames, the outer
    stage is asked for the share of those left that makes the budget of all, and a kept token takes the place that it
    has in the first frame of the video that its own frame holds."""
    outer, merged, budget, frames = reduction.outer, video.merged, reduction.budget, video.frames
    needs = () if outer is None else sorted(name for name in outer.requires if getattr(video, name, None) is None)
    what = f"{type(outer).__name__} needs {', '.join(needs)}, which the given features lack" if needs else ""
    if (merged is None) != (reduction.tower is None):
        what = f"the given features come from a tower with{'out' * (merged is None)} a stage in it"
    if what:
        raise BadUsage(what, fix="take the features from run.encode(...) inside this reduce_tokens block")
    if merged is not None:
        frames = len(merged.into)
        budget = min(1.0, budget * frames / video.frames)
    if outer is None:
        place = torch.arange(video.frames * video.cells, device=video.tokens.device)
        kept = TokenSet(video.tokens.flatten(0, 1), place // video.cells, place % video.cells)
    else:
        with torch.autocast(video.tokens.device.type, enabled=False):  # it would round float32 similarities
            kept = outer(video, budget)
    if not len(kept):
        raise BadUsage(f"budget {reduction.budget} leaves no token of {video.frames} frames", fix="raise the budget")
    if merged is not None:
        kept = replace(kept, frame=torch.tensor(merged.first, device=kept.frame.device)[kept.frame])
    entered = () if merged is None else merged.entered
    return _arrange(kept, frames, video.grid, adapter.newline, adapter.newline_order, entered)


def _arrange(
    kept: TokenSet, frames: int, grid: tuple[int, int], newline: Tensor | None, order: str, entered: tuple[int, ...]
) -> Placed:
    """Put the kept tokens of a video and the model's newline embedding [D] in the model's order.

    "end" (LLaVA-OneVision): the tokens as the method ordered them, then one newline. "row" (LLaVA-Video): tokens by
    frame and cell, and a newline after every grid row that still holds one, as in HoliTom's release; these newlines
    come on top of the budget. "none", or "end" without a newline: the tokens alone.
    """
    height, width = grid
    if order == "row":
        row = kept.frame * height + kept.cell // width  # each row of the video has one place more, for its newline
        place, full = row * (width + 1) + kept.cell % width, frames * height * (width + 1)
        newlines = torch.unique(row) * (width + 1) + width
    else:
        full = frames * height * width + (order == "end" and newline is not None)
        place = kept.frame * (height * width) + kept.cell
        newlines = torch.arange(frames * height * width, full, device=place.device)
    rows, place = kept.tokens, torch.cat([place, newlines])
    if len(newlines):
        rows = torch.cat([rows, newline.to(rows).expand(len(newlines), -1)])
    source = torch.arange(len(place), device=place.device)
    if order == "row":
        source = place.argsort(stable=True)
        rows, place = rows[source], place[source]
    place, source = torch.stack([place, source]).cpu()
    kind = torch.where(source < len(kept), VISUAL, NEWLINE)

    def carried(values: Tensor | None) -> Tensor | None:
        if values is None:
            return None
        every = torch.cat([values.cpu(), values.cpu().new_zeros(len(newlines))])[source]
        return torch.where(kind == VISUAL, every, every.roll(1))

    group, gain = carried(kept.group), carried(kept.gain)
    return Placed(rows, place, kind, frames, height * width, full, group, gain, entered)


@dataclass(eq=False)
class Held:
    """The slots of a batch of prompts in one decoder layer, on the host, prompts padded on the left to one length S.

    kind [B, S]; ids [B, S]: tokens by their number in the prompt that enters the first layer; positions [..., B, S]:
    the rotary ones; group, gain [B, S]: the outer stage's (None: no groups); shift [B]: by how much positions are
    smaller than in the first layer at the end of the prompt (None: nothing was renumbered).
    """

    kind: Tensor
    ids: Tensor
    positions: Tensor
    group: Tensor | None = None
    gain: Tensor | None = None
    shift: Tensor | None = None

    def __post_init__(self) -> None:
        self.pads = (self.kind == PAD).sum(1).tolist()
        self.length = self.kind.shape[1]

    def real(self, batched: Tensor, b: int) -> Tensor:
        """The slots of one prompt without its padding: [B or 1, S, ...] -> [S_b, ...]."""
        return batched[b if len(batched) > 1 else 0, self.pads[b] :]

    def mask(self, behind: int = 0) -> Tensor | None:
        """Which slots, and columns behind the prompt, are no padding [B, S + behind]; None where there is none."""
        if not any(self.pads):
            return None
        return torch.nn.functional.pad(self.kind != PAD, (0, behind), value=True)

    def may_go(self, stage: Any, b: int) -> Tensor:
        """Which tokens of a prompt a stage may drop: visual ones, and newlines where it counts them as such."""
        kind = self.real(self.kind, b)
        return kind >= VISUAL if stage.include_newlines else kind == VISUAL

    def kept(self, keep: Sequence[Tensor]) -> tuple[Held, Tensor]:
        """What is left of the prompts when these of their tokens stay, by their number here, and the slots [B, S'] from
        which it comes. Positions do not change."""
        slots = pad_left([ids + pad for ids, pad in zip(keep, self.pads, strict=True)])
        real = pad_left([torch.ones_like(ids) for ids in keep])
        kind, ids = (part.gather(1, slots) * real for part in (self.kind, self.ids))
        groups = (None if part is None else part.gather(1, slots) for part in (self.group, self.gain))
        positions = self.positions.gather(-1, slots.expand(*self.positions.shape[:-1], -1))
        return Held(kind, ids, positions, *groups, self.shift), slots


@dataclass
class Prompt:
    """A batch of reduced prompts. following [B]: the position of the first token behind; base: what enters the first
    decoder layer; layers: what every layer holds. samples: for the statistics, one per prompt (None without a video).
    ended: whether its block has (a function, which copies of a cache share)."""

    following: Tensor
    base: Held
    layers: list[Held]
    samples: list[SampleStats | None]
    ended: Callable[[], bool] = bool

    def repeated(self, times: int) -> Prompt:
        """Every prompt ``times`` times in a row, as generation repeats it for beams and returned sequences."""
        parts = {name: part for name, part in vars(self.base).items() if isinstance(part, Tensor)}
        base = replace(self.base, **{name: part.repeat_interleave(times, -2) for name, part in parts.items()})
        following = self.following.repeat_interleave(times)
        return replace(self, following=following, base=base, layers=[base] * len(self.layers))


def splice(
    given: Mapping[str, Any], placed: Sequence[Placed], adapter: Adapter, reduction: Reduction
) -> tuple[dict[str, Any], Prompt]:
    """Put the videos of a batch into its prompts, one for every run of placeholders: the arguments of a call -> those
    with which the language model is called (embeddings, mask, positions), and what is to be known of the prompts.

    An outer stage with positions "contiguous" has the new prompt numbered without gaps; with "original" each row keeps
    the position that it would have with all of the video's tokens, however many placeholders stand for it. Places on a
    grid (M-RoPE) are kept in any case; they need one placeholder for every embedding of a video.
    """
    ids, grid = given["input_ids"].cpu(), adapter.grid_positions(given)
    if grid is None and given.get("position_ids") is not None:
        raise BadUsage("position_ids are given with a video", fix="leave them out: they follow from the prompt")
    pads, spots = left_pads(given.get("attention_mask"), ids), [runs(row, adapter.video_token_id) for row in ids]
    if sum(map(len, spots)) != len(placed):
        raise BadUsage(
            f"{len(placed)} videos, but {sum(map(len, spots))} runs of video placeholders in {len(ids)} prompts",
            fix="give one unbroken run of placeholders per video, with text between two videos; a video that several "
            "prompts ask about is given once for each",
        )
    embeds, videos = adapter.embed(given["input_ids"], given), iter(placed)
    shape, prompts, samples = LLMShape.from_config(adapter.text.config), [], []
    for b, pad in enumerate(pads):
        parts, mine, cursor, drift, free = [], [], pad, -pad, 0  # free: the first number above those of all groups
        for start, stop in spots[b]:
            video = next(videos)
            if grid is not None and stop - start != video.full:
                what = f"{stop - start} placeholders for a video of {video.full} tokens, each with a place of its own"
                raise BadUsage(what, fix="give the prompt that the model's own processor makes")
            group = torch.zeros_like(video.kind) if video.group is None else video.group
            group = group + max(0, free - int(group.min()))  # videos do not share groups
            gain = torch.zeros(len(group)) if video.gain is None else video.gain.float()
            parts.append(_words(embeds[b], cursor, start, drift))
            parts.append((video.rows.to(embeds), video.kind, video.place + start + drift, group, gain))
            mine.append(video)
            cursor, drift, free = stop, drift + video.full - (stop - start), int(group.max()) + 1
        parts.append(_words(embeds[b], cursor, ids.shape[1], drift))
        prompts.append([torch.cat(column) for column in zip(*parts, strict=True)])
        lengths = {"prompt_before": ids.shape[1] - pad, "prompt_after": len(prompts[b][0])}
        samples.append(_sample(mine, reduction.budget, shape=shape, **lengths) if mine else None)
    rows, kind, own, group, gain = (pad_left(column) for column in zip(*prompts, strict=True))
    count = (kind != PAD).cumsum(1).sub(1).clamp(0)
    keeps = grid is not None or (reduction.outer is not None and reduction.outer.positions == "original")
    own = numbered = own if keeps else count
    if grid is not None:
        columns = own + torch.tensor(pads)[:, None]
        own = grid.cpu().gather(2, columns.expand(len(grid), -1, -1))
        numbered = torch.cat([count[None], own])  # a row that counts goes before the axes
    group = group if any(video.group is not None for video in placed) else None
    gain = gain if any(video.gain is not None for video in placed) else None
    base = Held(kind, count, own, group, gain)
    mask = base.mask()
    if mask is None and keeps:  # gaps without a mask would be read as packed sequences
        mask = kind != PAD
    mask = None if mask is None else mask.long().to(embeds.device)
    call = {"inputs_embeds": rows, "attention_mask": mask, "position_ids": numbered.to(embeds.device)}
    following = own[..., -1].reshape(-1, len(ids)).amax(0).to(embeds.device) + 1
    return call, Prompt(following, base, [base] * len(adapter.layers), samples)


def _words(embeds: Tensor, start: int, stop: int, drift: int) -> tuple[Tensor, ...]:
    """The text [start, stop) of a prompt: embeddings, kinds, positions, and no groups and gains."""
    count = stop - start
    kind, group = torch.full((count,), TEXT), torch.full((count,), -1)
    return embeds[start:stop], kind, torch.arange(start, stop) + drift, group, torch.zeros(count)


def _sample(videos: Sequence[Placed], budget: float, **known: Any) -> SampleStats:
    """What is to be said of one prompt before the language model runs; known: of its fields."""
    frames, full = sum(v.frames for v in videos), sum(v.frames * v.cells for v in videos)
    left = [v.entered[-1] if v.entered else v.frames for v in videos]  # frames that the outer stage saw
    kept = sum(int((v.kind == VISUAL).sum()) for v in videos)
    return SampleStats(
        videos=len(videos),
        frames=frames,
        cells=videos[0].cells if len({v.cells for v in videos}) == 1 else full / frames,
        budget=budget,
        requested=sum(min(round(budget * v.frames * v.cells), n * v.cells) for v, n in zip(videos, left, strict=True)),
        tower_frames=tuple(map(sum, zip(*(v.entered for v in videos), strict=True))),
        kept=kept,
        newlines=sum(len(v.kind) for v in videos) - kept,
        full_newlines=sum(v.full for v in videos) - full,
        **known,
    )


def runs(row: Tensor, token: int) -> list[tuple[int, int]]:
    """Half-open ranges of consecutive ``token`` in one prompt [S] (on the host)."""
    edges = torch.nn.functional.pad(row == token, (1, 1)).diff().nonzero().flatten().tolist()
    return list(zip(edges[::2], edges[1::2], strict=True))


def left_pads(mask: Tensor | None, ids: Tensor) -> list[int]:
    """Padding columns of every prompt; BadUsage for right padding, holes, and prompts of padding only."""
    if mask is None:
        return [0] * len(ids)
    if mask.shape != ids.shape:
        raise BadUsage(f"a mask of shape {list(mask.shape)} for ids {list(ids.shape)}", fix="give one column per id")
    real = mask.bool().cpu()
    if (real[:, :-1] & ~real[:, 1:]).any() or not real[:, -1].all():
        what = "a prompt is padded on the right or in the middle, or is all padding"
        raise BadUsage(what, fix="pad on the left (padding_side='left'), and leave empty prompts out")
    return (~real).sum(1).tolist()


def pad_left(rows: Sequence[Tensor]) -> Tensor:
    """Tensors [S_b, ...] -> [B, max S_b, ...], zeros in front."""
    return pad_sequence(list(rows), batch_first=True, padding_side="left")
