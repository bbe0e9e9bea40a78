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
from seam import Drop

from holitom.attach import reduce_tokens
from holitom.errors import BadUsage, UnsupportedModel
from holitom.methods import HoliTom, HoliTomMerge, VisionZip
from holitom.models import adapter_for
from holitom.types import Reduction, TokenSet

LAYERS, FRAMES, IMAGE, NEW = 5, 2, -200, 4
GENERATE = {"max_new_tokens": NEW, "do_sample": False, "return_dict_in_generate": True, "output_logits": True}
NEAR = {"atol": 5e-5, "rtol": 0}
KINDS = {"onevision": ("bilinear", "one_token"), "video": ("average", "grid")}


def tiny(kind, attention):
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
    return tiny(request.param, "sdpa")


@pytest.fixture(scope="module", params=["sdpa", "eager"])
def video(request):
    return tiny("video", request.param)


def clip(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(1, 3, 384, 384, generator=generator) + 0.4 * torch.randn(
        FRAMES, 3, 384, 384, generator=generator
    )


def ids(before=5, after=7, seed=0):
    words = torch.randint(3, 290, (before + after,), generator=torch.Generator().manual_seed(seed))
    return torch.cat([words[:before], torch.tensor([IMAGE]), words[before:]])


def inputs(before=5, after=7, seed=0):
    return {"inputs": ids(before, after, seed)[None], "images": [clip(seed)], "modalities": ["video"]}


class Every:
    """Keeps every ``step``-th token, from a place that depends on the video."""

    requires, fidelity = frozenset(), "control"

    def __init__(self, step, positions="contiguous"):
        self.step, self.positions = step, positions

    def __call__(self, video, budget):
        flat = torch.arange(video.frames * video.cells)
        flat = flat[(flat + int(video.tokens[0, 0, 0] > 0)) % self.step == 0]
        return TokenSet(video.tokens.flatten(0, 1)[flat], flat // video.cells, flat % video.cells)


@torch.no_grad()
def stock_rows(model, seed=0):
    """What the package itself puts in the place of a video [P, D]."""
    prepared = model.prepare_inputs_labels_for_multimodal(
        torch.tensor([[5, IMAGE, 6]]), None, None, None, None, [clip(seed)], ["video"]
    )
    return prepared[4][0, 1:-1]


def is_newline(model, count):
    side = 14 if model.config.mm_spatial_pool_mode == "bilinear" else 13
    place = torch.arange(count)
    return place % (side + 1) == side if side == 13 else place == FRAMES * 196


@torch.no_grad()
def recompute(model, embeds, masks, positions):
    """Logits [S, V] of one forward without a cache, by the stock decoder with masks given per layer."""
    core, handles = model.get_model(), []

    def use(layer):
        def hook(module, args, kwargs):
            allowed = torch.zeros(masks[layer].shape).masked_fill(~masks[layer], torch.finfo(torch.float32).min)
            kwargs["attention_mask"] = allowed[None, None]
            return args, kwargs

        return hook

    try:
        for i, module in enumerate(core.layers):
            handles.append(module.register_forward_pre_hook(use(i), with_kwargs=True))
        hidden = core(inputs_embeds=embeds[None], position_ids=positions[None], use_cache=False).last_hidden_state
    finally:
        for handle in handles:
            handle.remove()
    return model.lm_head(hidden)[0]


@torch.no_grad()
def embedded(model, rows, answer, before=5, seed=0):
    table, words = model.get_model().embed_tokens, ids(seed=seed)
    return torch.cat([table(words[:before]), rows, table(words[before + 1 :]), table(answer)])


def causal(total):
    return [torch.ones(total, total).tril().bool() for _ in range(LAYERS)]


def test_the_released_model_at_budget_one(model):
    stock = model.generate(**inputs(), **GENERATE)
    bare = model(input_ids=ids()[None], images=[clip()], modalities=["video"]).logits
    rows = stock_rows(model)
    for outer in (None, Every(1), Every(1, "original")):
        with reduce_tokens(model, outer) as run:
            ours = model.generate(**inputs(), **GENERATE)
            ours_bare = model(input_ids=ids()[None], images=[clip()], modalities=["video"]).logits
        assert torch.equal(ours.sequences, stock.sequences)
        torch.testing.assert_close(torch.cat(ours.logits), torch.cat(stock.logits), **NEAR)
        torch.testing.assert_close(ours_bare, bare, **NEAR)
        last = run.stats.last
        assert (last.kept + last.newlines, last.prompt_after) == (len(rows), len(rows) + 12)
        assert last.kept == FRAMES * (196 if model.config.mm_spatial_pool_mode == "bilinear" else 169)


@pytest.mark.parametrize("positions", ["contiguous", "original"])
def test_outer_stage(model, positions):
    """Tokens, row newlines and positions, in prefill and in decoding."""
    outer = Every(30, positions)
    with reduce_tokens(model, outer, 0.1) as run:
        out = model.generate(**inputs(), **GENERATE)
        kept = outer(run.encode([clip()])[0], 0.1)
    rows, side = stock_rows(model), 14 if model.config.mm_spatial_pool_mode == "bilinear" else 13
    newline = is_newline(model, len(rows))
    wide = side + 1 if side == 13 else side
    place = (kept.frame * side + kept.cell // side) * wide + kept.cell % side
    used = newline.nonzero().flatten()
    used = used[torch.isin(used // wide, place // wide)] if side == 13 else used
    place = torch.cat([place, used]).sort().values
    embeds = embedded(model, rows[place], out.sequences[0])
    length = len(embeds) - NEW
    numbers = torch.arange(len(embeds))
    if positions == "original":
        numbers = torch.cat([torch.arange(5), 5 + place, 5 + len(rows) + torch.arange(7 + NEW)])
    expected = recompute(model, embeds, causal(len(embeds)), numbers)
    torch.testing.assert_close(torch.cat(out.logits), expected[length - 1 : -1], **NEAR)
    assert run.stats.last.newlines == len(used) and run.stats.last.prompt_after == length


@pytest.mark.parametrize("name", ["one", "this", "past", "text"])
def test_inner_stages(video, name):
    """Dropping equals masking; every layer's cache holds what entered it."""
    stages = {
        "one": [Drop(3)],
        "this": [Drop(0, 0.7, score="this"), Drop(2)],
        "past": [Drop(1, 0.8), Drop(3, 0.5, prune_past=True)],
        "text": [Drop(2, query="text"), Drop(4, 0.5)],
    }[name]
    with reduce_tokens(video, inner=stages) as run:
        out = video.generate(**inputs(), **GENERATE)
    embeds = embedded(video, stock_rows(video), out.sequences[0])
    length = len(embeds) - NEW
    masks, now, cached = causal(len(embeds)), torch.arange(length), [length] * LAYERS
    for stage in stages:
        now = now[stage.seen[0]["keep"]]
        gone = torch.zeros(len(embeds), dtype=torch.bool)
        gone[:length] = True
        gone[now] = False
        for layer in range(stage.layer, LAYERS):
            masks[layer] = masks[layer] & ~gone | torch.diag(gone)
        if stage.prune_past:
            for layer in range(stage.layer):
                masks[layer][length:] &= ~gone
        cached[0 if stage.prune_past else stage.layer :] = [len(now)] * (
            LAYERS - (0 if stage.prune_past else stage.layer)
        )
    expected = recompute(video, embeds, masks, torch.arange(len(embeds)))
    torch.testing.assert_close(torch.cat(out.logits), expected[length - 1 : -1], **NEAR)
    assert [out.past_key_values.get_seq_length(i) - NEW + 1 for i in range(LAYERS)] == cached
    assert list(run.stats.last.cached_per_layer) == cached and run.stats.acted


SETTINGS = {
    "outer": Reduction("outer", Every(20), 0.1),
    "both": Reduction(
        "both", Every(20, "original"), 0.1, (Drop(1, 0.6), Drop(3, score="this", positions="contiguous"))
    ),
    "holitom": Reduction("holitom", HoliTom(tau=0.8), 0.1, (HoliTomMerge(layer=2, ratio=0.5),)),
}


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("beams", [1, 3])
def test_a_batch_equals_singles(video, name, beams):
    """Prompts padded on the left, videos that shrink to different lengths; with beams, the sequences' scores too."""
    rows, clips = [ids(5, 7, 1), ids(3, 4, 2)], [clip(1), clip(2)]
    width = max(map(len, rows))
    padded = torch.stack([torch.cat([torch.zeros(width - len(r), dtype=torch.long), r]) for r in rows])
    mask = torch.stack([torch.arange(width) >= width - len(r) for r in rows]).long()
    settings = {**GENERATE, "num_beams": beams}
    with reduce_tokens(video, reduction=SETTINGS[name]) as run:
        both = video.generate(padded, images=clips, modalities=["video"] * 2, attention_mask=mask, **settings)
        assert len(run.stats.samples) == 2
        for b in range(2):
            alone = video.generate(rows[b][None], images=clips[b : b + 1], modalities=["video"], **settings)
            assert torch.equal(both.sequences[b], alone.sequences[0])
            if beams == 1:
                logits = torch.stack([step[b] for step in both.logits])
                torch.testing.assert_close(logits, torch.cat(alone.logits), **NEAR)
            assert run.stats.last.prompt_per_layer == run.stats.samples[b].prompt_per_layer
    assert run.stats.acted


@torch.no_grad()
def test_saliency_of_every_video_is_its_own(model):
    seen = []
    attention = adapter_for(model).vision_attention()
    assert attention is model.get_vision_tower().vision_tower.vision_model.encoder.layers[-1].self_attn
    handle = attention.register_forward_hook(lambda module, args, out: seen.append(out[1].mean((1, 2))))
    model.get_vision_tower()(torch.cat([clip(1), clip(2)]))
    handle.remove()
    pooled = model.get_2dPool(seen[0][..., None]).squeeze(-1)
    with reduce_tokens(model, VisionZip(), 0.2) as run:
        videos = run.encode([clip(1), clip(2)])
        assert {"saliency", "keys"} >= run._requires - {"frame_embed"}
        assert model.generate(**inputs(), **GENERATE).sequences.shape == (1, NEW)
    torch.testing.assert_close(torch.cat([v.saliency for v in videos]), pooled, atol=1e-7, rtol=0)


def test_features_may_be_provided(model):
    with reduce_tokens(model, Every(20), 0.1) as run:
        expected = model.generate(**inputs(), **GENERATE).sequences
        run.provide(run.encode([clip()]))
        assert torch.equal(model.generate(ids()[None], **GENERATE).sequences, expected)
        run.provide(run.encode([clip()]))
        with pytest.raises(BadUsage, match="images are given too"):
            model.generate(**inputs(), **GENERATE)


def marks(model):
    hooks = ("_forward_hooks", "_forward_pre_hooks")
    return {name: (sorted(vars(m)), [len(getattr(m, h)) for h in hooks]) for name, m in model.named_modules()}


def test_nothing_is_left_behind_and_the_rest_passes(model):
    words, picture = ids()[[0, 1, 2, 8, 9]][None], clip()[:1]
    as_image = {"images": [picture], "modalities": ["image"], "image_sizes": [(384, 384)]}
    before, stock = marks(model), model.generate(**inputs(), **GENERATE)
    text, image = model.generate(words, **GENERATE), model.generate(ids()[None], **as_image, **GENERATE)
    with reduce_tokens(model, Every(20), 0.1, Drop(2)) as run:
        assert marks(model) != before
        model.generate(**inputs(), **GENERATE)
        assert torch.equal(torch.cat(model.generate(words, **GENERATE).logits), torch.cat(text.logits))
        again = model.generate(ids()[None], **as_image, **GENERATE)
        assert torch.equal(torch.cat(again.logits), torch.cat(image.logits))
        assert len(run.stats.samples) == 1
        with pytest.raises(BadUsage, match="already inside"), reduce_tokens(model):
            pass
    assert marks(model) == before
    assert torch.equal(torch.cat(model.generate(**inputs(), **GENERATE).logits), torch.cat(stock.logits))


def test_what_is_refused(model):
    class Reads:
        layer, fidelity = 2, "control"

        def __call__(self, row, visual):
            return None

    with pytest.raises(UnsupportedModel, match="decode stages need"), reduce_tokens(model, decode=Reads()):
        pass
    with reduce_tokens(model, Every(20), 0.1):
        with pytest.raises(BadUsage, match="Give videos alone"):
            model.generate(ids()[None], images=[clip(), clip()[:1]], modalities=["video", "image"])
        with pytest.raises(BadUsage, match="no prompt has a place"):
            model.generate(ids()[[0, 1, 2]][None], images=[clip()], modalities=["video"])
        with pytest.raises(BadUsage, match="labels"):
            model(input_ids=ids()[None], labels=ids()[None], images=[clip()], modalities=["video"])
        model.config.tokenizer_model_max_length = 20
        try:
            with pytest.raises(BadUsage, match="limit is 20"):
                model.generate(**inputs())
        finally:
            del model.config.tokenizer_model_max_length
    model.config.add_faster_video = True
    try:
        with pytest.raises(UnsupportedModel, match="add_faster_video"), reduce_tokens(model):
            pass
    finally:
        del model.config.add_faster_video
