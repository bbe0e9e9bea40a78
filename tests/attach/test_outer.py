"""The outer seam: what enters the language model instead of a video's tokens."""

import pytest
import torch
from recompute import embed, layout, recompute, stock_video
from seam import CELLS, FRAMES, LAYERS, All, KeepEvery, batch, pixels, prompt, tiny_model

from holitom.attach import reduce_tokens
from holitom.errors import BadUsage
from holitom.types import VideoFeatures

GENERATE = {"max_new_tokens": 6, "do_sample": False, "return_dict_in_generate": True, "output_logits": True}


def kept_by(outer, tokens):
    return outer(VideoFeatures(tokens.unflatten(0, (FRAMES, CELLS)), (4, 4)), 0.3)


@pytest.mark.parametrize("outer", [None, All(), All(positions="original")])
def test_identity_is_the_unmodified_model(model, outer):
    inputs = {**batch(prompt(5, 7)), "pixel_values_videos": pixels()}
    stock = model.generate(**inputs, **GENERATE)
    with reduce_tokens(model, outer) as run:
        ours = model.generate(**inputs, **GENERATE)
        bare = model(**inputs).logits
    assert torch.equal(ours.sequences, stock.sequences)
    torch.testing.assert_close(torch.cat(ours.logits), torch.cat(stock.logits), atol=1e-5, rtol=0)
    torch.testing.assert_close(bare, model(**inputs).logits, atol=1e-5, rtol=0)
    assert run.stats.last.kept == run.stats.last.requested == FRAMES * CELLS
    assert run.stats.last.prompt_before == run.stats.last.prompt_after == 77


@pytest.mark.parametrize("positions", ["contiguous", "original"])
@pytest.mark.parametrize("placeholders", [FRAMES * CELLS + 1, 1, 200])
def test_generation_equals_one_forward_over_explicit_embeddings(model, positions, placeholders):
    """Whatever the number of placeholders: positions of a full prompt belong to the video, not to the placeholders."""
    ids, outer = prompt(5, 7, placeholders), KeepEvery(positions=positions)
    inputs = {**batch(ids), "pixel_values_videos": pixels()}
    with reduce_tokens(model, outer, 0.3) as run:
        out = model.generate(**inputs, **GENERATE)
    tokens, newline = stock_video(model, inputs["pixel_values_videos"])
    kept = kept_by(outer, tokens)
    flat = kept.frame * CELLS + kept.cell
    assert 10 < len(kept) < 30
    answer = out.sequences[0, len(ids) :]
    embeds = embed(model, torch.cat([ids, answer]), [torch.cat([tokens[flat], newline[None]])])
    length = len(embeds) - len(answer)
    video = (
        torch.cat([flat, torch.tensor([FRAMES * CELLS])]) if positions == "original" else torch.arange(len(kept) + 1)
    )
    after = torch.arange(7 + len(answer))
    numbers = torch.cat([torch.arange(5), 5 + video, 5 + video[-1] + 1 + after])
    expected = recompute(model, embeds, *layout(LAYERS, length, len(embeds), numbers=numbers))
    torch.testing.assert_close(torch.cat(out.logits), expected[length - 1 : -1], atol=2e-5, rtol=0)
    assert run.stats.last.prompt_after == length
    assert run.stats.last.cached_per_layer == (length,) * LAYERS


@torch.no_grad()
@pytest.mark.parametrize("with_mask", [True, False])
def test_gaps_without_a_cache_are_not_read_as_packed_sequences(sdpa, with_mask):
    """transformers cuts attention at every gap in the positions if there is neither a cache nor a mask."""
    inputs = {**batch(prompt(5, 7)), "pixel_values_videos": pixels()}
    if not with_mask:
        inputs.pop("attention_mask")
    with reduce_tokens(sdpa, KeepEvery(positions="original"), 0.3):
        cached = sdpa(**inputs, use_cache=True).logits
        plain = sdpa(**inputs, use_cache=False).logits
    torch.testing.assert_close(plain, cached, atol=1e-5, rtol=0)


def test_features_may_be_provided(sdpa):
    inputs = {**batch(prompt(5, 7)), "pixel_values_videos": pixels()}
    with reduce_tokens(sdpa, KeepEvery(), 0.3) as run:
        expected = sdpa.generate(**inputs, **GENERATE)
        features = run.encode(inputs.pop("pixel_values_videos"))
        for cache in (True, False):
            run.provide(features)
            ours = sdpa.generate(**inputs, **GENERATE, use_cache=cache)
            assert torch.equal(ours.sequences, expected.sequences)
        run.provide(features)
        bare = sdpa(**inputs).logits[:, -1]
        with pytest.raises(BadUsage, match="no video came with it"):
            sdpa.generate(**inputs, **GENERATE)
        run.provide(features)
        with pytest.raises(BadUsage, match="Give one of the two"):
            sdpa.generate(**inputs, pixel_values_videos=pixels(), **GENERATE)
    torch.testing.assert_close(bare, expected.logits[0], atol=1e-5, rtol=0)


def test_one_tower_pass(sdpa):
    passes = []
    handle = sdpa.model.vision_tower.register_forward_hook(lambda *_: passes.append(1))
    try:
        outer = KeepEvery(requires=frozenset({"saliency", "keys", "frame_embed"}))
        with reduce_tokens(sdpa, outer, 0.3):
            sdpa.generate(**batch(prompt(5, 7)), pixel_values_videos=pixels(), **GENERATE)
    finally:
        handle.remove()
    assert passes == [1]


def test_several_videos_per_prompt(sdpa):
    """Two videos in one prompt and one in the other, with beams; every prompt alone gives the same."""
    first, second = prompt(4, 5, seed=1), prompt(3, 6, seed=2)
    two = torch.cat([first, second])
    clips = pixels(3, seed=3)
    together = {**batch(two, second), "pixel_values_videos": clips}
    settings = {**GENERATE, "num_beams": 3, "output_scores": True}
    with reduce_tokens(sdpa, KeepEvery(), 0.3) as run:
        both = sdpa.generate(**together, **settings)
        stats = run.stats.samples
        alone = [
            sdpa.generate(**batch(two), pixel_values_videos=clips[:2], **settings),
            sdpa.generate(**batch(second), pixel_values_videos=clips[2:], **settings),
        ]
        with pytest.raises(BadUsage, match="runs of video placeholders"):
            sdpa.generate(**batch(two), pixel_values_videos=clips[:2].repeat(2, 1, 1, 1, 1)[:3], **settings)
        with pytest.raises(BadUsage, match="runs of video placeholders"):
            sdpa.generate(**batch(prompt(3, 4, 130)), pixel_values_videos=clips[:2], **settings)
    assert [s.videos for s in stats[:2]] == [2, 1]
    for b, single in enumerate(alone):
        assert torch.equal(both.sequences[b, -6:], single.sequences[0, -6:])
        torch.testing.assert_close(both.sequences_scores[b], single.sequences_scores[0], atol=1e-5, rtol=0)


def test_videos_of_different_length(sdpa):
    """A batch of clips of 4 and 2 frames as a list: what each gives alone."""
    clips = [pixels(frames=4)[0], pixels(frames=2, seed=5)[0]]
    rows = [prompt(5, 7), prompt(2, 3, 33, seed=4)]
    with reduce_tokens(sdpa, KeepEvery(), 0.3):
        both = sdpa.generate(**batch(*rows), pixel_values_videos=clips, **GENERATE)
        for b, row in enumerate(rows):
            single = sdpa.generate(**batch(row), pixel_values_videos=clips[b][None], **GENERATE)
            assert torch.equal(both.sequences[b, -6:], single.sequences[0, -6:])


def test_row_newlines(model):
    """A LLaVA-Video layout: a newline after every row that holds a token, full and reduced."""
    grid = tiny_model(model.config._attn_implementation, mm_newline_position="grid", mm_spatial_pool_mode="average")
    clip = pixels()
    with reduce_tokens(grid) as run:
        full = grid.generate(**batch(prompt(5, 7, 80)), pixel_values_videos=clip, **GENERATE)
        (video,) = run.encode(clip)
        assert (run.stats.last.kept, run.stats.last.newlines) == (64, 16)
        assert run.stats.last.prompt_after == run.stats.last.prompt_before == 92
    newline = grid.model.image_newline
    patches = grid.model.vision_tower(clip[0], output_hidden_states=True).hidden_states[
        grid.config.vision_feature_layer
    ]
    means = grid.model.multi_modal_projector(patches).unflatten(1, (4, 2, 4, 2)).mean((2, 4)).flatten(1, 2)
    torch.testing.assert_close(video.tokens, means, atol=1e-5, rtol=0)
    rows = torch.cat([means.unflatten(1, (4, 4)), newline.expand(FRAMES, 4, 1, -1)], dim=2).flatten(0, 2)
    answer = full.sequences[0, -6:]
    embeds = embed(grid, torch.cat([prompt(5, 7, 80), answer]), [rows])
    expected = recompute(grid, embeds, *layout(LAYERS, 92, 98))
    torch.testing.assert_close(torch.cat(full.logits), expected[91:-1], atol=2e-5, rtol=0)
    outer = KeepEvery(step=7, positions="original")
    with reduce_tokens(grid, outer, 0.3) as run:
        few = grid.generate(**batch(prompt(5, 7, 80)), pixel_values_videos=clip, **GENERATE)
    kept = outer(video, 0.3)
    place = (kept.frame * 4 + kept.cell // 4) * 5 + kept.cell % 4
    place = torch.cat([place, (place // 5).unique() * 5 + 4]).sort().values
    answer = few.sequences[0, -6:]
    embeds = embed(grid, torch.cat([prompt(5, 7, 80), answer]), [rows[place]])
    numbers = torch.cat([torch.arange(5), 5 + place, 85 + torch.arange(13)])
    length = len(embeds) - 6
    expected = recompute(grid, embeds, *layout(LAYERS, length, len(embeds), numbers=numbers))
    torch.testing.assert_close(torch.cat(few.logits), expected[length - 1 : -1], atol=2e-5, rtol=0)
    assert run.stats.last.newlines == len(place) - len(kept)


@torch.no_grad()
def test_images_and_text_pass_unchanged(sdpa):
    image = torch.randn(1, 2, 3, 112, 112, generator=torch.Generator().manual_seed(3))
    sizes = torch.tensor([[112, 112]])
    stock = sdpa.model.get_image_features(image, sizes).pooler_output
    ids = torch.cat([prompt(3, 0, 0), torch.full((len(stock[0]),), 298), prompt(4, 0, 0)])
    with_image = {**batch(ids), "pixel_values": image, "image_sizes": sizes}
    with_text = batch(prompt(5, 7, 0), prompt(3, 2, 0))
    expected = [sdpa.generate(**x, **GENERATE) for x in (with_image, with_text)]
    with reduce_tokens(sdpa, KeepEvery(), 0.3) as run:
        ours = [sdpa.generate(**x, **GENERATE) for x in (with_image, with_text)]
    for a, b in zip(ours, expected, strict=True):
        assert torch.equal(torch.stack(a.logits), torch.stack(b.logits))
    assert not run.stats.samples and not run.stats.acted


@torch.no_grad()
def test_image_beside_a_video(sdpa):
    image = torch.randn(1, 2, 3, 112, 112, generator=torch.Generator().manual_seed(3))
    sizes = torch.tensor([[112, 112]])
    placeholders = len(sdpa.model.get_image_features(image, sizes).pooler_output[0])
    ids = torch.cat([torch.full((placeholders,), 298), prompt(5, 7)])
    inputs = {**batch(ids), "pixel_values": image, "image_sizes": sizes, "pixel_values_videos": pixels()}
    stock = sdpa.generate(**inputs, **GENERATE)
    with reduce_tokens(sdpa, All()):
        same = sdpa.generate(**inputs, **GENERATE)
        bare = sdpa(**inputs).logits
    torch.testing.assert_close(torch.cat(same.logits), torch.cat(stock.logits), atol=1e-5, rtol=0)
    torch.testing.assert_close(bare, sdpa(**inputs).logits, atol=1e-5, rtol=0)
