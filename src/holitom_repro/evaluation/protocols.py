"""How each published checkpoint is asked: what HoliTom's release (cokeshao/HoliTom at e9b2972) does, to the token.

Sources: lmms_eval/models/llava_onevision.py and llava_vid.py of the release, its scripts/eval_*.sh, conversation
qwen_1_5 of its LLaVA-NeXT/llava/conversation.py. A record names the protocol and its version, and a cell's key holds
them: raise the version with every change that can change an answer.

The papers of MMG-Vid and HieraVid use the same two hosts and do not publish how they asked them; their rows are
measured with these protocols too."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from holitom.errors import UnsupportedModel
from holitom.video import EVENLY, LLAVA_VIDEO, ONEVISION, Sampling

QWEN_1_5 = (
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    "<|im_start|>user\n{video}\n{question}<|im_end|>\n"
    "<|im_start|>assistant\n"
)
"""The conversation of both hosts. The releases never ask the tokenizer for its chat template."""
GENERATION = {"do_sample": False, "num_beams": 1, "temperature": None, "top_p": None, "top_k": None}
GENERATION |= {"repetition_penalty": 1.0}
"""What ``generate`` is told: greedy. A generation_config.json that was copied from a chat model is not heard: its
penalty would read the prompt here, and reads the generated tokens alone in the release (1.05 for LLaVA-Video: an
answer's letter comes before any token could be repeated)."""
_TEMPLATE = {"chat_template": None}
EXPECTED: dict[str, dict[str, Any]] = {
    "config.json": {
        **{"vision_feature_layer": -1, "vision_feature_select_strategy": "full", "vision_config.image_size": 384},
        **{"vision_config.patch_size": 14, "vision_config.num_hidden_layers": 26},
        **{"text_config.rope_parameters.rope_theta": 1e6, "text_config.rope_parameters.rope_type": "default"},
        **{"text_config.use_sliding_window": False},
    },
    "preprocessor_config.json": {"image_mean": (0.5,) * 3, "image_std": (0.5,) * 3, "resample": 3},
    "generation_config.json": GENERATION,
    **dict.fromkeys(("tokenizer_config.json", "chat_template.json", "chat_template.jinja"), _TEMPLATE),
}
"""What a checkpoint's files should say, by file and field, None: nothing: what the release's numbers were made with.
The first two files are used as they are, the others are not heard."""


@dataclass(frozen=True)
class Protocol:
    """conversation: the prompt with ``{video}`` and ``{question}``, None: what the model's own tokenizer says;
    sampling: which frames; frames: how many the papers' scores are printed at; dtype, batch: of the answers; variant:
    the name by which lmms-eval's task files choose their wording; pool, newlines: what the model's config must say;
    new_tokens: by task, where the release's task file allows more than today's; stops: whether answers end at the
    task's stop strings (the releases ignore them); broken: what happens to a question about a video that cannot be
    read and may be skipped: it is asked without the video ("text"), or answered with a sentence that names the file
    ("sentence")."""

    name: str
    version: int
    conversation: str | None
    sampling: Sampling
    frames: int | None
    dtype: str
    batch: int
    variant: str
    pool: str | None = None
    newlines: str | None = None
    new_tokens: Mapping[str, int] = field(default_factory=dict)
    stops: bool = False
    broken: Literal["text", "sentence"] = "text"

    def __str__(self) -> str:
        return f"{self.name} {self.version}"

    def check(self, config: Any) -> None:
        """UnsupportedModel where a model's config says otherwise than the release has it."""
        for name, wanted, usual in (
            ("mm_spatial_pool_mode", self.pool, "bilinear"),
            ("mm_newline_position", self.newlines, "one_token"),
        ):
            found = getattr(config, name, None) or usual
            if wanted is not None and found != wanted:
                raise UnsupportedModel(
                    f"the config has {name}={found!r}, and {self.name} is published with {wanted!r}",
                    fix="convert the checkpoint again: ./reproduce.sh convert (docs/paper_tier.md)",
                )


BROKEN = {"text": "asked without their videos, as the release does", "sentence": "counted as answered wrongly"}
TINY = Protocol("tiny", 1, None, EVENLY, None, "float32", 32, "holitom", stops=True, broken="sentence")
"""The models of this repository: as they were trained."""
LLAVA_ONEVISION = Protocol(
    name="LLaVA-OneVision",
    version=1,
    conversation=QWEN_1_5,
    sampling=ONEVISION,  # 32 by linspace, repeated in shorter clips
    frames=32,
    dtype="float16",
    batch=1,
    variant="llava_onevision",
    pool="bilinear",
    newlines="one_token",
    new_tokens={"egoschema": 1024, "egoschema_subset": 1024},  # the release's task sets none: its models' default holds
)
LLAVA_VIDEO_PROTOCOL = replace(
    LLAVA_ONEVISION,
    name="LLaVA-Video",
    sampling=LLAVA_VIDEO,  # one a second, linspace of 64 only where those are more
    frames=64,
    variant="llava_vid",  # VideoMME: "The best answer is:"
    pool="average",
    newlines="grid",
    broken="sentence",
)
PROTOCOLS = {one.name: one for one in (TINY, LLAVA_ONEVISION, LLAVA_VIDEO_PROTOCOL)}
PUBLISHED = {"ov-7b": LLAVA_ONEVISION, "ov-72b": LLAVA_ONEVISION, "video-7b": LLAVA_VIDEO_PROTOCOL}


def protocol_for(tier: str, model: str, newlines: str | None = None) -> Protocol:
    """The protocol of a cell. A model that no paper prints is asked, in the paper tier, as the published one is whose
    newlines (``mm_newline_position`` of the config) it has."""
    if tier == "tiny":
        return TINY
    return PUBLISHED.get(model) or (LLAVA_VIDEO_PROTOCOL if newlines == "grid" else LLAVA_ONEVISION)
