"""The lmms-eval model ``holitom``: a LLaVA-OneVision with a token reduction, evaluated in batches.

    python -m lmms_eval --model holitom --include_path src/holitom_repro/tiny/tasks --tasks tiny_general
        --model_args pretrained=data/tiny/onevision,method=HoliTom,tau=0.8,budget=0.1

The same class serves notebooks and the sweep, which keep one instance and change ``reduction``, ``frames`` and
``saliency`` between benchmarks: features are computed once per video.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from lmms_eval.api.instance import GenerationResult, Instance, TokenCounts
from lmms_eval.api.model import lmms
from tqdm import tqdm

from holitom.attach import SampleStats, reduce_tokens
from holitom.errors import BadUsage, CannotRun
from holitom_repro.evaluation.arguments import reduction_from
from holitom_repro.evaluation.cells import check_saliency
from holitom_repro.evaluation.features import FeatureStore
from holitom_repro.evaluation.journal import Entry, Journal, Kept
from holitom.models import adapter_for
from holitom.models.processing import VideoProcessor, load_model
from holitom_repro.tiny.benchmarks import rendered_frames
from holitom.types import Reduction
from holitom.video import load_frames

_WINDOW = 16  # batches whose questions are sorted by length together; videos stay close enough to be kept
_PATIENCE = timedelta(hours=24)  # processes wait for each other over a download or a share of long videos
_GREEDY = ("max_new_tokens", "until", "do_sample", "temperature", "top_p", "num_beams")


def manifest() -> Any:
    """The entry point of the group ``lmms_eval.models``."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest(model_id="holitom", simple_class_path="holitom_repro.evaluation.lmms.ReducedVideoModel")


@dataclass(frozen=True)
class Answered:
    """What is known about one question beside its answer: the video file, what its decoder had to say, and what the
    reduction did to the prompt."""

    video: str
    notes: tuple[str, ...]
    sample: SampleStats


@dataclass(frozen=True)
class _Job:
    place: int  # among the requests
    key: tuple[str, int]  # task, doc_id
    video: str
    question: str
    tokens: int
    new_tokens: int
    until: tuple[str, ...]


class ReducedVideoModel(lmms):
    """A video model and a Reduction. Constructor arguments are lmms-eval's ``--model_args``.

    pretrained: folder or hub id; method, budget, preset and the method's fields: ``arguments.reduction_from``; frames:
    per video; saliency: "own", "random" or "control" (of the tower in ``control``); cache_gb: memory for features.
    """

    is_simple = True

    def __init__(
        self,
        pretrained: str,
        method: str = "full",
        budget: float | int = 1.0,
        preset: str | None = None,
        frames: int = 32,
        saliency: str = "own",
        control: str | None = None,
        batch_size: int | str = 1,
        device: str | None = None,
        dtype: str = "auto",
        cache_gb: float | int = 2.0,
        max_batch_size: int | None = None,
        **fields: Any,
    ) -> None:
        super().__init__()
        from accelerate import Accelerator, InitProcessGroupKwargs

        self.accelerator = Accelerator(kwargs_handlers=[InitProcessGroupKwargs(timeout=_PATIENCE)])
        self._rank, self._world_size = self.accelerator.process_index, self.accelerator.num_processes
        self.device = torch.device(device) if device else self.accelerator.device
        self.batch_size = _positive("batch_size", batch_size)
        self.frames = _positive("frames", frames)
        self.saliency = check_saliency(saliency)
        if dtype == "auto" and self.device.type == "cpu":
            dtype = "float32"  # CPUs compute bfloat16 slowly; the weights are the same
        self.model = load_model(pretrained, dtype=dtype, device=str(self.device))
        self.processor = VideoProcessor.from_pretrained(pretrained)
        self.adapter = adapter_for(self.model)
        self.reduction: Reduction = reduction_from(
            method, float(budget), preset, layers=len(self.adapter.layers), fields=fields
        )
        self.store = FeatureStore(
            self.adapter,
            self.processor.pixels,
            control=Path(control) if control else None,
            max_bytes=int(cache_gb * 2**30),
        )
        self.answered: dict[tuple[str, int], Answered] = {}
        self.on_progress: Callable[[int], object] | None = None
        self.journal: Journal | None = None  # keeps every answer at once, and is asked before the model is

    def generate_until(self, requests: Sequence[Instance]) -> list[GenerationResult]:
        """Greedy answers; those that the journal has are not computed again.

        CannotRun if a stage of the reduction never ran, or never took a token away: the score would not mean what it
        says."""
        answers: list[GenerationResult | None] = [None] * len(requests)
        jobs = [self._job(place, request) for place, request in enumerate(requests)]
        kept = self.journal.read() if self.journal is not None else Kept()
        left = []
        for job in jobs:
            if job.key in kept.entries:
                answers[job.place] = self._told(kept.entries[job.key], job)
            else:
                left.append(job)
        hidden = self.on_progress is not None or self.rank != 0
        with (
            torch.inference_mode(),
            reduce_tokens(self.model, reduction=self.reduction) as run,
            tqdm(
                total=len(jobs),
                initial=len(jobs) - len(left),
                desc=self.reduction.name,
                unit="question",
                disable=hidden,
            ) as bar,
        ):
            if self.on_progress and len(left) < len(jobs):
                self.on_progress(len(jobs) - len(left))
            run.stats.samples += [kept.entries[job.key].sample for job in jobs if job.key in kept.entries]
            run.stats.calls.update(kept.calls)
            run.stats.removed.update(kept.removed)
            for batch in self._batches(left):
                for job, answer in zip(batch, self._answer(run, batch), strict=True):
                    answers[job.place] = answer
                bar.update(len(batch))
                if self.on_progress:
                    self.on_progress(len(batch))
            if jobs:
                run.stats.check_acted()
        return answers  # type: ignore[return-value]

    def loglikelihood(self, requests: Sequence[Instance]) -> list[tuple[float, bool]]:
        raise CannotRun("the model holitom answers by generating, not by likelihood", fix="use generate_until tasks")

    def generate_until_multi_round(self, requests: Sequence[Instance]) -> list[str]:
        raise CannotRun("the model holitom answers one question at a time", fix="use single-round tasks")

    def use_pixels(self, pixels: str) -> None:
        """Frames from "file", or "rendered" by the tiny world; features of the other kind are forgotten."""
        decode = load_frames if pixels == "file" else rendered_frames
        if decode is not self.store.decode:
            self.store.decode = decode
            self.store.clear()

    def clean(self) -> None:
        """lmms-eval calls this after a run and would delete the model; the next run needs it again."""

    def _job(self, place: int, request: Instance) -> _Job:
        question, options, doc_to_visual, doc_id, task, split = request.args
        visuals = doc_to_visual(self.task_dict[task][split][doc_id]) or []
        if len(visuals) != 1 or not isinstance(visuals[0], (str, Path)):
            raise CannotRun(
                f"{task}, document {doc_id}: {len(visuals)} visuals, of which a video file is needed",
                fix="use video tasks",
            )
        new_tokens, until = _generation(task, options)
        tokens = len(self.processor.tokenizer(question)["input_ids"])
        return _Job(place, (task, doc_id), str(visuals[0]), question, tokens, new_tokens, until)

    def _batches(self, jobs: Sequence[_Job]) -> Iterator[list[_Job]]:
        """Batches of one length limit each; questions of one video stay near, and questions of equal length together:
        a batch without padding needs no attention mask, which halves the work of attention.
        """
        groups: dict[int, list[_Job]] = defaultdict(list)
        for job in jobs:
            groups[job.new_tokens].append(job)
        window = _WINDOW * self.batch_size
        for group in groups.values():
            for start in range(0, len(group), window):
                batch: list[_Job] = []
                for job in sorted(group[start : start + window], key=lambda job: job.tokens):
                    longer = bool(batch) and job.tokens > batch[-1].tokens and 2 * len(batch) >= self.batch_size
                    if len(batch) == self.batch_size or longer:
                        yield batch
                        batch = []
                    batch.append(job)
                yield batch

    def _answer(self, run: Any, batch: Sequence[_Job]) -> list[GenerationResult]:
        requires = self.reduction.outer.requires if self.reduction.outer is not None else frozenset()
        videos = {
            job.video: self.store.get(job.video, self.frames, requires=requires, saliency=self.saliency)
            for job in batch
        }
        inputs = self.processor.prompts([job.question for job in batch])
        inputs = {name: value.to(self.device) for name, value in inputs.items()}
        before = len(run.stats.samples)
        calls, removed = Counter(run.stats.calls), Counter(run.stats.removed)
        run.provide([videos[job.video] for job in batch])
        output = self.model.generate(**inputs, max_new_tokens=batch[0].new_tokens, do_sample=False, num_beams=1)
        samples = run.stats.samples[before:]
        written = output[:, inputs["input_ids"].shape[1] :]
        texts = self.processor.tokenizer.batch_decode(written, skip_special_tokens=True)
        entries = [
            Entry(
                *job.key,
                video="/".join(Path(job.video).parts[-2:]),
                notes=self.store.notes[job.video, self.frames],
                text=text,
                output_tokens=int((tokens != self.processor.tokenizer.pad_token_id).sum()),
                sample=sample,
            )
            for job, sample, text, tokens in zip(batch, samples, texts, written, strict=True)
        ]
        if self.journal is not None:
            self.journal.add(entries, run.stats.calls - calls, run.stats.removed - removed)
        return [self._told(entry, job) for entry, job in zip(entries, batch, strict=True)]

    def _told(self, entry: Entry, job: _Job) -> GenerationResult:
        """What lmms-eval gets for an answer of this run, or of the journal."""
        self.answered[job.key] = Answered(video=entry.video, notes=entry.notes, sample=entry.sample)
        counts = TokenCounts(input_tokens=entry.sample.prompt_after, output_tokens=entry.output_tokens)
        return GenerationResult(_cut(entry.text, job.until), counts)


def _generation(task: str, options: Mapping[str, Any]) -> tuple[int, tuple[str, ...]]:
    """max_new_tokens and stop strings of a task; anything but greedy decoding is refused."""
    sampled = options.get("do_sample") or (options.get("temperature") or 0) > 0 or (options.get("num_beams") or 1) > 1
    unknown = [name for name in options if name not in _GREEDY]
    if sampled or unknown:
        what = f"generation_kwargs {', '.join(unknown)}" if unknown else "sampling or beams"
        raise CannotRun(f"{task} asks for {what}", fix="the model holitom decodes greedily; override with --gen_kwargs")
    until = options.get("until") or ()
    return int(options.get("max_new_tokens") or 16), (until,) if isinstance(until, str) else tuple(until)


def _cut(text: str, until: Sequence[str]) -> str:
    for stop in until:
        text = text.split(stop)[0] if stop else text
    return text.strip()


def _positive(name: str, value: int | str) -> int:
    try:
        number = int(value)
    except ValueError:
        number = 0
    if number < 1:
        raise BadUsage(f"{name}={value!r}", fix="give a whole number, 1 or more")
    return number
