"""A stage inside the vision tower: what the rest of the model then sees, alone and with every other stage."""

from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from hosts import HOSTS
from seam import ALL, GREEDY, NEAR, NEW, Drop, Host, KeepEvery, Nearest, batch, marks, words

from holitom.attach import reduce_tokens
from holitom.errors import BadUsage, CannotRun, UnsupportedModel
from holitom.methods import EarlyTom, HoliTom, HoliTomMerge, UniformStride, VisionZip
from holitom.models import adapter_for
from holitom.types import Reduction, VideoFeatures

STAGE = EarlyTom((0, 1), tau=0.0)  # the tiny towers have three layers
LENGTH = 10


@pytest.fixture(scope="module", params=["llava_onevision", "llava_video"])
def host(request):
    """A host with SigLIP, and two videos that move slowly."""
    found, draw = Host(request.param), torch.Generator().manual_seed(1)
    size = found.clips.shape[-1]
    found.clips = torch.randn(2, LENGTH, 3, size, size, generator=draw).mul(0.3).cumsum(1)
    return found


def layers_of(host):
    return [m for m in host.model.modules() if type(m).__name__ == "SiglipEncoderLayer"]


@torch.no_grad()
def expected(host, i, stage=STAGE):
    """Tokens [T', N, D] of a video, by running the tower layer for layer; which frame holds each; frames per layer."""
    into, entered, seen = list(range(LENGTH)), [], []
    handle = layers_of(host)[0].register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    host.model.model.vision_tower(host.clips[i])
    handle.remove()
    states = seen[0]
    for number, layer in enumerate(layers_of(host)):
        entered.append(len(states))
        states = layer(states, None)
        if number in stage.layers:
            states, now = stage(states)
            into = [now[t] for t in into]
    return adapter_for(host.model).tokens(states), tuple(into), tuple(entered)


def test_frames_are_merged_between_the_layers(host):
    """Of every video of a batch by itself; saliency and keys are those of the frames that are left."""
    with reduce_tokens(host.model, VisionZip(), 0.5, tower=STAGE) as run:
        videos = run.encode(host.clips)
        again = run.encode(list(host.clips))
    lengths = set()
    for i, video in enumerate(videos):
        tokens, into, entered = expected(host, i)
        torch.testing.assert_close(video.tokens, tokens, **NEAR)
        assert (video.merged.into, video.merged.entered) == (into, entered)
        assert torch.equal(video.tokens, again[i].tokens)
        assert len(video.saliency) == len(video.keys) == video.frames == entered[-1] < LENGTH
        lengths.add(into)
    assert len(lengths) == 2  # the videos differ


@pytest.mark.parametrize("positions", ["contiguous", "original"])
def test_an_outer_stage_sees_fewer_frames_and_its_tokens_keep_the_places_of_their_first_frames(host, positions):
    """As if it had kept the merged tokens in those places of the whole video, without a stage in the tower."""
    outer, (tokens, into, entered) = KeepEvery(positions=positions), expected(host, 0)
    kept = outer(VideoFeatures(tokens, host.grids[0]), 0.3)
    first = torch.tensor([into.index(t) for t in range(len(tokens))])

    class Kept(KeepEvery):
        def __call__(self, video, budget):
            return replace(kept, frame=first[kept.frame])

    found = []
    for stage, tower in ((outer, STAGE), (Kept(positions=positions), None)):
        with reduce_tokens(host.model, stage, 0.3, tower=tower) as run:
            found.append((torch.cat(host.model.generate(**host.inputs(0), **GREEDY).logits), run.stats))
    (ours, stats), (theirs, _) = found
    torch.testing.assert_close(ours, theirs, **NEAR)
    last, cells = stats.last, host.grids[0][0] * host.grids[0][1]
    assert (last.frames, last.full, last.tower_frames) == (LENGTH, LENGTH * cells, entered)
    assert (last.requested, last.kept) == (round(0.3 * LENGTH * cells), len(kept))
    assert stats.removed == {"tower": (LENGTH - len(tokens)) * cells, "outer": len(tokens) * cells - len(kept)}
    stats.check_acted()


@pytest.mark.parametrize("budget", [1.0, 0.8, 0.3])
def test_a_budget_counts_tokens_of_the_whole_video(host, budget):
    cells = host.grids[0][0] * host.grids[0][1]
    with reduce_tokens(host.model, UniformStride(), budget, tower=STAGE) as run:
        host.model(**host.inputs(0))
    wanted = min(round(budget * LENGTH * cells), run.stats.last.tower_frames[-1] * cells)
    assert run.stats.last.requested == run.stats.last.kept == wanted


SETTINGS = {
    "alone": Reduction("alone", tower=STAGE),
    "all": Reduction("all", HoliTom(tau=0.5), 0.3, (HoliTomMerge(2, 0.5), Drop(3, score="this")), Nearest(4, 1), STAGE),
    "gaps": Reduction("gaps", KeepEvery(positions="original"), 0.3, (Drop(1),), tower=STAGE),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_a_batch_equals_singles_and_nothing_is_left_behind(host, name):
    before, text = marks(host.model), batch(words(9))
    stock = host.model(**text).logits
    singles = []
    for i in (0, 1):
        with reduce_tokens(host.model, reduction=SETTINGS[name]) as run:
            singles.append(host.model.generate(**host.inputs(i), **GREEDY))
            assert torch.equal(host.model(**text).logits, stock)
        run.stats.check_acted()
    with reduce_tokens(host.model, reduction=SETTINGS[name]):
        both = host.model.generate(**host.inputs(0, 1), **GREEDY)
    for i, single in enumerate(singles):
        assert torch.equal(both.sequences[i, -NEW:], single.sequences[0, -NEW:])
        torch.testing.assert_close(torch.stack(both.logits)[:, i], torch.cat(single.logits), **NEAR)
    assert marks(host.model) == before and torch.equal(host.model(**text).logits, stock)


@pytest.mark.parametrize("outer", [None, ALL])
def test_merging_nothing_is_the_model_without_the_stage(host, outer):
    """Bit for bit, also with a single frame, of which there is nothing to merge."""
    for clips, stage in (
        (host.clips, replace(STAGE, longest=3)),
        (host.clips, EarlyTom(())),
        (host.clips[:, :1], STAGE),
    ):
        given, found = host.inputs(0, 1) | {"pixel_values_videos": clips}, []
        for tower in (None, stage):
            with reduce_tokens(host.model, outer, tower=tower) as run:
                found.append(torch.stack(host.model.generate(**given, **GREEDY).logits))
        assert torch.equal(*found) and run.stats.last.kept == run.stats.last.full
        with nullcontext() if stage.identity else pytest.raises(CannotRun, match="tower kept every token"):
            run.stats.check_acted()


REFUSED = {
    "KeepEvery.* is no Tower stage": KeepEvery(),
    r"layers \[0, 2\].*\[0, 1\]": EarlyTom((0, 2)),
    r"layers \[1, 0\]": EarlyTom((1, 0)),
}


@pytest.mark.parametrize("match", REFUSED)
def test_wrong_stages_are_refused(host, match):
    with pytest.raises(BadUsage, match=match), reduce_tokens(host.model, tower=REFUSED[match]):
        pass


@pytest.mark.parametrize("name", ["qwen2_5_vl", "llava_next_video"])
def test_hosts_without_siglip_are_refused(name):
    with pytest.raises(UnsupportedModel, match="is no SigLIP"), reduce_tokens(HOSTS[name](), tower=EarlyTom((0,))):
        pass


def test_features_of_another_tower_are_refused(host):
    found = {}
    for said, tower in (("without", None), ("with", STAGE)):
        with reduce_tokens(host.model, tower=tower) as run:
            found[said] = run.encode(host.clips)
    for said, tower in (("without", STAGE), ("with", None)):
        with reduce_tokens(host.model, tower=tower) as run:
            run.provide(found[said])
            with pytest.raises(BadUsage, match=f"a tower {said} a stage in it"):
                host.model(**batch(host.prompt(0), host.prompt(1)))


def test_records_of_other_settings_keep_their_keys():
    said = Reduction("x", tower=STAGE).describe()
    assert said.pop("tower") == {"method": "EarlyTom", "layers": [0, 1], "tau": 0.0, "longest": 6}
    assert said == Reduction("x").describe()
