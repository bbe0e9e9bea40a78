"""The feature store: one tower pass per video, bounded memory, and saliency from elsewhere."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from holitom.errors import BadUsage, CannotRun
from holitom_repro.evaluation.cells import check_saliency
from holitom_repro.evaluation.features import FeatureStore
from holitom.models import adapter_for
from holitom.models.encoding import received_attention
from holitom_repro.tiny import benchmarks
from holitom_repro.tiny.model import normalise

SALIENCY = frozenset({"saliency"})
FRAMES = 4


def pixels(frames: np.ndarray) -> torch.Tensor:
    size = frames.shape[1] // benchmarks.SCALE
    boxes = frames.reshape(len(frames), size, benchmarks.SCALE, size, benchmarks.SCALE, 3).mean((2, 4)) / 255
    return normalise(boxes.astype(np.float32))


@pytest.fixture
def store(model_folder: Path) -> FeatureStore:
    from transformers import LlavaOnevisionForConditionalGeneration

    model = LlavaOnevisionForConditionalGeneration.from_pretrained(model_folder, dtype=torch.float32).eval()
    return FeatureStore(adapter_for(model), pixels, control=model_folder.parent / "tower")


def video(number: int) -> str:
    return str(benchmarks.video_path("tiny_ego", f"{number:03d}.mp4"))


def test_a_video_is_encoded_once_and_a_missing_field_costs_a_second_pass(
    store: FeatureStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes: list[frozenset[str]] = []
    encode = store.adapter.encode
    monkeypatch.setattr(store.adapter, "encode", lambda p, requires: passes.append(requires) or encode(p, requires))
    plain = store.get(video(0), FRAMES)
    assert plain.tokens.shape == (FRAMES, 16, 128) and plain.saliency is None
    assert store.get(video(0), FRAMES) is plain and len(passes) == 1
    salient = store.get(video(0), FRAMES, requires=SALIENCY)
    assert salient.saliency.shape == (FRAMES, 16) and torch.equal(salient.tokens, plain.tokens)
    assert store.get(video(0), FRAMES, requires=SALIENCY) is salient and store.get(video(0), FRAMES) is salient
    assert passes == [frozenset(), SALIENCY]
    store.get(video(0), FRAMES + 1)
    assert len(passes) == 3


def test_foreseen_fields_are_computed_at_first_sight(store: FeatureStore) -> None:
    store.requires = SALIENCY
    assert store.get(video(0), FRAMES).saliency is not None


def test_memory_is_bounded_and_the_least_recently_used_goes_first(store: FeatureStore) -> None:
    one = store.get(video(0), FRAMES)
    store.max_bytes = 2 * one.tokens.nbytes
    second = store.get(video(1), FRAMES)
    assert store.get(video(0), FRAMES) is one  # used: video 1 is now the oldest
    store.get(video(2), FRAMES)
    assert len(store) == 2 and store.get(video(0), FRAMES) is one
    assert store.get(video(1), FRAMES) is not second


def test_random_saliency_is_drawn_per_video_and_always_the_same(store: FeatureStore, tmp_path: Path) -> None:
    drawn = [store.get(video(n), FRAMES, requires=SALIENCY, saliency="random").saliency for n in (0, 1, 0)]
    assert torch.equal(drawn[0], drawn[2]) and not torch.equal(drawn[0], drawn[1])
    moved = tmp_path / "tiny_ego" / "000.mp4"
    moved.parent.mkdir()
    moved.write_bytes(Path(video(0)).read_bytes())
    assert torch.equal(drawn[0], store.get(str(moved), FRAMES, requires=SALIENCY, saliency="random").saliency)


def test_control_saliency_is_the_attention_that_cells_receive_in_the_other_tower(
    store: FeatureStore, model_folder: Path
) -> None:
    from transformers import SiglipVisionModel

    got = store.get(video(0), FRAMES, requires=SALIENCY, saliency="control")
    assert torch.equal(got.tokens, store.get(video(0), FRAMES).tokens)
    tower = SiglipVisionModel.from_pretrained(model_folder.parent / "tower", dtype=torch.float32).eval()
    inside = getattr(tower, "vision_model", tower)
    with torch.no_grad():
        states = tower(store._decode(video(0), FRAMES), output_hidden_states=True).hidden_states
        layer = inside.encoder.layers[-1]
        received = received_attention(layer.self_attn, layer.layer_norm1(states[-2]))
    by_hand = received.view(FRAMES, 4, 2, 4, 2).mean((2, 4)).flatten(1)
    assert torch.allclose(got.saliency, by_hand, atol=1e-6)
    own = store.get(video(0), FRAMES, requires=SALIENCY)
    assert not torch.allclose(own.saliency, got.saliency, atol=1e-4)


def test_saliency_is_left_alone_when_nobody_reads_it(store: FeatureStore) -> None:
    assert store.get(video(0), FRAMES, saliency="control").saliency is None


def test_a_missing_control_tower_and_an_unknown_saliency_are_named(store: FeatureStore, tmp_path: Path) -> None:
    store.control = tmp_path / "nothing"
    with pytest.raises(CannotRun, match="there is no tower in"):
        store.get(video(0), FRAMES, requires=SALIENCY, saliency="control")
    with pytest.raises(BadUsage, match="own, random, control"):
        check_saliency("loud")


def test_what_the_decoder_has_to_say_is_kept(store: FeatureStore) -> None:
    store.get(video(0), 100)
    assert store.notes[video(0), 100] == ("100 frames were asked, the video has 64: all of them are used",)
