"""``python -m holitom_repro demo``: what HoliTom does to one video, in a picture and in numbers; with a model, also its
answer."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from holitom_repro import paths
from holitom_repro.colour import colour_features
from holitom.errors import BadUsage
from holitom_repro.figures.method import method_figure
from holitom_repro.figures.saving import Saved, here, save
from holitom.methods import HoliTom
from holitom_repro.refusals import folder_to_write, given
from holitom.types import check_budget
from holitom_repro.usage import Parser
from holitom.video import Frames, load_frames
from holitom_repro.walkthrough import CARRIED, DROPPED, DYNAMIC, MERGED, Walk, walk

NO_MODEL = "colour statistics of the frames, no model"


def parser() -> argparse.ArgumentParser:
    p = Parser(prog="./reproduce.sh demo", description="Show on a video which tokens HoliTom merges, keeps and drops.")
    p.add_argument("--video", type=given, help="a video file (default: the clip that comes with the kit)")
    p.add_argument("--frames", type=int, default=32, help="frames sampled evenly from it (default 32)")
    p.add_argument("--budget", type=float, default=0.1, help="share of visual tokens to keep, in (0, 1] (default 0.1)")
    p.add_argument("--tau", type=float, default=0.8, help="cosine above which a cell counts as unchanged (default 0.8)")
    p.add_argument(
        "--model", help="folder or id of a LLaVA-OneVision checkpoint; without it, cells are described by their colours"
    )
    p.add_argument("--question", help="asked about the video; needs --model")
    p.add_argument("--out", type=given, help="folder for the picture (default figures/<tier>)")
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Run the demo; errors are holitom.errors, printed and turned into exit codes by the command line."""
    args = parser().parse_args(argv)
    check_budget(args.budget)
    if not -1.0 <= args.tau <= 1.0:
        raise BadUsage(f"tau {args.tau} is not a cosine", fix="give a number from -1 to 1, for instance 0.8")
    if args.question and not args.model:
        raise BadUsage(
            "a question needs a model to answer it",
            fix="add --model with a LLaVA-OneVision checkpoint, or leave --question out",
        )
    if args.out is not None:
        folder_to_write(args.out, "--out")
    video = args.video or paths.data("videos", "three_shots.mp4")
    frames = load_frames(video, args.frames)
    method = HoliTom(tau=args.tau)
    answer = None
    if args.model:
        found, answer = with_model(args.model, frames, method, args.budget, args.question)
        note = f"features of {Path(args.model).name}"
    else:
        found, note = walk(colour_features(torch.from_numpy(frames.pixels)), method, args.budget), NO_MODEL
    saved = picture(frames, found, name=f"demo_{video.stem}", title=video.name, note=note, folder=args.out)
    for line in report(frames, found):
        print(line)
    if answer is not None:
        print(f"question     {args.question}\nanswer       {answer}")
    print(f"picture      {saved.png}")
    return 0


def picture(
    frames: Frames,
    found: Walk,
    *,
    name: str,
    title: str,
    tier: str = "tiny",
    note: str = NO_MODEL,
    folder: Path | str | None = None,
) -> Saved:
    """Draw and write the page of ``method_figure`` for one video."""
    heading = f"HoliTom on {title}: {len(frames)} frames, budget {100 * found.budget:.3g} %"
    fig, data = method_figure(frames, found, title=heading)
    return save(fig, name, here(tier, note=note), data, folder=folder)


def begins_at(frames: Frames, found: Walk, cut: float | int) -> bool:
    """Whether a segment begins with the first sampled frame at or after ``cut`` seconds."""
    return any(frames.seconds[first - 1] < cut <= frames.seconds[first] for first, _ in found.segments[1:])


def report(frames: Frames, found: Walk) -> list[str]:
    """The numbers behind the picture, one per line."""
    merged, dynamic = int(found.per_frame(MERGED).sum()), int(found.per_frame(DYNAMIC).sum())
    carried, dropped = int(found.per_frame(CARRIED).sum()), int(found.per_frame(DROPPED).sum())
    spans = ", ".join(
        f"S{k + 1} {frames.seconds[first]:.1f}-{frames.seconds[last]:.1f} s ({last - first + 1})"
        for k, (first, last) in enumerate(found.segments)
    )
    rows, columns = found.video.grid
    static, removed = int(found.static.sum()), found.removed_by_time
    lines = [
        f"video        {len(frames)} of {frames.total} frames, {frames.duration:.1f} s, {rows}x{columns} cells each: "
        f"{found.total} tokens",
        f"segments     {len(found.segments)}: {spans}",
        f"static       {static} cells ({static / found.total:.1%}); merging over time alone removes {removed} tokens "
        f"({removed / found.total:.1%})",
        f"kept         {len(found.kept)} tokens: {merged} merged static, {dynamic} dynamic",
        f"not kept     {carried} static cells carried by merged tokens, {dropped} dynamic cells dropped",
        f"budget       asked {found.budget:.2%}, realised {found.realised:.2%} "
        "(rounded per frame and per segment, as in the release)",
    ]
    return lines + [f"note         {note}" for note in frames.notes]


def with_model(
    path: str, frames: Frames, method: HoliTom, budget: float | int, question: str | None
) -> tuple[Walk, str | None]:
    """The walk on the features of a real checkpoint, and its answer under the same reduction when a question is
    asked."""
    from holitom.attach import reduce_tokens
    from holitom.models.processing import VideoProcessor, load_model

    device = "cuda" if torch.cuda.is_available() else "cpu"
    processor = VideoProcessor.from_pretrained(path)
    model = load_model(path, torch.bfloat16 if device == "cuda" else torch.float32, device)
    inputs = {
        k: v.to(device) if hasattr(v, "to") else v
        for k, v in processor(frames.pixels, question or "Describe the video.").items()
    }
    with torch.no_grad(), reduce_tokens(model, outer=method, budget=budget) as run:
        pixels = inputs.pop("pixel_values_videos")
        features = run.encode(pixels.to(model.dtype))
        found = walk(_on_cpu(features[0]), method, budget)
        if not question:
            return found, None
        run.provide(features)
        output = model.generate(**inputs, do_sample=False, max_new_tokens=128)
    return found, _decode(processor, output[0][inputs["input_ids"].shape[1] :])


def _on_cpu(video: Any) -> Any:
    import dataclasses

    moved = {f.name: getattr(video, f.name) for f in dataclasses.fields(video)}
    return type(video)(
        **{name: value.float().cpu() if isinstance(value, torch.Tensor) else value for name, value in moved.items()}
    )


def _decode(processor: Any, ids: torch.Tensor) -> str:
    return str(processor.tokenizer.decode(ids, skip_special_tokens=True)).strip()
