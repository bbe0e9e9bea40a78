"""The lmms-eval model ``holitom``: a LLaVA-OneVision (or LLaVA-Video in its format) with a token reduction.

    python -m lmms_eval --model holitom --include_path src/holitom_repro/tiny/tasks --tasks tiny_general
        --model_args pretrained=data/tiny/onevision,method=HoliTom,tau=0.8,budget=0.1

A sweep keeps one instance and gives it a sheet of answers for every setting that is still to be measured on a
benchmark: a video is decoded and encoded once for all of them."""

import dataclasses
import pickle
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta
from itertools import islice
from pathlib import Path
from typing import Any
from uuid import uuid4

import torch
from lmms_eval.api.instance import Instance
from lmms_eval.api.model import lmms

from holitom import methods
from holitom.attach import RunStats, SampleStats, reduce_tokens
from holitom.errors import BadUsage, BadVideo, CannotRun
from holitom.methods import HoliTomMerge
from holitom.methods.presets import preset as preset_of
from holitom.models import adapter_for
from holitom.models.inputs import VideoProcessor, load_model
from holitom.types import Reduction, VideoFeatures
from holitom.video import load_frames
from holitom_repro.evaluation.features import FeatureStore, ForeignSaliency
from holitom_repro.evaluation.protocols import BROKEN, GENERATION, PROTOCOLS, Protocol

_WINDOW = 16  # batches that are asked with one setting after the other: few enough that their videos are kept
_PATIENCE = timedelta(hours=24)  # processes wait for each other over a download or a share of long videos
_GREEDY = {"max_new_tokens", "until", "do_sample", "temperature", "top_p", "num_beams"}
_FILE = f"{uuid4().hex}.answers"  # of this process
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
    video: str
    notes: tuple[str, ...] = ()
    stats: SampleStats | None = None


class AnswerSheet:
    """The answers of one setting to one benchmark so far, and what its stages have done. folder: where they are also
    kept on disk, in a file for each process; a killed run, whatever its number of processes, continues with the next
    ones. (lmms-eval's own response cache keeps the texts, not what the reduction did.)"""

    def __init__(self, reduction: Reduction, folder: Path | None = None) -> None:
        self.reduction, self.folder = reduction, folder
        self.answers: dict[Question, Answer] = {}
        self.stats = RunStats(reduction)
        for path in sorted(folder.glob("*.answers")) if folder else ():
            with path.open("rb") as file, suppress(EOFError, pickle.UnpicklingError):  # a kill may cut the last one
                while True:
                    self._take(*pickle.load(file))

    def add(self, answers: Sequence[Answer], stats: RunStats) -> None:
        """Take in answers and what the stages did for them."""
        self._take(answers, stats.calls, stats.removed)
        if self.folder is not None:
            self.folder.mkdir(parents=True, exist_ok=True)
            with (self.folder / _FILE).open("ab") as file:
                pickle.dump((answers, stats.calls, stats.removed), file)

    def _take(self, answers: Sequence[Answer], calls: Counter[str], removed: Counter[str]) -> None:
        self.answers |= {(answer.task, answer.doc_id): answer for answer in answers}
        self.stats.samples += [answer.stats for answer in answers if answer.stats]
        self.stats.calls.update(calls)
        self.stats.removed.update(removed)


@dataclass(frozen=True)
class _Weighed(HoliTomMerge):
    """HoliTom's inner stage, which says once the norms of the states that it compares."""

    said: list[str] = field(default_factory=list, compare=False)

    def __call__(self, hidden: torch.Tensor, score: torch.Tensor, visual: torch.Tensor, n0: int) -> Any:
        if not self.said:
            norms = hidden[visual].float().norm(dim=-1)
            self.said.append(
                f"norms of the visual tokens that enter layer {self.layer} in the first prompt: {norms.median():.3g} "
                f"in the middle, {norms.max():.3g} at most, {100 * (norms > 256).float().mean():.3g} % above 256: "
                "there the release's cosine overflows (float16) and takes another partner than this one (float32)"
            )
        return super().__call__(hidden, score, visual, n0)


@dataclass(frozen=True)
class _Job:
    """file: the video's folder and name, wherever it lies; length: of the question, in tokens."""

    key: Question
    video: str
    file: str
    question: str
    length: int
    new_tokens: int
    until: tuple[str, ...]


class ReducedVideoModel(lmms):
    """A video model and its settings. Constructor arguments are lmms-eval's ``--model_args``.

    pretrained: folder or hub id; preset: "table1:HoliTom:0.10", or method: a class of ``holitom.methods``, budget and
    the class's fields; frames: per video; protocol: one of evaluation.protocols, or its name; cache_gb: memory for
    features; skip_broken: videos that cannot be read are counted as the protocol says. A sweep sets ``sheets``: the
    first one is the setting that lmms-eval asks for, the others are answered on the way.
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
        self.protocol = _chosen(PROTOCOLS, protocol, "protocol") if isinstance(protocol, str) else protocol
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
        self.sheets = [AnswerSheet(_setting(method, float(budget), preset, len(adapter.layers), fields))]
        self.on_progress: Callable[[int], object] = lambda questions: None
        self.skip_broken = skip_broken

    def generate_until(self, requests: Sequence[Instance]) -> list[str]:
        """Greedy answers of the first sheet. CannotRun if a stage of its reduction never ran, or never took a token
        away: the score would not mean what it says."""
        jobs = {job.key: job for job in map(self._job, requests)}
        window = _WINDOW * self.batch_size
        for start in range(0, len(jobs), window):
            for sheet in self.sheets:
                near = islice(jobs.values(), start, start + window)
                if left := [job for job in near if job.key not in sheet.answers]:
                    self._fill(sheet, left)
        sheet = self.sheets[0]
        if jobs:
            sheet.stats.check_acted()
        asked = (jobs[request.args[4], request.args[3]] for request in requests)
        return [_cut(sheet.answers[job.key].text, job.until if self.protocol.stops else ()) for job in asked]

    def loglikelihood(self, requests: Sequence[Instance]) -> Any:
        raise CannotRun("the model holitom answers single questions by generating", fix="use generate_until tasks")

    generate_until_multi_round = loglikelihood

    def clean(self) -> None:
        """lmms-eval calls this after a run and would delete the model; the next run needs it again."""

    def _job(self, request: Instance) -> _Job:
        question, options, doc_to_visual, doc_id, task, split = request.args
        visuals = doc_to_visual(self.task_dict[task][split][doc_id]) or []
        if len(visuals) != 1 or not isinstance(visuals[0], (str, Path)):
            what = f"{task}, document {doc_id}: {len(visuals)} visuals, of which a video file is needed"
            raise CannotRun(what, fix="use video tasks")
        sampled = options.get("do_sample") or options.get("temperature") or options.get("num_beams") not in (None, 1)
        if sampled or set(options) - _GREEDY:
            fix = "the model holitom decodes greedily; override with --gen_kwargs"
            raise CannotRun(f"{task} asks for generation_kwargs {options}", fix=fix)
        until = options.get("until") or ()
        until = (until,) if isinstance(until, str) else tuple(until)
        new_tokens = max(self.protocol.new_tokens.get(task, 0), int(options.get("max_new_tokens") or 16))
        video, length = str(visuals[0]), len(self.processor.tokenizer(question)["input_ids"])
        return _Job((task, doc_id), video, "/".join(Path(video).parts[-2:]), question, length, new_tokens, until)

    def _fill(self, sheet: AnswerSheet, jobs: Sequence[_Job]) -> None:
        """Answer questions with the setting of a sheet."""
        reduction, said, answers = sheet.reduction, [], []
        if isinstance(reduction.outer, ForeignSaliency):  # the store has drawn it
            reduction = dataclasses.replace(reduction, outer=reduction.outer.outer)
        if self.protocol.dtype == "float16" and not sheet.answers:
            stages = (_Weighed(**vars(s), said=said) if type(s) is HoliTomMerge else s for s in reduction.inner)
            reduction = dataclasses.replace(reduction, inner=tuple(stages))
        with torch.inference_mode(), reduce_tokens(self.model, reduction=reduction) as run:
            for batch in self._batches(jobs):
                answers += self._answered(run, batch, sheet.reduction)
                self.on_progress(len(batch))
        answers[0] = dataclasses.replace(answers[0], notes=(*answers[0].notes, *said))
        sheet.add(answers, run.stats)

    def _batches(self, jobs: Sequence[_Job]) -> Iterator[list[_Job]]:
        """Batches of one length limit each, questions of equal length together: a batch without padding needs no
        attention mask, which halves the work of attention."""
        groups: dict[int, list[_Job]] = defaultdict(list)
        for job in sorted(jobs, key=lambda job: job.length):
            groups[job.new_tokens].append(job)
        for group in groups.values():
            batch: list[_Job] = []
            for job in group:
                longer = bool(batch) and job.length > batch[-1].length and 2 * len(batch) >= self.batch_size
                if len(batch) == self.batch_size or longer:
                    yield batch
                    batch = []
                batch.append(job)
            yield batch

    def _features(self, job: _Job, reduction: Reduction) -> VideoFeatures | None:
        """The features of the job's video; None where it cannot be read and may be skipped."""
        try:
            return self.store.get(job.video, reduction.outer, reduction.tower)
        except BadVideo as error:
            if self.skip_broken:
                return None
            what = f"{job.key[0]}, question {job.key[1]}: {error.what}"
            fix = "fetch the file again (delete a tiny one, it is written anew), or --skip-broken: such questions are "
            fix += BROKEN[self.protocol.broken]
            raise BadVideo(what, fix=fix) from error

    def _answered(self, run: Any, jobs: Sequence[_Job], reduction: Reduction) -> list[Answer]:
        """One batch. The tower does not run here: the store has encoded each video once for all settings."""
        videos = {job.key: self._features(job, reduction) for job in jobs}
        answers = [self._without(job) for job in jobs if videos[job.key] is None]
        jobs = [job for job in jobs if videos[job.key] is not None]
        if not jobs:
            return answers
        prompts = self.processor.prompts([job.question for job in jobs])
        inputs = {name: value.to(self.device) for name, value in prompts.items()}
        before = len(run.stats.samples)
        run.provide([videos[job.key] for job in jobs])
        texts = self._generated(inputs, jobs[0].new_tokens)
        for job, text, stats in zip(jobs, texts, run.stats.samples[before:], strict=True):
            answers.append(Answer(*job.key, text, job.file, self.store.notes[job.video], stats))
        return answers

    def _without(self, job: _Job) -> Answer:
        """A question about a video that cannot be read, as the protocol counts it."""
        note = f"cannot be read: {job.video}"
        if self.protocol.broken == "sentence":
            return Answer(*job.key, f"Video {job.video} can not load, check the source", job.file, (note,))
        text = self.processor.conversation.replace("{video}\n", "").replace("{question}", job.question)
        inputs = self.processor.tokenizer(text, add_special_tokens=False, return_tensors="pt")
        inputs = {name: inputs[name].to(self.device) for name in ("input_ids", "attention_mask")}
        return Answer(*job.key, self._generated(inputs, job.new_tokens)[0], job.file, (note,))

    def _generated(self, inputs: Mapping[str, torch.Tensor], new_tokens: int) -> list[str]:
        output = self.model.generate(**inputs, max_new_tokens=new_tokens, **GENERATION)
        written = output[:, inputs["input_ids"].shape[1] :]
        return self.processor.tokenizer.batch_decode(written, skip_special_tokens=True)


def _setting(method: str, budget: float, preset: str | None, layers: int, fields: dict[str, Any]) -> Reduction:
    """The setting of ``--model_args``: a preset ("table:row:budget"), or a class of holitom.methods with its fields.
    BadUsage names what there is."""
    if preset:
        table, _, row = preset.partition(":")
        row, _, share = row.partition(":")
        return preset_of(table, row, float(share) if share else None).scaled(layers)
    if not method:
        return Reduction("all tokens")
    known = {name: getattr(methods, name) for name in methods.__all__}
    cls = _chosen({name: one for name, one in known.items() if hasattr(one, "fidelity")}, method, "method")
    try:
        stage = cls(**fields)
    except TypeError as error:
        names = ", ".join(one.name for one in dataclasses.fields(cls))
        raise BadUsage(f"{cls.__name__} cannot be made ({error})", fix=f"it has the fields {names}") from error
    if hasattr(stage, "requires"):
        return Reduction(cls.__name__, stage, budget)
    if budget != 1:
        raise BadUsage(f"{cls.__name__} spends no budget", fix="give its own parameters instead")
    if hasattr(stage, "layers"):
        return Reduction(cls.__name__, tower=stage)
    if hasattr(stage, "score"):
        return Reduction(cls.__name__, inner=(stage,))
    return Reduction(cls.__name__, decode=stage)


def _chosen(known: Mapping[str, Any], name: str, what: str) -> Any:
    found = next((value for key, value in known.items() if key.lower() == name.lower()), None)
    if found is None:
        raise BadUsage(f"there is no {what} {name!r}", fix=f"choose one of {', '.join(sorted(known))}")
    return found


def _cut(text: str, until: Sequence[str]) -> str:
    for stop in until:
        text = text.split(stop)[0] if stop else text
    return text.strip()
