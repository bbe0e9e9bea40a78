"""Before transformers 5.19 the core takes no encoded videos: embeddings give the same logits."""

import pytest
import torch
from ticking import Ticking

from holitom.attaching import session
from holitom.attaching.embedding import as_embeddings, takes_encoded_videos
from holitom.errors import UnsupportedModel
from holitom_repro.latency.passes import run_pass
from holitom.methods import HoliTom, HoliTomMerge
from holitom.models.encoding import EncodedVideos
from holitom.types import Reduction


def test_both_ways_give_the_same_logits(tiny, inputs, monkeypatch):
    def logits():
        seen = []
        handle = tiny.model.lm_head.register_forward_hook(lambda m, a, out: seen.append(out[:, -1].clone()))
        run_pass(tiny, Reduction("x", HoliTom(), 0.3, (HoliTomMerge(3, 0.5),)), inputs, Ticking(), new_tokens=2)
        handle.remove()
        return torch.stack(seen)

    expected = logits()
    monkeypatch.setattr(session, "takes_encoded_videos", lambda core: False)
    assert torch.equal(logits(), expected)


def test_the_installed_core_takes_encoded_videos(tiny):
    assert takes_encoded_videos(tiny.model.model)


def test_what_embeddings_cannot_carry_is_refused(tiny):
    ids = torch.tensor([[9, tiny.config.video_token_id, 9]])
    video = EncodedVideos(pooler_output=torch.zeros(1, 1, 128))
    for outputs in ({"video": video, "image": object()}, {"video": EncodedVideos(pooler_output=[torch.zeros(1, 128)])}):
        with pytest.raises(UnsupportedModel, match="takes no encoded videos"):
            as_embeddings(tiny.model.model, {"input_ids": ids, "mm_encoder_outputs": outputs}, 5)
