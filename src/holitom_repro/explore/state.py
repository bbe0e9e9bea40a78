"""What can be chosen in the explorer, and what comes of it: a clip, two settings, and what each does to the clip."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, lru_cache, partial
from pathlib import Path
from typing import Any

import torch

from holitom import methods
from holitom.attach import reduce_tokens
from holitom.errors import BadUsage
from holitom.flops import LLM_SHAPES, tokens_per_layer
from holitom.models import adapter_for
from holitom.models.inputs import VideoProcessor, load_model
from holitom.types import Inner, Outer, Reduction, VideoFeatures, check_budget
from holitom.video import Frames, load_frames
from holitom_repro import paths
from holitom_repro.method_page import NO_MODEL, Outcome, colour_features, walk
from holitom_repro.tiny import benchmarks

METHODS: dict[str, Callable[..., Outer]] = {
    "HoliTom": methods.HoliTom,
    "VisionZip": methods.VisionZip,
    "PruneVid": methods.PruneVid,
    "FastVID": partial(methods.FastVID, head="substitute"),  # nothing here has SigLIP's pooling head
    "MMG-Vid": methods.MMGVid,
    "HieraVid": methods.HieraVid,
    "UniComp": partial(methods.UniComp, head="substitute"),
    "V-CAST": methods.VCast,
    "FlashVID": methods.FlashVID,
    "Unified pool": methods.UnifiedPool,
    "DyCoke": methods.DyCoke,
    "ToMe": methods.ToMe,
    "Average pooling": methods.AveragePool,
    "Saliency top-k": methods.SaliencyTopK,
    "Uniform stride": methods.UniformStride,
    "Random": methods.RandomDrop,
}
"""Name -> outer stage. Add your own before the page is made: METHODS["mine"] = MyMethod."""
STAGES: dict[str, Callable[..., Inner] | None] = {
    "none": None,
    "merge": partial(methods.HoliTomMerge, causal=False, include_newlines=True),  # HoliTom's, as released
    "drop": methods.FastV,
}
TINY = ("tiny_actions", "tiny_ego", "tiny_long", "tiny_general")
CLIPS = ["three_shots", *(f"{benchmark}/{number:03d}" for benchmark in TINY for number in range(3))]
"""That come with the kit: shots of a film, and clips of the tiny world."""
SHAPE = LLM_SHAPES["ov-7b"]
LAYERS, FULL = SHAPE.layers, 32 * 196  # of LLaVA-OneVision-7B: layers, visual tokens of 32 frames
FRAMES = 32  # that the tiny model was trained on


@dataclass(frozen=True)
class Side:
    """One of the two settings that are compared.

    method: a key of METHODS; budget: share of visual tokens kept before the language model; tau: HoliTom's threshold
    (other methods keep their own parameters); inner "merge" or "drop": a stage that merges away or drops the share
    ``ratio`` of the visual tokens in front of layer ``layer`` of LLaVA-OneVision-7B's 28; "none": no such stage.
    """

    method: str = "HoliTom"
    budget: float = 0.10
    tau: float = 0.80
    inner: str = "none"
    layer: int = 18
    ratio: float = 0.5

    @property
    def row(self) -> str:
        """Its method as tables and figures name it: HoliTom without its stage inside is "HoliTom (w/o M)"."""
        return "HoliTom (w/o M)" if self.method == "HoliTom" and self.inner != "merge" else self.method

    @property
    def label(self) -> str:
        """The whole setting; of HieraVid, whose budget is a mean over layers, only the first stage stands here."""
        first = ", first stage" if self.method == "HieraVid" else ""
        merging = "" if self.method == "HoliTom" else " + merging"
        return self.row + first + {"drop": " + FastV", "merge": merging}.get(self.inner, "")

    def reduction(self, layers: int = LAYERS) -> Reduction:
        """For a decoder of ``layers`` layers: K moves to the same share of the depth. BadUsage for what cannot be."""
        for name, known in ((self.method, METHODS), (self.inner, STAGES)):
            if name not in known:
                raise BadUsage(f"the explorer has no {name!r}", fix=f"use one of {', '.join(known)}")
        outer = METHODS[self.method](**({"tau": self.tau} if self.method == "HoliTom" else {}))
        layer = self.layer if layers == LAYERS else min(layers - 1, max(1, round(self.layer / LAYERS * layers)))
        stage = STAGES[self.inner]
        inner = (stage(layer=layer, ratio=self.ratio),) if stage else ()
        return Reduction(self.label, outer, check_budget(self.budget), inner)

    def flops(self, realised: float) -> float:
        """Of LLaVA-OneVision-7B's prefill at this realised share of the tokens, as a share of the unreduced model's."""
        stages = [(stage.layer, 1 - stage.ratio) for stage in self.reduction().inner]
        return SHAPE.paper(tokens_per_layer(round(realised * FULL), LAYERS, stages)) / SHAPE.paper([FULL] * LAYERS)


@dataclass(frozen=True)
class State:
    """Everything the page depends on. clip: one of CLIPS, or the path of a video file; frames: how many are sampled;
    focus: the frame that is drawn large, from 0; question: which question about a clip of the tiny world; second: None
    shows one setting alone."""

    clip: str = "three_shots"
    frames: int = FRAMES
    focus: int = 10
    question: int = 0
    first: Side = Side(inner="merge")
    second: Side | None = Side(method="VisionZip")


@dataclass(frozen=True, eq=False)
class Clip:
    """A video that is ready to be reduced. note: what its features are; questions: text and right answer of each, for
    the tiny world's clips, which alone the tiny model knows how to answer."""

    frames: Frames
    video: VideoFeatures
    note: str
    questions: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, eq=False)
class View:
    """A state with its clip, what each of its sides does to that, and what the tiny model says with every token and
    with each side's: its first word, and how sure it is (nothing where it is not asked)."""

    state: State
    clip: Clip
    sides: tuple[Side, ...]
    outcomes: tuple[Outcome, ...]
    answers: tuple[str, ...]


def view(state: State) -> View:
    """Open the clip, reduce it, and ask; focus and question are moved into the clip's range. Raises BadVideo, and
    BadUsage as the methods do."""
    clip = open_clip(state.clip, state.frames)
    sides = tuple(side for side in (state.first, state.second) if side is not None)
    outcomes = tuple(outcome(clip, side) for side in sides)
    state = replace(state, focus=min(max(0, state.focus), len(clip.frames) - 1))
    if not clip.questions:
        return View(state, clip, sides, outcomes, ())
    state = replace(state, question=min(state.question, len(clip.questions) - 1))
    answers = tuple(answer(clip, state.question, side) for side in (Side(budget=1.0), *sides))
    return View(state, clip, sides, outcomes, answers)


@lru_cache(maxsize=12)
def open_clip(name: str, frames: int = FRAMES) -> Clip:
    """One of CLIPS, else the video file at that path. Raises BadVideo (missing, broken, smaller than the
    grid) and BadUsage (frames < 1)."""
    if name in CLIPS[1:]:
        return _tiny_clip(*name.split("/"), frames)
    path = paths.data("videos", "three_shots.mp4") if name == "three_shots" else Path(name).expanduser()
    sampled = load_frames(path, frames)
    return Clip(sampled, colour_features(sampled.pixels), NO_MODEL)


def _tiny_clip(benchmark: str, number: str, frames: int) -> Clip:
    model, processor = tiny_model()
    sampled = benchmarks.rendered_frames(Path(benchmark) / f"{number}.mp4", frames)
    with torch.no_grad():
        (encoded,) = adapter_for(model).encode([processor.pixels(sampled.pixels)], frozenset({"saliency", "keys"}))
    asked = benchmarks.draw(benchmark, int(number))[1] if frames == FRAMES else []
    questions = tuple((question.text, question.answer) for question in asked)
    return Clip(sampled, encoded, "tiny tier: features of the tiny model", questions)


@lru_cache(maxsize=128)
def outcome(clip: Clip, side: Side) -> Outcome:
    """Reduce; a setting that was tried before is remembered."""
    reduction = side.reduction()
    return walk(clip.frames, clip.video, reduction.outer, reduction.budget)


@cache
def tiny_model() -> tuple[Any, Any]:
    """The shipped model and its processor, loaded once."""
    from transformers.utils import logging

    logging.disable_progress_bar()  # shown even for a model that loads in a blink
    folder = paths.data("tiny", "onevision")
    return load_model(folder, torch.float32, "cpu"), VideoProcessor.from_pretrained(folder)


@lru_cache(maxsize=512)
@torch.no_grad()
def answer(clip: Clip, question: int, side: Side) -> str:
    """The word that the tiny model says first, whether it is right, and how sure it is (softmax over all words)."""
    model, processor = tiny_model()
    text, right = clip.questions[question]
    with reduce_tokens(model, reduction=side.reduction(model.config.text_config.num_hidden_layers)) as run:
        run.provide([clip.video])
        logits = model(**processor.prompts([text])).logits[0, -1]
    chance, best = logits.float().softmax(-1).max(-1)
    word = str(processor.tokenizer.decode([int(best)], skip_special_tokens=True)).strip()
    return f"{'✓' if word == right else '✗'} {word} ({100 * chance:.0f} %)"
