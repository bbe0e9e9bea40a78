"""Time and memory of every method's outer stage, as ratios in one run: ``python scripts/speed.py [--help]``.

Milliseconds belong to one machine. Beside them stand the ratios to HoliTom's outer stage and to one reading of the
tokens, measured in the same rounds, and the most memory held beyond the input, over the input's size. Then HoliTom's
outer stage over videos of growing length. Aims: no method takes more than 5 times as long as HoliTom, no peak is above
the input's size, and a frame costs the same in a long video as in a short one. ``--tower 16`` instead: the vision tower
of LLaVA-OneVision-7B with random weights on so many frames of the shipped clip, whole and with EarlyTom (minutes), and
the tiny model's time to the first token, stage by stage.
"""

import argparse
import statistics
import tracemalloc
import weakref
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch.nn.functional import interpolate
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AutoModelForImageTextToText, Qwen2Config

from holitom import methods, reduce_tokens
from holitom.flops import SIGLIP_384, vision_flops
from holitom.models.inputs import VideoProcessor
from holitom.types import Reduction
from holitom.video import load_frames
from holitom_repro import paths
from holitom_repro.timing.rows import STAGES
from holitom_repro.timing.shapes import Model, drawn_video
from holitom_repro.timing.stages import between, clock_of, run_pass

OUTER = {
    "HoliTom": methods.HoliTom(),
    "FastVID": methods.FastVID(head="substitute"),
    "PruneVid": methods.PruneVid(),
    "MMG-Vid": methods.MMGVid(),
    "HieraVid": methods.HieraVid(),
    "UniComp": methods.UniComp(head="substitute"),
    "V-CAST": methods.VCast(),
    "FlashVID": methods.FlashVID(),
    "unified pool": methods.UnifiedPool(),
    "VisionZip": methods.VisionZip(),
    "DyCoke": methods.DyCoke(),
    "ToMe": methods.ToMe(),
    "random": methods.RandomDrop(),
    "stride": methods.UniformStride(),
    "saliency": methods.SaliencyTopK(),
    "pooling": methods.AveragePool(),
}
LENGTHS = (32, 64, 128, 256, 512, 1024)


def in_turns(calls: Mapping[str, Callable[[], object]], repeats: int, device: str) -> dict[str, list[float]]:
    """Milliseconds of every call, all of them in each round; the first round warms up and does not count."""
    taken: dict[str, list[float]] = {name: [] for name in calls}
    now = clock_of(device)[1]
    for repeat in range(repeats + 1):
        for name, call in calls.items():
            begin = now()
            call()
            spent = between(begin, now())
            if repeat:
                taken[name].append(1000 * spent)
    return taken


def peak_bytes(call: Callable[[], object], device: str) -> int:
    """Most bytes held at once by what ``call`` allocates, its result included. CUDA: the allocator's own peak; CPU: the
    storages behind every operation's outputs, and numpy's peak. Scratch space inside one operation is not seen."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        return torch.cuda.max_memory_allocated() - before
    tracemalloc.start()
    try:
        with LiveBytes() as live:
            call()
        return live.peak + tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of storages that operations create, until Python lets go of them."""

    def __init__(self) -> None:
        super().__init__()
        self.held: dict[int, int] = {}
        self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {x.untyped_storage().data_ptr() for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)}
        result = func(*args, **(kwargs or {}))
        for storage in (x.untyped_storage() for x in tree_leaves(result) if isinstance(x, torch.Tensor)):
            address = storage.data_ptr()
            if address not in given and address not in self.held:
                self.held[address] = storage.nbytes()
                self.peak = max(self.peak, sum(self.held.values()))
                weakref.finalize(storage, self.held.pop, address, None)
        return result


def tower(frames: int) -> None:
    """Print seconds and FLOPs of one pass of the tower, without and with EarlyTom's preset. The decoder is a stub."""
    config, small = Model("ov-7b").config, dict.fromkeys(("hidden_size", "intermediate_size", "vocab_size"), 64)
    config.text_config = Qwen2Config(**small, num_hidden_layers=1, num_attention_heads=1, num_key_value_heads=1)
    torch.manual_seed(0)
    model = AutoModelForImageTextToText.from_config(config, dtype=torch.float32).eval()
    pictures = torch.from_numpy(load_frames(paths.data("videos", "three_shots.mp4"), frames).pixels)
    pixels = interpolate(pictures.permute(0, 3, 1, 2) / 127.5 - 1, (384, 384), mode="bicubic")
    name, now = clock_of("cpu")
    print(f"{frames} frames, float32, {name}")
    spent, flops = [], []
    for stage in (methods.EarlyTom(), None):
        with reduce_tokens(model, tower=stage) as run:
            begin = now()
            merged = run.encode(pixels[None])[0].merged
            spent.append(between(begin, now()))
        entered = merged.entered if merged else [frames] * SIGLIP_384.layers
        flops.append(vision_flops(entered))
        print(f"{stage}: frames in the layers {entered}, {spent[-1]:.1f} s, {flops[-1] / 1e12:.2f} TFLOPs", flush=True)
    print(f"{spent[1] / spent[0]:.2f}x less time, {flops[1] / flops[0]:.2f}x fewer FLOPs")


def first_token(repeats: int) -> None:
    """Print medians of the tiny model's stages until the first token (ms), on 32 frames of the shipped clip."""
    model, processor = (
        Model("tiny", "cpu", "float32").load(),
        VideoProcessor.from_pretrained(paths.data("tiny/onevision")),
    )
    asked = processor(load_frames(paths.data("videos", "three_shots.mp4"), 32).pixels, "what color is it ?")
    pixels, ids, outer = asked["pixel_values_videos"], asked["input_ids"], methods.HoliTom()
    with reduce_tokens(model.module, outer, 0.10) as run:
        features = run.encode(pixels)
    tower, rows = methods.EarlyTom((0,)), {"all tokens": Reduction("all tokens")}  # it has three layers
    rows |= {"HoliTom, 10 %": Reduction("HoliTom", outer, 0.10), "EarlyTom": Reduction("EarlyTom", tower=tower)}
    rows["both"] = Reduction("both", outer, 0.10, tower=tower)
    print(f"\n{'tiny model (ms)':<16}{'TTFT':>9}{''.join(f'{name:>13}' for name in STAGES)}")
    for name, reduction in rows.items():
        passes = [run_pass(model, reduction, (pixels, ids, features)) for _ in range(repeats + 2)][2:]
        spent = [[one.ttft, *(one.stages[stage] for stage in STAGES)] for one in passes]
        ttft, *stages = (1000 * statistics.median(column) for column in zip(*spent, strict=True))
        print(f"{name:<16}{ttft:>9.1f}{''.join(f'{value:>13.1f}' for value in stages)}")


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dim", type=int, default=3584, help="token size (3584, a 7B model)")
    parser.add_argument("--budget", type=float, default=0.10, help="share kept; DyCoke keeps at least a quarter (0.1)")
    parser.add_argument("--repeats", type=int, default=7, help="rounds; medians count (7)")
    parser.add_argument("--threads", type=int, default=1, help="of a CPU; with one, CPU seconds are measured (1)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32")
    parser.add_argument("--tower", type=int, default=0, help="time the vision tower on so many frames instead")
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    if asked.tower:
        tower(asked.tower)
        return first_token(max(7, asked.repeats))
    where = {"device": asked.device, "dtype": getattr(torch, asked.dtype)}
    video = drawn_video(32, (14, 14), asked.dim, **where)
    share = {name: max(asked.budget, 0.25) if name == "DyCoke" else asked.budget for name in OUTER}
    calls = {name: partial(stage, video, share[name]) for name, stage in OUTER.items()}
    taken = in_turns({"one reading": video.tokens.sum, **calls}, asked.repeats, asked.device)
    ms = {name: statistics.median(one) for name, one in taken.items()}
    print(f"32 x 196 x {asked.dim}, {asked.budget:.0%}, {asked.dtype}, {asked.device}, {clock_of(asked.device)[0]}\n")
    print(f"{'outer stage':<12}{'ms':>9}{'/ HoliTom':>11}{'/ one reading':>15}{'peak / input':>14}")
    for name, middle in ms.items():
        peak = peak_bytes(calls[name], asked.device) / video.tokens.nbytes if name in calls else 0.0
        ratios = f"{middle / ms['HoliTom']:>11.2f}{middle / ms['one reading']:>15.1f}"
        print(f"{name:<12}{middle:>9.2f}{ratios}{peak:>14.2f}")
    print(f"\n{'frames x 196 x 64':<18}{'ms':>9}{'per frame / at 32':>20}{'peak / input':>14}")
    videos = [drawn_video(frames, (14, 14), 64, **where) for frames in LENGTHS]
    longer = {str(one.frames): partial(OUTER["HoliTom"], one, asked.budget) for one in videos}
    ms = {name: statistics.median(one) for name, one in in_turns(longer, asked.repeats, asked.device).items()}
    for one, (name, middle) in zip(videos, ms.items(), strict=True):
        peak = peak_bytes(longer[name], asked.device) / one.tokens.nbytes
        print(f"{name:<18}{middle:>9.2f}{middle / ms['32'] * 32 / one.frames:>20.2f}{peak:>14.2f}")


if __name__ == "__main__":
    main()
