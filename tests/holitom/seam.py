"""Building blocks of the attach tests: prompts for a tiny model of every host, stages that do exactly what a test
needs, and the oracle: one forward without a cache over all tokens, with a mask and positions for every layer.

Dropping a token is the same as never reading it, so a reduced run, prefill and decoding together, must give the logits
of that forward. It knows nothing of the code under test.
"""

from dataclasses import dataclass, field, replace

import torch
from hosts import END, FRAMES, GRIDS, HOSTS, LAYERS, PAD, START, VIDEO, pixels
from torch.nn.utils.rnn import pad_sequence
from transformers import LogitsProcessor

from holitom.attach import reduce_tokens
from holitom.models import adapter_for
from holitom.types import TokenSet

NEW = 4
GREEDY = {"max_new_tokens": NEW, "do_sample": False, "return_dict_in_generate": True, "output_logits": True}
NEAR = {"atol": 5e-5, "rtol": 0}
SECONDS = (1.0, 0.5)  # between the frames of Qwen2.5-VL's two videos


def words(count, seed=0):
    return torch.randint(3, 290, (count,), generator=torch.Generator().manual_seed(seed))


def batch(*rows):
    """Left-padded input_ids and attention_mask."""
    left = {"batch_first": True, "padding_side": "left"}
    mask = pad_sequence([torch.ones_like(row) for row in rows], **left)
    return {"input_ids": pad_sequence(rows, **left, padding_value=PAD), "attention_mask": mask}


class Host:
    """Two prompts with a video each, 0 and 1, of different length, for a tiny model of one family.

    rows[i]: all embeddings of video i [P, D], newlines included; visual[i]: which of them are tokens; grids[i]; before,
    after: words around the videos.
    """

    before, after = (5, 3), (7, 4)

    def __init__(self, name="llava_onevision", attention="sdpa"):
        self.name, self.model = name, HOSTS[name](attention)
        self.text, self.table = self.model.model.language_model, self.model.get_input_embeddings()
        qwen = name == "qwen2_5_vl"
        side = 3 if name == "llava_video" else 4
        self.frames = [t for t, _, _ in GRIDS] if qwen else [FRAMES, FRAMES]
        self.grids = [(h // 2, w // 2) for _, h, w in GRIDS] if qwen else [(side, side)] * 2
        self.head = [words(n, 10 + i) for i, n in enumerate(self.before)]
        self.tail = [words(n, 20 + i) for i, n in enumerate(self.after)]
        if qwen:
            for i in (0, 1):
                self.head[i][-1], self.tail[i][0] = START, END
        self.clips = pixels(name, seed=4)["pixels"]
        if qwen:
            self.clips = self.clips.split([t * h * w for t, h, w in GRIDS])
        self.rows = [self._rows(i) for i in (0, 1)]
        self.visual = [self._visual(i) for i in (0, 1)]

    def _visual(self, i):
        number, (rows, columns) = torch.arange(len(self.rows[i])), self.grids[i]
        by_row = self.name == "llava_video"
        return number % (columns + 1) != columns if by_row else number < self.frames[i] * rows * columns

    @torch.no_grad()
    def _rows(self, i):
        """By the stock model; LLaVA-Video, which its class pools and ends otherwise, from its parts by other means."""
        core = self.model.model
        if self.name == "qwen2_5_vl":
            return core.visual(self.clips[i], grid_thw=torch.tensor([GRIDS[i]])).pooler_output
        if self.name != "llava_video":
            rows = core.get_video_features(self.clips[i][None]).pooler_output[0].flatten(0, -2)
            bare = self.name == "llava_onevision" and len(rows) == FRAMES * 16  # before transformers 5.19
            return torch.cat([rows, core.image_newline[None]]) if bare else rows
        states = core.vision_tower(self.clips[i], output_hidden_states=True).hidden_states
        maps = core.multi_modal_projector(states[self.model.config.vision_feature_layer]).unflatten(1, (7, 7))
        means = maps[:, :6, :6].unflatten(2, (3, 2)).unflatten(1, (3, 2)).mean((2, 4))
        return torch.cat([means, core.image_newline.expand(FRAMES, 3, 1, -1)], dim=2).flatten(0, 2)

    def prompt(self, i, placeholders=None):
        run = torch.full((placeholders or len(self.rows[i]),), VIDEO)
        return torch.cat([self.head[i], run, self.tail[i]])

    def pixels(self, *which):
        """The arguments of a call, or of ``run.encode``, that bring the videos."""
        if self.name != "qwen2_5_vl":
            return {"pixel_values_videos": self.clips[list(which)]}
        grids = torch.tensor([GRIDS[i] for i in which])
        return {"pixel_values_videos": torch.cat([self.clips[i] for i in which]), "video_grid_thw": grids}

    def inputs(self, *which):
        given = batch(*(self.prompt(i) for i in which)) | self.pixels(*which)
        if self.name == "qwen2_5_vl":
            given["second_per_grid_ts"] = torch.tensor([SECONDS[i] for i in which])
            given["mm_token_type_ids"] = (given["input_ids"] == VIDEO).int() * 2
        return given

    def numbers(self, i):
        """Rotary positions of the prompt: [S], or [3, S] where they are written out here: text counts on; a token of
        the video has its time, row and column behind the text before it, and the text goes on behind the larger."""
        if self.name != "qwen2_5_vl":
            return torch.arange(self.before[i] + len(self.rows[i]) + self.after[i])
        first, (rows, columns) = self.before[i], self.grids[i]
        time = (torch.arange(self.frames[i]) * 2 * SECONDS[i]).long()
        axes = torch.meshgrid(time, torch.arange(rows), torch.arange(columns), indexing="ij")
        later = torch.arange(self.after[i]) + first + max(rows, columns)
        text = (torch.arange(first).expand(3, -1), later.expand(3, -1))
        return torch.cat([text[0], torch.stack(axes).flatten(1) + first, text[1]], dim=1)

    def kept_rows(self, i, kept):
        """Which rows of the video a TokenSet leaves, ascending, with the newlines of what is left."""
        height, width = self.grids[i]
        if self.name == "llava_video":
            place = (kept.frame * height + kept.cell // width) * (width + 1) + kept.cell % width
            return torch.cat([place, (place // (width + 1)).unique() * (width + 1) + width]).sort().values
        ends = (~self.visual[i]).nonzero().flatten()
        return torch.cat([kept.frame * height * width + kept.cell, ends])

    @torch.no_grad()
    def embed(self, i, rows, answer):
        """Embeddings of a prompt with these rows in the place of its video, and of the answer behind it [S, D]."""
        return torch.cat([self.table(self.head[i]), rows, self.table(self.tail[i]), self.table(answer)])

    @torch.no_grad()
    def recompute(self, embeds, masks, positions):
        """Logits [S, V]: masks: per layer [S, S] bool; positions: per layer [S] or [3, S]."""
        text, handles = self.text, []

        def use(layer):
            def hook(module, args, kwargs):
                lowest = torch.finfo(embeds.dtype).min
                allowed = torch.zeros(masks[layer].shape, dtype=embeds.dtype).masked_fill(~masks[layer], lowest)
                own = positions[layer]
                kwargs["attention_mask"] = allowed[None, None]
                kwargs["position_embeddings"] = text.rotary_emb(args[0], own[:, None] if own.ndim == 2 else own[None])
                return args, kwargs

            return hook

        try:
            for i, module in enumerate(text.layers):
                handles.append(module.register_forward_pre_hook(use(i), with_kwargs=True))
            hidden = text(inputs_embeds=embeds[None], use_cache=False).last_hidden_state
        finally:
            for handle in handles:
                handle.remove()
        return self.model.lm_head(hidden)[0]


def layout(prompt, total, stages=(), numbers=None):
    """Masks and positions for ``recompute``: causal, then what each stage dropped. stages: (stage, kept ids [K] of the
    prompt); numbers [.., total]: positions before any stage."""
    numbers = torch.arange(total) if numbers is None else numbers
    masks = [torch.ones(total, total).tril().bool() for _ in range(LAYERS)]
    positions = [numbers.clone() for _ in range(LAYERS)]
    for stage, kept in stages:
        gone = torch.ones(total, dtype=torch.bool)
        gone[kept], gone[prompt:] = False, False
        for i in range(LAYERS):
            if i >= stage.layer:
                # a dropped row may see itself: fully masked rows are undefined, and nobody reads this one
                masks[i] = (masks[i] & ~gone) | torch.diag(gone)
                if stage.positions == "contiguous" and numbers.ndim == 1:
                    positions[i][~gone] = torch.arange(int((~gone).sum()))
            elif stage.prune_past:
                masks[i][prompt:] &= ~gone
    return masks, positions


def continued(numbers, count):
    """Positions [.., S] with ``count`` more behind them."""
    return torch.cat([numbers, numbers[..., -1:] + 1 + torch.arange(count)], dim=-1)


@dataclass(frozen=True)
class KeepEvery:
    """Keeps the visual tokens whose index, plus a number that depends on the video, is divisible by ``step``."""

    step: int = 3
    positions: str = "contiguous"
    requires: frozenset = frozenset()

    def __call__(self, video, budget):
        flat = torch.arange(video.frames * video.cells, device=video.tokens.device)
        offset = int(video.tokens[0, 0, 0] > 0) if self.step > 1 else 0
        flat = flat[(flat + offset) % (self.step + offset) == 0]
        return TokenSet(video.tokens.flatten(0, 1)[flat], flat // video.cells, flat % video.cells)


ALL = KeepEvery(1)


@dataclass(frozen=True)
class Drop:
    """Drops the visual tokens of lowest score, keeping ``round(share * alive)``; remembers what it saw."""

    layer: int
    share: float = 0.5
    score: str = "prev"
    query: str = "last"
    positions: str = "original"
    prune_past: bool = False
    causal: bool = True
    include_newlines: bool = False
    seen: list = field(default_factory=list, compare=False)

    def __call__(self, hidden, score, visual, n0, **groups):
        rank = score.amax((0, 1)) if self.query == "text" else score
        keep = torch.ones(len(hidden), dtype=torch.bool, device=hidden.device)
        keep[visual] = False
        keep[visual[rank[visual].topk(round(self.share * len(visual))).indices]] = True
        ids = keep.nonzero().flatten()
        self.seen.append({"score": score, "visual": visual, "n0": n0, "keep": ids, "hidden": hidden, **groups})
        return ids, hidden[ids]


class GroupDrop(Drop):
    reads_groups = True


def absolute(stages, length, which=0):
    """What each stage kept of one prompt, as ids of the prompt."""
    kept, now = [], torch.arange(length)
    for stage in stages:
        now = now[stage.seen[which]["keep"]]
        kept.append(now)
    return kept


@dataclass(frozen=True)
class Nearest:
    """A decode stage: of the visual tokens only the ``count`` with the highest attention are read."""

    layer: int = 2
    count: int = 6
    seen: list = field(default_factory=list, compare=False)

    def __call__(self, row, visual):
        read = visual[row[visual].topk(min(self.count, len(visual))).indices].sort().values
        self.seen.append((len(row), visual, read))
        return read


def calling(kind, call, *fields):
    """A stage of a kind that calls a function first."""

    class Calling(kind):
        def __call__(self, *given, **more):
            call()
            return super().__call__(*given, **more)

    return Calling(*fields)


class Between(LogitsProcessor):
    """Calls a function before every token of a generation."""

    def __init__(self, call):
        self.call = call

    def __call__(self, ids, scores):
        self.call()
        return scores


def marks(model):
    """Every hook and every instance attribute of every module."""
    hooks = ("_forward_hooks", "_forward_pre_hooks")
    return {name: (sorted(vars(m)), [len(getattr(m, h)) for h in hooks]) for name, m in model.named_modules()}


def video_of(host, which=0):
    """The features of one of the host's videos."""
    given = host.pixels(which)
    pixels = given.pop("pixel_values_videos")
    return adapter_for(host.model).encode(pixels, frozenset(), **given)[0]


def check(host, outer=None, stages=(), decode=None):
    """Prefill and decoding with a cache against one forward that masks what was dropped or left unread, at the
    positions that the family has for what is kept; then the counts."""
    stages, decode = [replace(stage, seen=[]) for stage in stages], decode and replace(decode, seen=[])
    with reduce_tokens(host.model, outer, 0.3 if outer else 1.0, stages, decode) as run:
        out = host.model.generate(**host.inputs(0), **GREEDY)
    first, after, full = host.before[0], host.after[0], host.numbers(0)
    rows = host.kept_rows(0, outer(video_of(host), 0.3)) if outer else torch.arange(len(host.rows[0]))
    embeds = host.embed(0, host.rows[0][rows], out.sequences[0, -NEW:])
    length, numbers = len(embeds) - NEW, torch.arange(len(embeds) - NEW)
    if outer is None or outer.positions == "original" or full.ndim == 2:
        behind = torch.arange(full.shape[-1])[-after:]
        numbers = full[..., torch.cat([torch.arange(first), first + rows, behind])]
    kept, entering, cached = absolute(stages, length), [length] * LAYERS, [length] * LAYERS
    masks, positions = layout(length, len(embeds), zip(stages, kept, strict=True), continued(numbers, NEW))
    for stage, ids in zip(stages, kept, strict=True):
        entering[stage.layer :] = cached[stage.layer :] = [len(ids)] * (LAYERS - stage.layer)
        if stage.prune_past:
            cached[: stage.layer] = [min(count, len(ids)) for count in cached[: stage.layer]]
        if not stage.causal:
            masks[stage.layer - 1][:length, :length] = True
    for step, (columns, visual, read) in enumerate(decode.seen if decode else ()):
        assert columns == length + step + 1
        assert torch.equal(visual, first + host.visual[0].nonzero().flatten())
        for i in range(decode.layer, LAYERS):
            masks[i][length + step, visual[~torch.isin(visual, read)]] = False
    torch.testing.assert_close(torch.cat(out.logits), host.recompute(embeds, masks, positions)[length - 1 : -1], **NEAR)
    last = run.stats.last
    held = [out.past_key_values.get_seq_length(i) - NEW + 1 for i in range(LAYERS)]
    assert held == cached and list(last.prompt_per_layer) == entering
    assert list(last.per_layer) == [last.kept - length + n for n in entering]
    run.stats.check_acted()
    if decode:
        assert len(decode.seen) == NEW - 1
        left = sum(len(visual) - len(read) for _, visual, read in decode.seen)
        assert run.stats.removed[f"decode@{decode.layer}"] == left > 0


BEAMS = {**GREEDY, "num_beams": 3, "num_return_sequences": 2, "output_scores": True}


def check_batch(host, reduction):
    """Left-padded prompts whose videos shrink to different lengths, at every stage, and beams that change places: as
    each prompt alone."""
    with reduce_tokens(host.model, reduction=reduction) as run:
        together, searched = (host.model.generate(**host.inputs(0, 1), **settings) for settings in (GREEDY, BEAMS))
        for b, sample in enumerate(run.stats.samples[:2]):
            alone, found = (host.model.generate(**host.inputs(b), **settings) for settings in (GREEDY, BEAMS))
            torch.testing.assert_close(torch.stack(together.logits)[:, b], torch.cat(alone.logits), **NEAR)
            assert torch.equal(searched.sequences[2 * b : 2 * b + 2, -NEW:], found.sequences[:, -NEW:])
            scores = searched.sequences_scores[2 * b : 2 * b + 2]
            torch.testing.assert_close(scores, found.sequences_scores, atol=1e-5, rtol=0)
            assert run.stats.last.prompt_per_layer == sample.prompt_per_layer
    run.stats.check_acted()
    assert len(run.stats.samples) == 8
    return together
