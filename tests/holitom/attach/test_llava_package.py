"""The original llava package with a tiny random model; runs where it imports, in an environment of its own."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip(
    "llava.model.language_model.llava_qwen", reason="the original llava package is not installed here (docs/llava.md)"
)

from llava.model.language_model.llava_qwen import LlavaQwenConfig, LlavaQwenForCausalLM
from llava.model.multimodal_encoder.siglip_encoder import SigLipVisionConfig, SigLipVisionModel, SigLipVisionTower
from llava.model.multimodal_projector.builder import build_vision_projector

from holitom.attach import reduce_tokens
from holitom.errors import BadUsage, UnsupportedModel
from holitom.methods.holitom import HoliTom, HoliTomMerge
from holitom.models import adapter_for
from holitom.types import Reduction, TokenSet

LAYERS, FRAMES, IMAGE, NEW = 5, 2, -200, 4
GREEDY = {"max_new_tokens": NEW, "do_sample": False, "return_dict_in_generate": True, "output_logits": True}
NEAR = {"atol": 5e-5, "rtol": 0}
KINDS = {"onevision": ("bilinear", "one_token"), "video": ("average", "grid")}


def tiny(kind, attention="sdpa"):
    pool, newline = KINDS[kind]
    config = LlavaQwenConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=LAYERS, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=300, max_position_embeddings=4096, pad_token_id=0, bos_token_id=1, eos_token_id=2,
        tie_word_embeddings=False, attn_implementation=attention, mm_hidden_size=32, mm_projector_type="mlp2x_gelu",
        mm_patch_merge_type="spatial_unpad", mm_spatial_pool_mode=pool, mm_spatial_pool_stride=2,
        mm_newline_position=newline,
    )  # fmt: skip
    model = LlavaQwenForCausalLM(config)
    tower = SigLipVisionTower("siglip", config, delay_load=True)
    tower.config = SigLipVisionConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4, image_size=384, patch_size=14
    )
    tower.vision_tower = SigLipVisionModel(tower.config)
    del tower.vision_tower.vision_model.encoder.layers[-1:]  # as load_model does
    tower.vision_tower.vision_model.head = torch.nn.Identity()
    tower.is_loaded = True
    core = model.get_model()
    core.vision_tower, core.mm_projector = tower, build_vision_projector(config)
    core.image_newline = torch.nn.Parameter(torch.empty(32))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, weight in sorted(model.named_parameters()):
            if "norm" not in name:
                weight.copy_(torch.randn(weight.shape, generator=generator) * 0.15)
    model.generation_config.eos_token_id, model.generation_config.pad_token_id = None, 0
    return model.eval()


@pytest.fixture(scope="module", params=KINDS)
def model(request):
    return tiny(request.param)


def clip(seed=0):
    draw = torch.Generator().manual_seed(seed)
    scene = torch.randn(1, 3, 384, 384, generator=draw)
    return scene + 0.4 * torch.randn(FRAMES, 3, 384, 384, generator=draw)


def ids(before=5, after=7, seed=0):
    words = torch.randint(3, 290, (before + after,), generator=torch.Generator().manual_seed(seed))
    return torch.cat([words[:before], torch.tensor([IMAGE]), words[before:]])


def inputs(seed=0):
    return {"inputs": ids()[None], "images": [clip(seed)], "modalities": ["video"]}


class Every:
    """Keeps every ``step``-th token, from a place that depends on the video."""

    requires, fidelity = frozenset(), "control"

    def __init__(self, step, positions="contiguous"):
        self.step, self.positions = step, positions

    def __call__(self, video, budget):
        flat = torch.arange(video.frames * video.cells)
        flat = flat[(flat + int(video.tokens[0, 0, 0] > 0)) % self.step == 0]
        return TokenSet(video.tokens.flatten(0, 1)[flat], flat // video.cells, flat % video.cells)


class Drop:
    """Drops the half of the visual tokens that is attended to least; remembers what it kept."""

    fidelity, prune_past, causal, include_newlines, query = "control", False, True, False, "last"

    def __init__(self, layer, score="prev", positions="original"):
        self.layer, self.score, self.positions, self.kept = layer, score, positions, []

    def __call__(self, hidden, score, visual, n0):
        keep = torch.ones(len(hidden), dtype=torch.bool)
        keep[visual] = False
        keep[visual[score[visual].topk(len(visual) // 2).indices]] = True
        self.kept.append(keep.nonzero().flatten())
        return self.kept[-1], hidden[self.kept[-1]]


@torch.no_grad()
def stock_rows(model):
    """What the package itself puts in the place of a video [P, D]."""
    given = (torch.tensor([[5, IMAGE, 6]]), None, None, None, None, [clip()], ["video"])
    return model.prepare_inputs_labels_for_multimodal(*given)[4][0, 1:-1]


@torch.no_grad()
def recompute(model, embeds, masks, positions):
    """Logits [S, V] of one forward without a cache, by the stock decoder with masks given per layer."""
    core, handles = model.get_model(), []

    def use(layer):
        def hook(module, args, kwargs):
            lowest = torch.finfo(torch.float32).min
            kwargs["attention_mask"] = torch.zeros(masks[layer].shape).masked_fill(~masks[layer], lowest)[None, None]
            return args, kwargs

        return hook

    for i, module in enumerate(core.layers):
        handles.append(module.register_forward_pre_hook(use(i), with_kwargs=True))
    hidden = core(inputs_embeds=embeds[None], position_ids=positions[None], use_cache=False).last_hidden_state
    for handle in handles:
        handle.remove()
    return model.lm_head(hidden)[0]


@torch.no_grad()
def embedded(model, rows, answer):
    table = model.get_model().embed_tokens
    return torch.cat([table(ids()[:5]), rows, table(ids()[6:]), table(answer)])


def test_the_released_model_at_budget_one(model):
    stock = model.generate(**inputs(), **GREEDY)
    bare = model(input_ids=ids()[None], images=[clip()], modalities=["video"]).logits
    for outer in (None, Every(1), Every(1, "original")):
        with reduce_tokens(model, outer) as run:
            ours = model.generate(**inputs(), **GREEDY)
            ours_bare = model(input_ids=ids()[None], images=[clip()], modalities=["video"]).logits
        assert torch.equal(ours.sequences, stock.sequences)
        torch.testing.assert_close(torch.cat(ours.logits), torch.cat(stock.logits), **NEAR)
        torch.testing.assert_close(ours_bare, bare, **NEAR)
        last = run.stats.last
        assert (last.kept + last.newlines, last.prompt_after) == (len(stock_rows(model)), len(stock_rows(model)) + 12)


@pytest.mark.parametrize("positions", ["contiguous", "original"])
def test_an_outer_stage(model, positions):
    """Tokens, row newlines and positions, in prefill and in decoding."""
    outer = Every(30, positions)
    with reduce_tokens(model, outer, 0.1) as run:
        out = model.generate(**inputs(), **GREEDY)
        kept = outer(run.encode([clip()])[0], 0.1)
    rows, grid = stock_rows(model), model.config.mm_newline_position == "grid"
    side = 13 if grid else 14
    wide = side + grid
    place = (kept.frame * side + kept.cell // side) * wide + kept.cell % side
    ends = (place // wide).unique() * wide + side if grid else torch.tensor([FRAMES * side * side])
    place = torch.cat([place, ends]).sort().values
    embeds = embedded(model, rows[place], out.sequences[0])
    length, numbers = len(embeds) - NEW, torch.arange(len(embeds))
    if positions == "original":
        numbers = torch.cat([torch.arange(5), 5 + place, 5 + len(rows) + torch.arange(7 + NEW)])
    masks = [torch.ones(len(embeds), len(embeds)).tril().bool()] * LAYERS
    expected = recompute(model, embeds, masks, numbers)
    torch.testing.assert_close(torch.cat(out.logits), expected[length - 1 : -1], **NEAR)
    assert run.stats.last.newlines == len(ends) and run.stats.last.prompt_after == length


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("stages", [[Drop(3)], [Drop(0, "this"), Drop(2)]])
def test_inner_stages(attention, stages):
    """Dropping equals masking; every layer's cache holds what entered it."""
    model = tiny("video", attention)
    for stage in stages:
        stage.kept.clear()
    with reduce_tokens(model, inner=stages) as run:
        out = model.generate(**inputs(), **GREEDY)
    embeds = embedded(model, stock_rows(model), out.sequences[0])
    length = len(embeds) - NEW
    masks, now = [torch.ones(len(embeds), len(embeds)).tril().bool() for _ in range(LAYERS)], torch.arange(length)
    cached = [length] * LAYERS
    for stage in stages:
        now = now[stage.kept[0]]
        gone = torch.arange(len(embeds)) < length
        gone[now] = False
        masks[stage.layer :] = [mask & ~gone | torch.diag(gone) for mask in masks[stage.layer :]]
        cached[stage.layer :] = [len(now)] * (LAYERS - stage.layer)
    expected = recompute(model, embeds, masks, torch.arange(len(embeds)))
    torch.testing.assert_close(torch.cat(out.logits), expected[length - 1 : -1], **NEAR)
    assert [out.past_key_values.get_seq_length(i) - NEW + 1 for i in range(LAYERS)] == cached
    assert list(run.stats.last.cached_per_layer) == cached and run.stats.acted


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize(
    "reduction",
    [
        Reduction("outer", Every(20), 0.1),
        Reduction("both", Every(20, "original"), 0.1, (Drop(1), Drop(3, "this", "contiguous"))),
        Reduction("holitom", HoliTom(tau=0.8), 0.1, (HoliTomMerge(layer=2, ratio=0.5),)),
    ],
    ids=lambda reduction: reduction.name,
)
def test_a_batch_equals_singles(reduction, beams):
    """Prompts padded on the left, videos that shrink to different lengths, beams."""
    model, rows, clips = tiny("video"), [ids(5, 7, 1), ids(3, 4, 2)], [clip(1), clip(2)]
    width = max(map(len, rows))
    padded = torch.stack([torch.cat([torch.zeros(width - len(r), dtype=torch.long), r]) for r in rows])
    mask = torch.stack([torch.arange(width) >= width - len(r) for r in rows]).long()
    settings = {**GREEDY, "num_beams": beams}
    with reduce_tokens(model, reduction=reduction) as run:
        both = model.generate(padded, images=clips, modalities=["video"] * 2, attention_mask=mask, **settings)
        assert len(run.stats.samples) == 2
        for b in range(2):
            alone = model.generate(rows[b][None], images=clips[b : b + 1], modalities=["video"], **settings)
            assert torch.equal(both.sequences[b], alone.sequences[0])
            assert run.stats.last.prompt_per_layer == run.stats.samples[b].prompt_per_layer
    assert run.stats.acted


def test_what_passes_and_what_is_refused(model):
    words, picture = ids()[[0, 1, 2, 8, 9]][None], clip()[:1]
    as_image = {"images": [picture], "modalities": ["image"], "image_sizes": [(384, 384)]}
    before, stock = vars(model).copy(), model.generate(**inputs(), **GREEDY)
    text, image = model.generate(words, **GREEDY), model.generate(ids()[None], **as_image, **GREEDY)
    with reduce_tokens(model, Every(20), 0.1, Drop(2)) as run:
        expected = model.generate(**inputs(), **GREEDY).sequences
        assert torch.equal(torch.cat(model.generate(words, **GREEDY).logits), torch.cat(text.logits))
        again = model.generate(ids()[None], **as_image, **GREEDY)
        assert torch.equal(torch.cat(again.logits), torch.cat(image.logits))
        run.provide(run.encode([clip()]))
        assert torch.equal(model.generate(ids()[None], **GREEDY).sequences, expected)
        assert len(run.stats.samples) == 2
        for match, given in {
            "Give videos alone": {"images": [clip(), picture], "modalities": ["video", "image"]},
            "2 videos, but 1 runs": {"images": [clip(), clip()], "modalities": ["video"] * 2},
        }.items():
            with pytest.raises(BadUsage, match=match):
                model.generate(ids()[None], **given)
        with pytest.raises(BadUsage, match="no prompt has a place"):
            model.generate(words, images=[clip()], modalities=["video"])
        with pytest.raises(BadUsage, match="labels"):
            model(input_ids=ids()[None], labels=ids()[None], images=[clip()], modalities=["video"])
        with pytest.raises(BadUsage, match="already inside"), reduce_tokens(model):
            pass
    assert vars(model).keys() == before.keys() and "forward" not in vars(adapter_for(model).core)
    assert torch.equal(torch.cat(model.generate(**inputs(), **GREEDY).logits), torch.cat(stock.logits))
    decode = type("Reads", (), {"layer": 2, "fidelity": "control", "__call__": lambda self, row, visual: None})()
    with pytest.raises(UnsupportedModel, match="need transformers 5"), reduce_tokens(model, decode=decode):
        pass
