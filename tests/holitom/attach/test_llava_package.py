"""The original llava package with a tiny random model; runs where it imports, in an environment of its own (see
docs/llava.md): its features against the package itself, then the block."""

import pytest
import torch

pytest.importorskip("llava.model.language_model.llava_qwen", reason="needs the llava package (docs/llava.md)")

from hosts import LAYERS, randomise
from llava.model.language_model.llava_qwen import LlavaQwenConfig, LlavaQwenForCausalLM
from llava.model.multimodal_encoder.siglip_encoder import SigLipVisionConfig, SigLipVisionModel, SigLipVisionTower
from llava.model.multimodal_projector.builder import build_vision_projector
from seam import GREEDY, NEAR, Drop, Host, KeepEvery, Nearest, batch, check, check_batch, marks, words

from holitom.attach import reduce_tokens
from holitom.errors import BadUsage, UnsupportedModel
from holitom.methods.holitom import HoliTom, HoliTomMerge
from holitom.models import adapter_for
from holitom.types import Reduction

KINDS = {"llava_onevision": ("bilinear", "one_token", 14), "llava_video": ("average", "grid", 13)}
FRAMES, IMAGE = 2, -200


def tiny(kind, attention="sdpa"):
    pool, newline, _ = KINDS[kind]
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
    return randomise(model, None)


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_features_are_the_packages(kind):
    """Every video has its own frames' saliency: the release pools those of all frames of a batch for each."""
    model, clips = tiny(kind), [torch.randn(2, 3, 384, 384), torch.randn(3, 3, 384, 384)]
    adapter, seen = adapter_for(model), []
    attention = model.get_vision_tower().vision_tower.vision_model.encoder.layers[-1].self_attn
    assert adapter.vision_attention() is attention and adapter.video_token_id == -200
    handle = attention.register_forward_hook(lambda module, args, out: seen.append(out[1].mean((1, 2))))
    stock = [model.get_2dPool(model.encode_images(clip)) for clip in clips]
    handle.remove()
    side = KINDS[kind][2]
    for video, tokens, columns in zip(adapter.encode(clips, frozenset({"saliency", "keys"})), stock, seen, strict=True):
        torch.testing.assert_close(video.tokens, tokens, atol=1e-5, rtol=0)
        pooled = model.get_2dPool(columns[..., None]).squeeze(-1)
        torch.testing.assert_close(video.saliency, pooled, atol=1e-7, rtol=0)
        assert video.grid == (side, side) and video.keys.shape == (video.frames, side**2, 8)
    assert torch.equal(adapter.newline, model.get_model().image_newline)
    assert adapter.newline_order == {"llava_onevision": "end", "llava_video": "row"}[kind]
    ids, place = torch.tensor([[5, -200, 7]]), [0, 2]
    assert torch.equal(adapter.embed(ids, {})[0, place], model.get_model().embed_tokens(ids[0, place]))


def test_settings_as_the_package_reads_them():
    model = tiny("llava_video")
    for settings, order in (({"mm_patch_merge_type": "flat"}, "none"), ({"mm_patch_merge_type": "spatial"}, "row"),
                            ({"mm_newline_position": "one_token"}, "none"), ({"mm_newline_position": None}, "none"),
                            ({"mm_patch_merge_type": "spatial_unpad"}, "end")):  # fmt: skip
        model.config.update(settings)
        assert adapter_for(model).newline_order == order
    model.config.add_faster_video = True
    with pytest.raises(UnsupportedModel, match="add_faster_video"):
        adapter_for(model)


class Package(Host):
    """A tiny LLaVA-OneVision or LLaVA-Video of the package, with two prompts and videos as the other hosts have."""

    def __init__(self, name, attention="sdpa"):
        self.name, self.model, side = name, tiny(name, attention), KINDS[name][2]
        self.text, self.table = self.model.get_model(), self.model.get_model().embed_tokens
        self.frames, self.grids = [FRAMES] * 2, [(side, side)] * 2
        self.head = [words(n, 10 + i) for i, n in enumerate(self.before)]
        self.tail = [words(n, 20 + i) for i, n in enumerate(self.after)]
        draw = torch.Generator().manual_seed(4)
        scene = torch.randn(2, 1, 3, 384, 384, generator=draw)
        self.clips = list(scene + 0.4 * torch.randn(2, FRAMES, 3, 384, 384, generator=draw))
        self.rows = [self._rows(i) for i in (0, 1)]
        self.visual = [self._visual(i) for i in (0, 1)]

    @torch.no_grad()
    def _rows(self, i):
        """What the package itself puts in the place of a video."""
        given = (torch.tensor([[5, IMAGE, 6]]), None, None, None, None, [self.clips[i]], ["video"])
        return self.model.prepare_inputs_labels_for_multimodal(*given)[4][0, 1:-1]

    def prompt(self, i):
        return torch.cat([self.head[i], torch.tensor([IMAGE]), self.tail[i]])

    def pixels(self, *which):
        return {"pixel_values_videos": [self.clips[i] for i in which]}

    def inputs(self, *which):
        given = batch(*(self.prompt(i) for i in which))
        videos = {"images": [self.clips[i] for i in which], "modalities": ["video"] * len(which)}
        return {"inputs": given["input_ids"], "attention_mask": given["attention_mask"], **videos}


@pytest.fixture(scope="module", params=KINDS)
def package(request):
    return Package(request.param)


def forward(package):
    given = package.inputs(0)
    return package.model(input_ids=given.pop("inputs"), **given).logits


@pytest.mark.parametrize("outer", [None, KeepEvery(1), KeepEvery(1, "original")])
def test_the_released_model_at_budget_one(package, outer):
    stock, bare = package.model.generate(**package.inputs(0), **GREEDY), forward(package)
    with reduce_tokens(package.model, outer) as run:
        ours = package.model.generate(**package.inputs(0), **GREEDY)
        torch.testing.assert_close(forward(package), bare, **NEAR)
    assert torch.equal(ours.sequences, stock.sequences)
    torch.testing.assert_close(torch.cat(ours.logits), torch.cat(stock.logits), **NEAR)
    last = run.stats.last
    assert (last.kept + last.newlines, last.prompt_after) == (len(package.rows[0]), len(package.rows[0]) + 12)


@pytest.mark.parametrize("positions", ["contiguous", "original"])
def test_an_outer_stage(package, positions):
    check(package, KeepEvery(30, positions))


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("stages", [[Drop(3)], [Drop(0, score="this"), Drop(2, query="text")]])
def test_inner_stages(attention, stages):
    check(Package("llava_video", attention), None, stages)


REDUCTIONS = {
    "both": Reduction("both", KeepEvery(20, "original"), 0.1, (Drop(1), Drop(3, score="this", positions="contiguous"))),
    "holitom": Reduction("holitom", HoliTom(tau=0.8), 0.1, (HoliTomMerge(layer=2, ratio=0.5),)),
    "decode": Reduction("decode", KeepEvery(), 0.1, (Drop(2),), Nearest(3)),
}


@pytest.mark.parametrize("name", REDUCTIONS)
def test_a_batch_equals_singles(name):
    check_batch(Package("llava_video"), REDUCTIONS[name])


def test_what_passes_and_what_is_refused(package):
    model, text, picture = package.model, words(9)[None], package.clips[0][:1]
    as_image = {"images": [picture], "modalities": ["image"], "image_sizes": [(384, 384)]}
    prompt, stock, before = package.prompt(0)[None], model.generate(**package.inputs(0), **GREEDY), marks(model)
    plain = [model.generate(text, **GREEDY), model.generate(prompt, **as_image, **GREEDY)]
    with reduce_tokens(model, KeepEvery(20), 0.1, Drop(2)) as run:
        expected = model.generate(**package.inputs(0), **GREEDY).sequences
        ours = [model.generate(text, **GREEDY), model.generate(prompt, **as_image, **GREEDY)]
        run.provide(run.encode(package.clips[:1]))
        assert torch.equal(model.generate(prompt, **GREEDY).sequences, expected) and len(run.stats.samples) == 2
        for match, ids, images, kinds in (
            ("Give videos alone", prompt, [package.clips[0], picture], ["video", "image"]),
            ("2 videos, but 1 runs", prompt, package.clips, ["video", "video"]),
            ("no prompt has a place", text, package.clips[:1], ["video"]),
        ):
            with pytest.raises(BadUsage, match=match):
                model.generate(ids, images=images, modalities=kinds)
        with pytest.raises(BadUsage, match="already inside"), reduce_tokens(model):
            pass
    for a, b in zip(ours, plain, strict=True):
        assert torch.equal(torch.cat(a.logits), torch.cat(b.logits))
    assert marks(model) == before
    assert torch.equal(model.generate(**package.inputs(0), **GREEDY).sequences, stock.sequences)
    with pytest.raises(UnsupportedModel, match="need transformers 5"):
        reduce_tokens(model, inner=Drop(2, prune_past=True)).__enter__()
