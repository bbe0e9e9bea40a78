"""The lmms-eval model ``holitom``: a LLaVA-OneVision (or LLaVA-Video in its format) with a token reduction.

    python -m lmms_eval --model holitom --include_path src/holitom_repro/tiny/tasks --tasks tiny_general
        --model_args pretrained=data/tiny/onevision,method=HoliTom,tau=0.8,budget=0.1

A sweep keeps one instance and gives it a sheet of answers for every setting that is still to be measured on a
benchmark: a video is decoded and encoded once for all of them."""

from __future__ import annotations

import dataclasses
import json
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from lmms_eval.api.instance import GenerationResult, Instance, TokenCounts
from lmms_eval.api.model import lmms

from holitom import methods
from holitom.attach import RunStats, SampleStats, reduce_tokens
from holitom.errors import BadUsage, BadVideo, CannotRun
from holitom.flops import LLMShape
from holitom.methods.presets import preset as preset_of
from holitom.models import adapter_for
from holitom.models.inputs import VideoProcessor, load_model
from holitom.types import Reduction, VideoFeatures
from holitom.video import load_frames
from holitom_repro.evaluation.features import FeatureStore
from holitom_repro.evaluation.protocols import BROKEN, GENERATION, Protocol, protocol_named

_WINDOW = 16  # batches whose questions are sorted by length together; videos stay close enough to be kept
_PATIENCE = timedelta(hours=24)  # processes wait for each other over a download or a share of long videos
_GREEDY = {"max_new_tokens", "until", "do_sample", "temperature", "top_p", "num_beams"}
Question = tuple[str, int]
"""Task and document."""


def manifest() -> Any:
    """The entry point of the group ``lmms_eval.models``."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest(model_id="holitom", simple_class_path="holitom_repro.evaluation.model.ReducedVideoModel")


@dataclass(frozen=True)
class Answer:
    """One answered question: the text before any scoring, the video file, its decoder's notes, and what the reduction
    did (None: the video could not be read)."""

    task: str
    doc_id: int
    text: str
    tokens: int
    video: str
    notes: tuple[str, ...] = ()
    stats: SampleStats | None = None


@dataclass
class Sheet:
    """The answers of one setting to one benchmark so far, and how often each stage ran and took tokens away. folder:
    where they are also kept on disk, a line for each batch, in a file for each process, so that a killed run continues
    at its question. (lmms-eval's own response cache keeps the texts, not what the reduction did.)"""

    reduction: Reduction
    folder: Path | None = None
    answers: dict[Question, Answer] = field(default_factory=dict)
    calls: Counter[str] = field(default_factory=Counter)
    removed: Counter[str] = field(default_factory=Counter)

    def read(self) -> None:
        """What earlier runs left, whatever their number of processes. Lines that a kill cut short are left out."""
        for path in sorted(self.folder.glob("*.jsonl")) if self.folder else ():
            for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
                try:
                    found = json.loads(line)
                    self._take([_answer(values) for values in found["answers"]], found["calls"], found["removed"])
                except (ValueError, KeyError, TypeError):
                    continue

    def add(self, answers: Sequence[Answer], calls: Mapping[str, int], removed: Mapping[str, int]) -> None:
        self._take(answers, calls, removed)
        if self.folder is not None:
            self.folder.mkdir(parents=True, exist_ok=True)
            values = {"answers": list(map(dataclasses.asdict, answers)), "calls": dict(calls), "removed": dict(removed)}
            with (self.folder / f"{os.getpid()}.jsonl").open("a", encoding="utf-8") as file:
                file.write(json.dumps(values, ensure_ascii=False) + "\n")

    def check_acted(self) -> None:
        """CannotRun if a stage of the reduction never ran, or never took a token away."""
        stats = RunStats(self.reduction)
        stats.calls.update(self.calls)
        stats.removed.update(self.removed)
        stats.add([answer.stats for answer in self.answers.values() if answer.stats], {})
        if self.answers:
            stats.check_acted()

    def _take(self, answers: Sequence[Answer], calls: Mapping[str, int], removed: Mapping[str, int]) -> None:
        self.answers |= {(answer.task, answer.doc_id): answer for answer in answers}
        self.calls.update(calls)
        self.removed.update(removed)


def _answer(values: Mapping[str, Any]) -> Answer:
    stats = values["stats"]
    if stats is not None:
        lists = {name: tuple(value) for name, value in stats.items() if isinstance(value, list)}
        stats = SampleStats(**stats | lists | {"shape": LLMShape(**stats["shape"])})
    return Answer(**{**values, "notes": tuple(values["notes"]), "stats": stats})


@dataclass(frozen=True)
class _Job:
    key: Question
    video: str
    question: str
    length: int
    new_tokens: int
    until: tuple[str, ...]


class ReducedVideoModel(lmms):
    """A video model and its settings. Constructor arguments are lmms-eval's ``--model_args``.

    pretrained: folder or hub id; preset: "table1:HoliTom:0.10", or method: a class of ``holitom.methods``, budget and
    the class's fields; frames: per video; protocol: one of evaluation.protocols, or its name; cache_gb: memory for
    features. A sweep sets ``sheets``: the first one is the setting that lmms-eval asks for, the others are answered on
    the way where the videos do not all fit into the memory. skip_broken: videos that cannot be read are counted as the
    protocol says; remake: writes such a file again, once.
    """

    is_simple = True

    def __init__(
        self,
        pretrained: str,
        method: str = "",
        budget: float = 1.0,
        preset: str | None = None,
        frames: int = 32,
        batch_size: int | str = 0,
        device: str | None = None,
        device_map: str | None = None,
        cache_gb: float = 2.0,
        protocol: Protocol | str = "tiny",
        max_batch_size: int | None = None,
        skip_broken: bool = False,
        **fields: Any,
    ) -> None:
        super().__init__()
        from accelerate import Accelerator, InitProcessGroupKwargs

        self.accelerator = Accelerator(kwargs_handlers=[InitProcessGroupKwargs(timeout=_PATIENCE)])
        self._rank, self._world_size = self.accelerator.process_index, self.accelerator.num_processes
        self.device = torch.device(device) if device else self.accelerator.device
        self.protocol = protocol_named(protocol) if isinstance(protocol, str) else protocol
        dtype = self.protocol.dtype if self.device.type != "cpu" else "float32"
        place = {"device_map": device_map} if device_map else {"device": str(self.device)}
        self.model = load_model(pretrained, dtype=dtype, attention="sdpa", **place)
        self.processor = VideoProcessor.from_pretrained(pretrained)
        self.protocol.check(self.model.config)
        if self.protocol.conversation:
            self.processor = dataclasses.replace(self.processor, conversation=self.protocol.conversation)
        adapter = adapter_for(self.model)
        self.batch_size = int(batch_size) or self.protocol.batch
        self.frames = int(frames)
        self.store = FeatureStore(adapter, self.processor.pixels, int(cache_gb * 2**30))
        self.store.decode = lambda path: load_frames(path, self.frames, self.protocol.sampling)
        self.sheets = [Sheet(_setting(method, float(budget), preset, len(adapter.layers), fields))]
        self.on_progress: Callable[[int], object] = lambda questions: None
        self.skip_broken = skip_broken
        self.remake: Callable[[Path], object] | None = None

    def generate_until(self, requests: Sequence[Instance]) -> list[GenerationResult]:
        """Greedy answers of the first sheet. CannotRun if a stage of its reduction never ran, or never took a token
        away: the score would not mean what it says."""
        jobs = {job.key: job for job in map(self._job, requests)}
        left = [job for job in jobs.values() if any(job.key not in sheet.answers for sheet in self.sheets)]
        for videos in self._portions(left):
            for sheet in self.sheets if len(videos) < len({job.video for job in left}) else self.sheets[:1]:
                self._fill(sheet, [job for job in left if job.video in videos and job.key not in sheet.answers])
        sheet = self.sheets[0]
        sheet.check_acted()
        results = []
        for request in requests:
            job = jobs[request.args[4], request.args[3]]
            answer = sheet.answers[job.key]
            counts = TokenCounts(answer.stats.prompt_after if answer.stats else 0, answer.tokens)
            results.append(GenerationResult(_cut(answer.text, job.until if self.protocol.stops else ()), counts))
        return results

    def loglikelihood(self, requests: Sequence[Instance]) -> list[tuple[float, bool]]:
        raise CannotRun("the model holitom answers by generating, not by likelihood", fix="use generate_until tasks")

    def generate_until_multi_round(self, requests: Sequence[Instance]) -> list[str]:
        raise CannotRun("the model holitom answers one question at a time", fix="use single-round tasks")

    def clean(self) -> None:
        """lmms-eval calls this after a run and would delete the model; the next run needs it again."""

    def _job(self, request: Instance) -> _Job:
        question, options, doc_to_visual, doc_id, task, split = request.args
        visuals = doc_to_visual(self.task_dict[task][split][doc_id]) or []
        if len(visuals) != 1 or not isinstance(visuals[0], (str, Path)):
            raise CannotRun(
                f"{task}, document {doc_id}: {len(visuals)} visuals, of which a video file is needed",
                fix="use video tasks",
            )
        sampled = (
            options.get("do_sample") or (options.get("temperature") or 0) > 0 or (options.get("num_beams") or 1) > 1
        )
        if sampled or set(options) - _GREEDY:
            fix = "the model holitom decodes greedily; override with --gen_kwargs"
            raise CannotRun(f"{task} asks for generation_kwargs {options}", fix=fix)
        until = options.get("until") or ()
        new_tokens = max(self.protocol.new_tokens.get(task, 0), int(options.get("max_new_tokens") or 16))
        length = len(self.processor.tokenizer(question)["input_ids"])
        until = (until,) if isinstance(until, str) else tuple(until)
        return _Job((task, doc_id), str(visuals[0]), question, length, new_tokens, until)

    def _portions(self, jobs: Sequence[_Job]) -> Iterator[set[str]]:
        """The videos in portions whose features fit into the memory together, in the order of the questions."""
        videos = list(dict.fromkeys(job.video for job in jobs))
        size = len(videos)
        for video in videos:
            try:
                size = self.store.videos_at_once(video)
                break
            except BadVideo:  # told, or counted, when it is asked about
                continue
        for start in range(0, len(videos), max(1, size)):
            yield set(videos[start : start + size])

    def _fill(self, sheet: Sheet, jobs: Sequence[_Job]) -> None:
        """Answer questions with the setting of a sheet."""
        if not jobs:
            return
        with torch.inference_mode(), reduce_tokens(self.model, reduction=sheet.reduction) as run:
            for batch in self._batches(jobs):
                videos = [self._features(job, sheet.reduction) for job in batch]
                seen = [(job, video) for job, video in zip(batch, videos, strict=True) if video is not None]
                calls, removed = Counter(run.stats.calls), Counter(run.stats.removed)
                answers = [self._without(job) for job, video in zip(batch, videos, strict=True) if video is None]
                answers += self._answered(run, [job for job, _ in seen], [video for _, video in seen]) if seen else []
                sheet.add(answers, run.stats.calls - calls, run.stats.removed - removed)
                self.on_progress(len(batch))

    def _batches(self, jobs: Sequence[_Job]) -> Iterator[list[_Job]]:
        """Batches of one length limit each; questions of one video stay near, and questions of equal length together:
        a batch without padding needs no attention mask, which halves the work of attention."""
        groups: dict[int, list[_Job]] = defaultdict(list)
        for job in jobs:
            groups[job.new_tokens].append(job)
        window = _WINDOW * self.batch_size
        for group in groups.values():
            for start in range(0, len(group), window):
                batch: list[_Job] = []
                for job in sorted(group[start : start + window], key=lambda job: job.length):
                    longer = bool(batch) and job.length > batch[-1].length and 2 * len(batch) >= self.batch_size
                    if len(batch) == self.batch_size or longer:
                        yield batch
                        batch = []
                    batch.append(job)
                yield batch

    def _features(self, job: _Job, reduction: Reduction) -> VideoFeatures | None:
        """The features of the job's video; None where it cannot be read and may be skipped."""
        try:
            return self.store.get(job.video, reduction.outer)
        except BadVideo as error:
            if self.remake is not None:
                with suppress(BadVideo):
                    self.remake(Path(job.video))
                    return self.store.get(job.video, reduction.outer)
            if self.skip_broken:
                return None
            what = f"{job.key[0]}, question {job.key[1]}: {error.what}"
            fix = f"fetch the file again, or --skip-broken: such questions are {BROKEN[self.protocol.broken]}"
            raise BadVideo(what, fix=fix) from error

    def _answered(self, run: Any, jobs: Sequence[_Job], videos: Sequence[VideoFeatures]) -> list[Answer]:
        prompts = self.processor.prompts([job.question for job in jobs])
        inputs = {name: value.to(self.device) for name, value in prompts.items()}
        before = len(run.stats.samples)
        run.provide(videos)
        texts = self._generated(inputs, jobs[0].new_tokens)
        places = [("/".join(Path(job.video).parts[-2:]), self.store.notes[job.video]) for job in jobs]
        samples = zip(jobs, texts, places, run.stats.samples[before:], strict=True)
        return [Answer(*job.key, *text, *place, stats) for job, text, place, stats in samples]

    def _without(self, job: _Job) -> Answer:
        """A question about a video that cannot be read, as the protocol counts it."""
        note, place = f"cannot be read: {job.video}", "/".join(Path(job.video).parts[-2:])
        if self.protocol.broken == "sentence":
            return Answer(*job.key, f"Video {job.video} can not load, check the source", 0, place, (note,))
        text = self.processor.conversation.replace("{video}\n", "").replace("{question}", job.question)
        inputs = self.processor.tokenizer(text, add_special_tokens=False, return_tensors="pt")
        inputs = {name: inputs[name].to(self.device) for name in ("input_ids", "attention_mask")}
        return Answer(*job.key, *self._generated(inputs, job.new_tokens)[0], place, (note,))

    def _generated(self, inputs: Mapping[str, torch.Tensor], new_tokens: int) -> list[tuple[str, int]]:
        """Text and number of tokens of each answer."""
        tokenizer = self.processor.tokenizer
        output = self.model.generate(**inputs, max_new_tokens=new_tokens, **GENERATION)
        written = output[:, inputs["input_ids"].shape[1] :]
        texts = tokenizer.batch_decode(written, skip_special_tokens=True)
        return list(zip(texts, (written != tokenizer.pad_token_id).sum(1).tolist(), strict=True))


def _setting(method: str, budget: float, preset: str | None, layers: int, fields: dict[str, Any]) -> Reduction:
    """The setting of ``--model_args``: a preset ("table:row:budget"), or a class of holitom.methods with its fields.
    BadUsage names what there is."""
    if preset:
        table, _, row = preset.partition(":")
        row, _, share = row.partition(":")
        return preset_of(table, row, float(share) if share else None).scaled(layers)
    if not method:
        return Reduction("all tokens")
    known = {name.lower(): name for name in methods.__all__}
    cls = getattr(methods, known.get(method.lower(), ""), None)
    if cls is None:
        raise BadUsage(f"there is no method {method!r}", fix=f"choose one of {', '.join(sorted(known.values()))}")
    try:
        stage = cls(**fields)
    except TypeError as error:
        names = ", ".join(one.name for one in dataclasses.fields(cls))
        raise BadUsage(f"{cls.__name__} cannot be made ({error})", fix=f"it has the fields {names}") from error
    outer = hasattr(stage, "requires")
    return Reduction(cls.__name__, stage, budget) if outer else Reduction(cls.__name__, inner=(stage,))


def _cut(text: str, until: Sequence[str]) -> str:
    for stop in until:
        text = text.split(stop)[0] if stop else text
    return text.strip()
