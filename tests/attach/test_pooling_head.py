"""FastVID's frames compared by SigLIP's own head, where a checkpoint with one is there."""

import pytest
import torch
from seam import pixels
from transformers import SiglipVisionModel

from holitom.errors import BadUsage
from holitom.methods import FastVID
from holitom.models.llava_onevision import LlavaOnevision
from holitom.models.siglip_head import load_pooling_head

WANTED = frozenset({"saliency", "frame_embed"})


@pytest.fixture
def head_folder(sdpa, tmp_path):
    torch.manual_seed(0)
    config = sdpa.config.vision_config.__class__.from_dict(
        {**sdpa.config.vision_config.to_dict(), "vision_use_head": True}
    )
    SiglipVisionModel(config).save_pretrained(tmp_path)
    return tmp_path


def test_the_head_gives_frame_embeddings_and_saliency(sdpa, head_folder):
    clip = pixels(frames=6)
    plain = LlavaOnevision(sdpa)
    (stand_in,) = plain.encode(clip, WANTED).videos
    assert plain.head_record.used == "substitute"
    torch.testing.assert_close(stand_in.frame_embed, stand_in.tokens.mean(1))
    with pytest.raises(BadUsage, match="not the output of SigLIP's pooling head"):
        FastVID(head="siglip")(stand_in, 0.5)

    adapter = LlavaOnevision(sdpa)
    adapter.head_source = head_folder
    (video,) = adapter.encode(clip, WANTED).videos
    assert adapter.head_record.used == "siglip" and adapter.head_record.source == str(head_folder)
    embed, received = load_pooling_head(head_folder)(adapter._tower(clip[0]))
    torch.testing.assert_close(video.frame_embed, embed)
    torch.testing.assert_close(video.saliency, adapter.pool(received[..., None]).squeeze(-1))
    assert torch.equal(video.tokens, stand_in.tokens)
    assert not torch.allclose(video.saliency, stand_in.saliency)
    assert len(FastVID(head="siglip")(video, 0.5)) == 48
    # Without frame embeddings nothing changes: saliency is the attention received in the tower.
    (other,) = adapter.encode(clip, frozenset({"saliency"})).videos
    torch.testing.assert_close(other.saliency, stand_in.saliency)
