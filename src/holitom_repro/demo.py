"""``./reproduce.sh demo [clip]``: what HoliTom does to one video, in a picture and in numbers; with a model, also its
answer."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from typer import Argument, Option

from holitom.attach import reduce_tokens
from holitom.errors import BadUsage
from holitom.methods.holitom import HoliTom
from holitom.models.inputs import VideoProcessor, load_model
from holitom.types import VideoFeatures, check_budget
from holitom.video import load_frames
from holitom_repro import method_page, paths
from holitom_repro.method_page import ALONE, CARRIED, DROPPED, MERGED
from holitom_repro.style import save_figure

MODEL = "a LLaVA-OneVision checkpoint; without one cells are told by their colours"


def demo(
    clip: Annotated[Path | None, Argument(help="a video file; without one the clip that comes with the kit")] = None,
    frames: Annotated[int, Option(help="frames sampled evenly from it")] = 32,
    budget: Annotated[float, Option(help="share of visual tokens to keep, above 0 and at most 1")] = 0.1,
    tau: Annotated[float, Option(min=-1, max=1, help="cosine above which a cell counts as unchanged")] = 0.8,
    model: Annotated[str, Option(help=MODEL)] = "",
    question: Annotated[str, Option(help="asked about the video; needs --model")] = "",
    out: Annotated[str, Option(help="folder for the picture (default figures/tiny)")] = "",
) -> int:
    """Show on a video which tokens HoliTom merges, keeps and drops."""
    check_budget(budget)
    if question and not model:
        raise BadUsage("a question needs a model to answer it", fix="add --model, or leave --question out")
    path, method, note, answer = clip or paths.data("videos", "three_shots.mp4"), HoliTom(tau), method_page.NO_MODEL, ""
    film = load_frames(path, frames)
    if model:
        features, answer = _with_model(model, film.pixels, method, budget, question)
        note = f"features of {Path(model).name}"
    else:
        features = method_page.colour_features(film.pixels)
    seen, cut = method_page.walk(film, features, method, budget), method.segments(features)
    title = f"HoliTom on {path.name}: {len(film)} frames, budget {100 * budget:.3g} %"
    plain = [text.replace("$", r"\$") for text in (title, note)]  # between two of them matplotlib reads formulas
    figure, table = method_page.method_figure(seen, *plain), method_page.frame_table(seen)

    alone, merged, carried, dropped = (int(seen.per_frame(fate).sum()) for fate in (ALONE, MERGED, CARRIED, DROPPED))
    total, (rows, columns) = seen.owner.size, features.grid
    spans = ", ".join(f"S{n} {film.seconds[a]:.1f}-{film.seconds[b]:.1f} s" for n, (a, b) in enumerate(cut.pairs, 1))
    length = f"{len(film)} of {film.total} frames, {film.duration:.1f} s"
    print(f"video        {length}, {rows}x{columns} cells each: {total} tokens")
    print(f"segments     {len(cut)}: {spans}")
    print(f"static       merging over time alone removes {cut.removed} tokens ({cut.removed / total:.1%})")
    print(f"kept         {len(seen.kept)} tokens: {merged} merged static, {alone} as they are")
    print(f"not kept     {carried} static cells carried by merged tokens, {dropped} cells dropped")
    print(f"budget       asked {budget:.2%}, realised {seen.realised:.2%}")
    for words in film.notes:
        print(f"note         {words}")
    if question:
        print(f"question     {question}\nanswer       {answer}")
    print(f"picture      {save_figure(figure, f'demo_{path.stem}', table, 'tiny', out)}")
    return 0


def _with_model(path: str, pixels: Any, method: HoliTom, budget: float, question: str) -> tuple[VideoFeatures, str]:
    """The features that a checkpoint gives, and its answer under the same reduction when a question is asked."""
    processor, answer = VideoProcessor.from_pretrained(path), ""
    model = load_model(path, torch.bfloat16 if torch.cuda.is_available() else torch.float32)
    inputs = {name: value.to(model.device) for name, value in processor(pixels, question or "What happens?").items()}
    with torch.no_grad(), reduce_tokens(model, outer=method, budget=budget) as run:
        found = run.encode(inputs.pop("pixel_values_videos").to(model.dtype))
        if question:
            run.provide(found)
            output = model.generate(**inputs, do_sample=False, max_new_tokens=128)[0, inputs["input_ids"].shape[1] :]
            answer = str(processor.tokenizer.decode(output, skip_special_tokens=True)).strip()
    on_host = {name: value.float().cpu() for name, value in vars(found[0]).items() if torch.is_tensor(value)}
    return replace(found[0], **on_host), answer


def main(words: Sequence[str] = ()) -> int:
    """The command line; errors go to the caller, which knows the exit codes."""
    command = typer.Typer(add_completion=False)
    command.command()(demo)
    return command(list(words), prog_name="./reproduce.sh demo", standalone_mode=False) or 0
