"""The prompt: every video is reduced, its newlines are placed, and what is left takes its place among the embeddings.

What a prompt consists of is written down on the host, in one copy per video; embeddings stay on their device.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from holitom.attach.stats import SampleStats
from holitom.errors import BadUsage
from holitom.flops import LLMShape
from holitom.models import Adapter
from holitom.types import Reduction, TokenSet, VideoFeatures

TEXT, VISUAL, NEWLINE = range(3)
"""What a token of a prompt is."""


class Tokens(NamedTuple):
    """Tokens in the order in which the model reads them. rows [S, D]: their embeddings; on the host kind [S], place [S]
    (where each would stand with all of the video's tokens there), and the TokenSet's group and gain [S] (-1 and NaN
    without), a newline having those of the token before it."""

    rows: Tensor
    kind: Tensor
    place: Tensor
    group: Tensor
    gain: Tensor


def reduce_video(video: VideoFeatures, reduction: Reduction, adapter: Adapter) -> tuple[Tokens, int]:
    """One video through the outer stage (or whole), with its newlines, and how many tokens the whole video has.

    Where a tower stage has merged frames, the outer stage is asked for the share of those left that makes the budget of
    all, and a kept token takes the place that it has in the first frame of the video that its own frame holds."""
    outer, merged = reduction.outer, video.merged
    if (merged is None) != (reduction.tower is None):
        what = f"the given features come from a tower with{'out' * (merged is None)} a stage in it"
        raise BadUsage(what, fix="take the features from run.encode(...) inside this reduce_tokens block")
    budget = reduction.budget if merged is None else min(1.0, reduction.budget * video.all_frames / video.frames)
    if outer is None:
        place = torch.arange(video.frames * video.cells, device=video.tokens.device)
        kept = TokenSet(video.tokens.flatten(0, 1), place // video.cells, place % video.cells)
    else:
        with torch.autocast(video.tokens.device.type, enabled=False):  # it would round float32 similarities
            kept = outer(video, budget)
    if merged is not None:
        kept = replace(kept, frame=torch.tensor(merged.first, device=kept.frame.device)[kept.frame])
    return _arrange(kept, video, adapter)


def _arrange(kept: TokenSet, video: VideoFeatures, adapter: Adapter) -> tuple[Tokens, int]:
    """Put the kept tokens of a video and the model's newline embedding in the model's order.

    "end" (LLaVA-OneVision): the tokens as the method ordered them, then one newline. "row" (LLaVA-Video): tokens by
    frame and cell, and a newline after every grid row that still holds one, as in HoliTom's release; these newlines
    come on top of the budget. "none", or "end" without a newline: the tokens alone.
    """
    (height, width), newline, order = video.grid, adapter.newline, adapter.newline_order
    line, step = kept.frame * height + kept.cell // width, width + (order == "row")  # rows with a place for a newline
    place, full = line * step + kept.cell % width, video.all_frames * height * step
    if order == "row":
        newlines = torch.unique(line) * step + width
    else:
        newlines = torch.arange(full, full + (order == "end" and newline is not None), device=place.device)
        full += len(newlines)
    rows, place = kept.tokens, torch.cat([place, newlines])
    if len(newlines):
        rows = torch.cat([rows, newline.to(rows).expand(len(newlines), -1)])
    source = torch.arange(len(place), device=place.device)
    if order == "row":
        source = place.argsort(stable=True)
        rows, place = rows[source], place[source]
    place, source = torch.stack([place, source]).cpu()
    kind = torch.where(source < len(kept), VISUAL, NEWLINE)
    owner = torch.where(kind == VISUAL, source, source.roll(1))
    group = torch.full_like(kind, -1) if kept.group is None else kept.group.cpu()[owner]
    gain = torch.full(kind.shape, torch.nan) if kept.gain is None else kept.gain.float().cpu()[owner]
    return Tokens(rows, kind, place, group, gain), full


@dataclass(eq=False)
class Held:
    """What one decoder layer holds of a batch of prompts, on the host; there they are padded on the left to ``length``.

    tokens: every prompt as it enters the first layer; ids: which of them are left [S_b]; positions: the rotary ones
    [S_b], or [S_b, axes]; shift [B]: by how much positions are smaller than in the first layer at the end of the prompt
    (None: nothing was renumbered).
    """

    tokens: list[Tokens]
    ids: list[Tensor]
    positions: list[Tensor]
    shift: Tensor | None = None

    def __post_init__(self) -> None:
        self.length = max(map(len, self.ids))
        self.pads = [self.length - len(ids) for ids in self.ids]

    def own(self, batched: Tensor, b: int) -> Tensor:
        """What belongs to one prompt, without its padding: [B or 1, length, ...] -> [S_b, ...]."""
        return batched[b if len(batched) > 1 else 0, self.pads[b] :]

    def kind(self, b: int) -> Tensor:
        """What the tokens of one prompt are [S_b]."""
        return self.tokens[b].kind[self.ids[b]]

    def numbers(self) -> Tensor:
        """The positions as the model takes them: [B, length], or [axes, B, length]."""
        padded = pad_left(self.positions)
        return padded.movedim(2, 0) if padded.ndim == 3 else padded

    def mask(self, behind: int = 0) -> Tensor:
        """Which columns, and those behind the prompt, are no padding [B, length + behind]."""
        return torch.arange(self.length + behind) >= torch.tensor(self.pads)[:, None]

    def kept(self, keep: Sequence[Tensor]) -> Held:
        """What is left of the prompts when these of their tokens stay, by their place here."""
        ids, positions = ([x[k] for x, k in zip(part, keep, strict=True)] for part in (self.ids, self.positions))
        return Held(self.tokens, ids, positions, self.shift)


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
        parts = (self.base.tokens, self.base.ids, self.base.positions)
        base = Held(*([one for one in part for _ in range(times)] for part in parts))
        following = self.following.repeat_interleave(times)
        return replace(self, following=following, base=base, layers=[base] * len(self.layers))


def splice(
    given: Mapping[str, Any], features: Sequence[VideoFeatures], adapter: Adapter, reduction: Reduction
) -> tuple[dict[str, Any], Prompt]:
    """Reduce the videos of a batch and put them into its prompts, one for every run of placeholders: the arguments of a
    call -> those with which the language model is called (embeddings, mask, positions), and what is to be known of the
    prompts.

    An outer stage with positions "contiguous" has the new prompt numbered without gaps; with "original" each row keeps
    the position that it would have with all of the video's tokens, however many placeholders stand for it. Places on a
    grid (M-RoPE) are kept in any case; they need one placeholder for every embedding of a video.
    """
    ids, grid = given["input_ids"].cpu(), adapter.grid_positions(given)
    if grid is None and given.get("position_ids") is not None:
        raise BadUsage("position_ids are given with a video", fix="leave them out: they follow from the prompt")
    pads, spots = left_pads(given.get("attention_mask"), ids), [runs(row, adapter.video_token_id) for row in ids]
    found = [stop - start for row in spots for start, stop in row]
    if len(found) != len(features):
        raise BadUsage(
            f"{len(features)} videos, but {len(found)} runs of video placeholders in {len(ids)} prompts",
            fix="give one unbroken run of placeholders per video, with text between two videos; a video that several "
            "prompts ask about is given once for each",
        )
    wanted = [video.all_frames * video.cells for video in features]
    if grid is not None and found != wanted:
        what = f"{found} placeholders for videos of {wanted} tokens, each with a place of its own"
        raise BadUsage(what, fix="give the prompt that the model's own processor makes")
    embeds, videos, prompts = adapter.embed(given["input_ids"], given), iter(features), []
    for own, pad, row in zip(embeds, pads, spots, strict=True):
        mine = [(start - pad, stop - pad, next(videos)) for start, stop in row]
        prompts.append(_prompt(own[pad:], mine, adapter, reduction))
    tokens, samples = map(list, zip(*prompts, strict=True))
    numbers = [torch.arange(len(own.rows)) for own in tokens]
    if grid is not None:
        positions = [grid[:, b].cpu().T[own.place + pads[b]] for b, own in enumerate(tokens)]
    else:
        keeps = reduction.outer is not None and reduction.outer.positions == "original"
        positions = [own.place for own in tokens] if keeps else numbers
    base = Held([own._replace(rows=None) for own in tokens], numbers, positions)
    where = base.numbers()
    if grid is not None:  # a row that counts goes before the axes
        where = torch.cat([pad_left(numbers)[None], where])
    device, following = embeds.device, torch.stack([own[-1].max() + 1 for own in positions])
    # the mask is given in any case: without one, gaps in positions would be read as the bounds of packed sequences
    call = {"attention_mask": base.mask().long().to(device), "position_ids": where.to(device)}
    call["inputs_embeds"] = pad_left([own.rows for own in tokens])
    return call, Prompt(following.to(device), base, [base] * len(adapter.layers), samples)


def _prompt(
    embeds: Tensor, videos: Sequence[tuple[int, int, VideoFeatures]], adapter: Adapter, reduction: Reduction
) -> tuple[Tokens, SampleStats | None]:
    """One prompt without padding. embeds [S, D]: of its words; videos: where their placeholders start and stop, and
    their features."""
    parts, cursor, place, free = [], 0, 0, 0  # free: the first number above those of all groups, for none is shared
    counts, tower = Counter(), []
    for start, stop, video in videos:
        parts.append(_words(embeds[cursor:start], place))
        tokens, full = reduce_video(video, reduction, adapter)
        place += start - cursor
        own = {"rows": tokens.rows.to(embeds), "place": tokens.place + place, "group": tokens.group + free}
        parts.append(tokens._replace(**own))
        cursor, place, free = stop, place + full, int(own["group"].max()) + 1
        whole = video.all_frames * video.cells
        asked = min(round(reduction.budget * whole), video.frames * video.cells)
        counts.update(frames=video.all_frames, full=whole, requested=asked, full_newlines=full - whole)
        tower.append(() if video.merged is None else video.merged.entered)
    parts.append(_words(embeds[cursor:], place))
    tokens = Tokens(*map(torch.cat, zip(*parts, strict=True)))
    if not videos:
        return tokens, None
    return tokens, SampleStats(
        **counts,
        budget=reduction.budget,
        kept=int((tokens.kind == VISUAL).sum()),
        newlines=int((tokens.kind == NEWLINE).sum()),
        prompt_before=len(embeds),
        prompt_after=len(tokens.kind),
        shape=LLMShape.from_config(adapter.text.config),
        tower_frames=tuple(map(sum, zip(*tower, strict=True))),
    )


def _words(rows: Tensor, place: int) -> Tokens:
    """Text of a prompt from this place on, without groups and gains."""
    kind, none = torch.full((len(rows),), TEXT), torch.full((len(rows),), -1)
    return Tokens(rows, kind, torch.arange(place, place + len(rows)), none, none * torch.nan)


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
