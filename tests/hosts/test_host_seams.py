"""Every family: the stock model at budget 1, dropping equals masking, caches per layer, batches, turns, no traces."""

from __future__ import annotations

import copy

import pytest
import torch
from hosting import LAYERS, VIDEO, causal, continued, hide
from seam import All, Drop, KeepEvery

from holitom.attach import reduce_tokens
from holitom.errors import BadUsage
from holitom.methods import HoliTom, HoliTomMerge
from holitom.types import Reduction, VideoFeatures

NEW = 4
GENERATE = {"max_new_tokens": NEW, "do_sample": False, "return_dict_in_generate": True, "output_logits": True}
NEAR = {"atol": 5e-5, "rtol": 0}


def kept_rows(host, outer, which=0):
    """Rows of the video that survive ``outer``, ascending, with the newlines of the rows that are left."""
    kept = outer(VideoFeatures(host.features(which), host.grid(which)), 0.3)
    places = host.places(which, kept.frame, kept.cell)
    lines = (~host.visual(which)).nonzero().flatten()
    if len(lines):
        width = host.grid(which)[1] + 1
        lines = lines[torch.isin(lines // width, places // width)]
    return torch.cat([places, lines]).sort().values


def test_the_stock_model_at_budget_one(host):
    """Features as the stock model's (of the class that has them), and its prompt, logits and answer."""
    inputs = host.inputs(0)
    with reduce_tokens(host.model, All()) as run:
        ours = host.model.generate(**inputs, **GENERATE)
        bare = host.model(**inputs).logits
    answer = ours.sequences[0, -NEW:]
    embeds = host.embed(0, host.rows(0), answer)
    expected = host.recompute(embeds, causal(len(embeds)), continued(host.numbers(0), NEW))
    length = len(embeds) - NEW
    torch.testing.assert_close(torch.cat(ours.logits), expected[length - 1 : -1], **NEAR)
    torch.testing.assert_close(bare[0], expected[:length], **NEAR)
    last = run.stats.last
    assert last.kept == last.requested == int(host.visual(0).sum())
    assert last.newlines == int((~host.visual(0)).sum())
    assert last.prompt_before == last.prompt_after == length
    if type(host).__name__ != "VideoHost":  # the stock class has no row newlines
        stock = host.model.generate(**inputs, **GENERATE)
        assert torch.equal(ours.sequences, stock.sequences)
        torch.testing.assert_close(torch.cat(ours.logits), torch.cat(stock.logits), **NEAR)


@pytest.mark.parametrize("positions", ["contiguous", "original"])
def test_outer_stage(host, positions):
    """Kept tokens at the positions that the family has for them, against one forward over explicit embeddings."""
    outer, inputs = KeepEvery(positions=positions), host.inputs(0)
    with reduce_tokens(host.model, outer, 0.3) as run:
        out = host.model.generate(**inputs, **GENERATE)
    rows = kept_rows(host, outer)
    answer = out.sequences[0, -NEW:]
    embeds = host.embed(0, host.rows(0)[rows], answer)
    length, first = len(embeds) - NEW, host.before[0]
    full = host.numbers(0)
    if positions == "original" or full.ndim == 2:
        columns = torch.cat([torch.arange(first), first + rows, torch.arange(len(host.prompt(0)))[-host.after[0] :]])
        numbers = full[..., columns]
    else:
        numbers = torch.arange(length)
    expected = host.recompute(embeds, causal(len(embeds)), continued(numbers, NEW))
    torch.testing.assert_close(torch.cat(out.logits), expected[length - 1 : -1], **NEAR)
    assert run.stats.last.prompt_after == length and run.stats.last.cached_per_layer == (length,) * LAYERS


INNER = {
    "one": [Drop(3)],
    "this": [Drop(0, 0.7, score="this"), Drop(2)],
    "text": [Drop(2, query="text"), Drop(4, 0.5)],
}


@pytest.mark.parametrize("name", INNER)
def test_inner_stages(host, name):
    """What a stage drops is what later layers cannot read; every layer caches what entered it."""
    stages = [Drop(**{**vars(stage), "seen": []}) for stage in INNER[name]]
    with reduce_tokens(host.model, inner=stages) as run:
        out = host.model.generate(**host.inputs(0), **GENERATE)
    embeds = host.embed(0, host.rows(0), out.sequences[0, -NEW:])
    length = len(embeds) - NEW
    masks, now, entering = causal(len(embeds)), torch.arange(length), [length] * LAYERS
    for stage in stages:
        now = now[stage.seen[0]["keep"]]
        gone = torch.ones(length, dtype=torch.bool)
        gone[now] = False
        masks = hide(masks, length, gone, stage.layer)
        entering[stage.layer :] = [len(now)] * (LAYERS - stage.layer)
    expected = host.recompute(embeds, masks, continued(host.numbers(0), NEW))
    torch.testing.assert_close(torch.cat(out.logits), expected[length - 1 : -1], **NEAR)
    cache = out.past_key_values
    assert [cache.get_seq_length(i) - NEW + 1 for i in range(LAYERS)] == entering
    assert list(run.stats.last.prompt_per_layer) == entering and run.stats.acted


def test_scores_are_the_eager_models(host):
    """The rows that stages see are those of full attention maps."""
    stages = [Drop(2, 1.0), Drop(3, 1.0, score="this")]
    embeds = host.embed(0, host.rows(0), torch.tensor([], dtype=torch.long))
    attention = host.model.model.language_model.layers[1].self_attn
    with torch.no_grad(), reduce_tokens(host.model, inner=stages):
        host.model(**host.inputs(0))
    seen = {}

    def record(module, args, kwargs):
        seen["q"], seen["k"] = module.q_proj(kwargs["hidden_states"]), module.k_proj(kwargs["hidden_states"])
        seen["cos"], seen["sin"] = kwargs["position_embeddings"]

    handle = attention.register_forward_pre_hook(record, with_kwargs=True)
    host.recompute(embeds, causal(len(embeds)), host.numbers(0))
    handle.remove()

    def turned(states):  # rotary embedding in its textbook form
        states = states[0].unflatten(-1, (-1, 8)).transpose(0, 1)
        a, b = states.chunk(2, dim=-1)
        return states * seen["cos"][0] + torch.cat([-b, a], dim=-1) * seen["sin"][0]

    query, key = turned(seen["q"]), turned(seen["k"]).repeat_interleave(2, dim=0)
    row = (query[:, -1:] @ key.transpose(-1, -2) / 8**0.5).softmax(-1).mean(0)[0]
    torch.testing.assert_close(stages[0].seen[0]["score"], row, atol=1e-6, rtol=0)
    assert stages[1].seen[0]["score"].shape == row.shape


SETTINGS = {
    "outer": Reduction("outer", KeepEvery(), 0.3),
    "gaps": Reduction("gaps", KeepEvery(positions="original"), 0.3),
    "both": Reduction("both", KeepEvery(), 0.3, (Drop(1, 0.6), Drop(3, score="this", positions="contiguous"))),
    "past": Reduction("past", KeepEvery(), 0.3, (Drop(1, 0.8), Drop(3, 0.5, query="text", prune_past=True))),
    "holitom": Reduction("holitom", HoliTom(tau=0.8), 0.4, (HoliTomMerge(layer=2, ratio=0.5),)),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_a_batch_equals_singles(host, name):
    """Left-padded prompts with videos of different size."""
    with reduce_tokens(host.model, reduction=SETTINGS[name]) as run:
        both = host.model.generate(**host.inputs(0, 1), **GENERATE)
        lengths = [sample.prompt_per_layer for sample in run.stats.samples]
        for b in range(2):
            alone = host.model.generate(**host.inputs(b), **GENERATE)
            logits = torch.stack([step[b] for step in both.logits])
            torch.testing.assert_close(logits, torch.cat(alone.logits), **NEAR)
            assert run.stats.last.prompt_per_layer == lengths[b]
    assert run.stats.acted


@pytest.mark.parametrize("name", ["gaps", "both", "past"])
@pytest.mark.parametrize("whole", [True, False])
def test_a_second_turn(host, name, whole):
    """The conversation goes on from the cache through generate, as token by token; nothing is reduced twice."""
    model, start, turn = host.model, host.inputs(0), torch.tensor([[7, 11, 23]])
    settings = {**GENERATE, "suppress_tokens": [VIDEO]}  # a random model may say it
    with torch.no_grad(), reduce_tokens(model, reduction=SETTINGS[name]) as run:
        first = model.generate(**start, **settings)
        calls = run.stats.calls.copy()
        ids = torch.cat([first.sequences, turn], dim=1)
        mask = torch.ones_like(ids)
        given = ids if whole else ids[:, -4:]  # the last token of the answer is not in the cache yet
        second = model.generate(input_ids=given, attention_mask=mask, past_key_values=first.past_key_values, **settings)
        assert run.stats.calls == calls
        cache = model(**start, use_cache=True).past_key_values
        later = torch.cat([ids[:, start["input_ids"].shape[1] :], second.sequences[:, -NEW:]], dim=1)
        logits = [model(input_ids=token[None, None], past_key_values=cache).logits[0] for token in later[0]]
        fresh = model(**start, use_cache=True).past_key_values
        at_once = model(input_ids=later[:, :3], past_key_values=copy.deepcopy(fresh)).logits[0]
    expected = torch.cat(logits)[-NEW - 1 : -1]
    torch.testing.assert_close(torch.cat(second.logits), expected, **NEAR)
    torch.testing.assert_close(at_once, torch.cat(logits)[:3], **NEAR)


@torch.no_grad()
def test_a_whole_conversation_with_four_rows_of_positions(qwen):
    """As generate numbers them: a row that counts the tokens, and time, row, column; without a mask."""
    model, turn = qwen.model, torch.tensor([[7, 11, 23]])
    ids = torch.cat([qwen.prompt(0)[None], turn], dim=1)
    numbers = torch.cat([torch.arange(ids.shape[1])[None], continued(qwen.numbers(0), 3)])[:, None]
    with reduce_tokens(model, reduction=SETTINGS["gaps"]):
        cache = model(**qwen.inputs(0), use_cache=True).past_key_values
        held = cache.get_seq_length()  # generate cuts the ids here, as if the cache held the whole prompt
        rest = {"input_ids": ids[:, held:], "position_ids": numbers[..., held:]}
        whole = model(**rest, past_key_values=copy.deepcopy(cache)).logits
        alone = model(input_ids=turn, past_key_values=cache).logits
    torch.testing.assert_close(whole, alone, **NEAR)


def test_beams(host):
    settings = {**GENERATE, "num_beams": 3, "output_scores": True}
    with reduce_tokens(host.model, reduction=SETTINGS["both"]):
        both = host.model.generate(**host.inputs(0, 1), **settings)
        for b in range(2):
            alone = host.model.generate(**host.inputs(b), **settings)
            assert torch.equal(both.sequences[b, -NEW:], alone.sequences[0, -NEW:])
            torch.testing.assert_close(both.sequences_scores[b], alone.sequences_scores[0], atol=1e-5, rtol=0)


class Nearest:
    """A decode stage: only the visual tokens of highest attention are read."""

    layer, fidelity, count = 2, "control", 6

    def __init__(self):
        self.reads = []

    def __call__(self, row, visual):
        read = visual[row[visual].topk(self.count).indices].sort().values
        self.reads.append((visual, read))
        return read


def test_decode_stage(host):
    stage = Nearest()
    with reduce_tokens(host.model, decode=stage) as run:
        out = host.model.generate(**host.inputs(0), **GENERATE)
    embeds = host.embed(0, host.rows(0), out.sequences[0, -NEW:])
    length, masks = len(embeds) - NEW, causal(len(embeds))
    visual = host.before[0] + host.visual(0).nonzero().flatten()
    assert len(stage.reads) == NEW - 1
    for step, (seen, read) in enumerate(stage.reads):
        assert torch.equal(seen, visual)
        for layer in range(stage.layer, LAYERS):
            masks[layer][length + step, visual[~torch.isin(visual, read)]] = False
    expected = host.recompute(embeds, masks, continued(host.numbers(0), NEW))
    torch.testing.assert_close(torch.cat(out.logits), expected[length - 1 : -1], **NEAR)
    assert run.stats.acted


def test_features_may_be_provided(host):
    inputs = host.inputs(0)
    with reduce_tokens(host.model, KeepEvery(), 0.3) as run:
        expected = host.model.generate(**inputs, **GENERATE).sequences
        beside = {k: inputs[k] for k in ("video_grid_thw",) if k in inputs}
        features = run.encode(inputs.pop("pixel_values_videos"), **beside)
        run.provide(features)
        assert torch.equal(host.model.generate(**inputs, **GENERATE).sequences, expected)
        with pytest.raises(BadUsage, match="no video came with it"):
            host.model.generate(**inputs, **GENERATE)


def marks(model):
    """Every hook and every instance attribute of every module."""
    hooks = ("_forward_hooks", "_forward_pre_hooks")
    return {name: (sorted(vars(m)), [len(getattr(m, h)) for h in hooks]) for name, m in model.named_modules()}


def test_nothing_is_left_behind(host):
    inputs, text = host.inputs(0), {"input_ids": host.head(0)[None]}
    stock = text if type(host).__name__ == "VideoHost" else inputs
    expected, before = host.model(**stock).logits, marks(host.model)
    with reduce_tokens(host.model, HoliTom(), 0.5, Drop(2)):
        assert marks(host.model) != before
        host.model.generate(**inputs, **GENERATE)
    with pytest.raises(RuntimeError), reduce_tokens(host.model, HoliTom(), 0.5, Drop(2)):
        raise RuntimeError
    assert marks(host.model) == before
    assert torch.equal(host.model(**stock).logits, expected)
