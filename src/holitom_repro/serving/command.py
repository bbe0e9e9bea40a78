"""``./reproduce.sh export-embeds``: a video and a question to a file of reduced prompt embeddings."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from typing import Any

from holitom_repro.refusals import file_to_write, given, present
from holitom_repro.usage import Parser


def parser() -> argparse.ArgumentParser:
    p = Parser(prog="./reproduce.sh export-embeds", description="Write a reduced prompt as embeddings for an engine.")
    p.add_argument("--model", required=True, help="folder or hub id of a LLaVA-OneVision checkpoint")
    p.add_argument("--video", required=True, type=given, help="a video file")
    p.add_argument("--prompt", required=True, help="the question; the chat template is put around it")
    p.add_argument("--out", required=True, type=given, help="the safetensors file to write")
    p.add_argument("--frames", type=int, default=32, help="frames sampled evenly (default 32)")
    p.add_argument("--method", default="HoliTom", help="a method that acts before the language model (default HoliTom)")
    p.add_argument("--budget", type=float, help="share of visual tokens to keep (default 0.1, or the preset's own)")
    p.add_argument(
        "--option", action="append", default=[], metavar="NAME=VALUE", help="a field of the method: tau=0.65"
    )
    p.add_argument(
        "--preset", help="a row of a table instead, e.g. table1:HoliTom:0.10, with --outer-only if it has more"
    )
    p.add_argument("--outer-only", action="store_true", help="leave out stages inside the language model, and say so")
    p.add_argument("--device", help="cuda or cpu (default: the GPU if there is one)")
    p.add_argument("--dtype", default="auto", help="auto (as stored), float32, float16 or bfloat16")
    p.add_argument("--language-model", type=given, metavar="DIR", help="also write the language model for the engine")
    return p


def main(words: Sequence[str] | None = None) -> int:
    """Run the command; errors are holitom.errors."""
    args = parser().parse_args(words)
    file_to_write(args.out, "--out")
    if args.device:
        present(args.device)
    from holitom_repro.evaluation.arguments import reduction_from
    from holitom_repro.evaluation.cells import model_path, revision
    from holitom.models.processing import VideoProcessor, load_config, load_model
    from holitom_repro.provenance import code_fingerprint
    from holitom_repro.serving import prompt_embeds, save
    from holitom_repro.serving.embeds import check_travels
    from holitom_repro.serving.language_model import check_new, export
    from holitom_repro.serving.options import fields_of
    from holitom.video import DECODER, load_frames

    place = model_path(args.model)
    layers = load_config(place).text_config.num_hidden_layers
    if args.language_model:
        check_new(args.language_model)
    if args.preset:
        fields: dict[str, Any] = {"preset": args.preset, "budget": 1.0}  # 1: the preset's own
    else:
        fields = {"method": args.method, "fields": fields_of(args.method, args.option), "budget": 0.1}
    fields |= {} if args.budget is None else {"budget": args.budget}
    reduction = reduction_from(layers=layers, **fields)
    left_out = [type(stage).__name__ for stage in (*reduction.inner, *filter(None, [reduction.decode]))]
    if args.outer_only and left_out:
        _warn(f"left out: {', '.join(left_out)}; this is not the whole of {reduction.name}")
        reduction = dataclasses.replace(reduction, inner=(), decode=None)
    check_travels(reduction)
    frames = load_frames(args.video, args.frames)
    model, processor = load_model(place, dtype=args.dtype, device=args.device), VideoProcessor.from_pretrained(place)
    inputs = {name: value.to(model.device) for name, value in processor(frames.pixels, args.prompt).items()}
    made = prompt_embeds(model, inputs, reduction)
    made.provenance.update(
        {
            "model": args.model,
            "model_revision": revision(args.model),
            "video": args.video.name,
            "frames": len(frames),
            "decoder": DECODER,
            "prompt": args.prompt,
            "method": reduction.describe(),
            "left_out": left_out if args.outer_only else [],
            "positions": "contiguous" if made.contiguous else "original",
            "code": code_fingerprint(),
        }
    )
    save(made, args.out)
    if not made.contiguous:
        _warn("this method keeps original positions; an engine numbers the prompt anew, so its answers may differ")
    tokens, width = made.embeds.shape
    print(f"{args.out}: prompt_embeds [{tokens}, {width}] {str(made.embeds.dtype).removeprefix('torch.')}")
    print(f"visual tokens removed: {made.provenance['removed_tokens']}")
    if args.language_model:
        print(f"language model: {export(model, processor.tokenizer, args.language_model)}")
    return 0


def _warn(text: str) -> None:
    print(f"warning: {text}", file=sys.stderr)
