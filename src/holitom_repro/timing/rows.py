"""One JSON line per timed row: every sample, its summary, and all that is needed to judge it."""

import json
import statistics
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

STAGES = ("vision", "saliency", "outer", "splice", "prefill", "inner", "first_token")
"""vision: tower (and a stage in it), projector, pooling; saliency: what the patches of the tower's last layer receive,
and its keys, from q and k; outer: the reduction before the language model; splice: prompt, newlines, embeddings;
prefill: the decoder; inner: stages inside it, with their attention rows and the later layers' positions and masks;
first_token: last norm to the chosen id."""
ADDED = ("saliency", "outer", "inner")  # what only a reduction has
SAME = ["model", "layers", "device", "dtype", "attention", "frames", "batch", "code"]  # of rows that may be compared
KEY = [*SAME, "row", "at", "new_tokens", "repeats"]  # what makes another measurement of the same row needless

TimedRow = dict[str, Any]
"""One row timed on one model, device, number of frames and videos. at: "all tokens" or a budget in words, such as
"printed, 10%"; budget: the share asked of the outer stage; setting: ``Reduction.describe()``.

layers: decoder layers that ran, of full_layers; device: "CPU", or the GPU's name; clock: ``stages.clock_of``; cells: of
a frame; tokens_per_layer: visual tokens per video that entered each layer (mean over the batch). samples, in seconds:
ttft, stages {name: [...]}, decode (of new_tokens tokens); summary: ``summary``. outcome: "measured", or without samples
"out of memory" or "unsupported", with the reason. created: UTC."""


def spread(samples: Sequence[float], scale: float = 1) -> dict[str, float]:
    """median, first and third quartile (inclusive method) and n, times ``scale``."""
    low, middle, high = statistics.quantiles(samples, method="inclusive") if len(samples) > 1 else [*samples] * 3
    return {"median": middle * scale, "q1": low * scale, "q3": high * scale, "n": len(samples)}


def summary(row: TimedRow) -> dict[str, Any]:
    """Each a ``spread``: ttft_ms, stages_ms, prefill_ms (with the inner stages), added_ms (what only a reduction has),
    decode_tok_s (None without decoding). Then kept_pct and mean_pct: the visual tokens in the first layer and in the
    mean over the layers. Nothing of a row without samples."""
    if not row["samples"]:
        return {}
    stages, decode, tokens = row["samples"]["stages"], row["samples"]["decode"], row["tokens_per_layer"]
    visual, made = row["frames"] * row["cells"] / 100, row["batch"] * row["new_tokens"]

    def total(*names: str) -> dict[str, float]:
        return spread([sum(parts) for parts in zip(*(stages[name] for name in names), strict=True)], 1000)

    return {
        "ttft_ms": spread(row["samples"]["ttft"], 1000),
        "stages_ms": {name: total(name) for name in STAGES},
        "prefill_ms": total("prefill", "inner"),
        "added_ms": total(*ADDED),
        "decode_tok_s": spread([made / seconds for seconds in decode]) if decode else None,
        "kept_pct": tokens[0] / visual,
        "mean_pct": statistics.fmean(tokens) / visual,
    }


def in_words(row: TimedRow) -> str:
    """One line for a terminal."""
    said, made = f"{row['outcome']} ({row['reason']})", row["summary"]
    if made:
        said = ", ".join(f"{name} {made[f'{name}_ms']['median']:.2f} ms" for name in ("ttft", "prefill", "added"))
    size = f"{row['model']}, {row['frames']} frames x {row['batch']}, {row['device']}"
    return f"{size}: {row['row']}, {row['at']}: {said}"


def key(row: TimedRow) -> tuple[Any, ...]:
    """KEY of a row; the recorded ones do not tell their repeats."""
    return (*(row[name] for name in KEY[:-1]), row.get("repeats"))


def append(path: Path, row: TimedRow) -> None:
    """Add a line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n")


def read(path: Path) -> list[TimedRow]:
    """The rows of a file; none where there is no file. Summaries follow from the samples, whatever is stored. A line
    that is no whole row is left out, with a warning: its row counts as not measured."""
    found = []
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
            key(row)
            found.append(row | {"summary": summary(row)})
        except (ValueError, KeyError, TypeError) as error:
            print(f"warning: {path}, line {number} is no timed row and is left out ({error})", file=sys.stderr)
    return found


def table(rows: Iterable[TimedRow]) -> Any:
    """A pandas frame with columns like "frames" and "summary.ttft_ms.median". x_full: how many times as fast as the
    full model's the first token comes, where that was timed by the same code on the same device."""
    import pandas as pd

    frame, ttft = pd.json_normalize(list(rows)), "summary.ttft_ms.median"
    full = frame[frame["at"] == "all tokens"].drop_duplicates(SAME, keep="last")
    return frame.assign(x_full=frame[SAME].merge(full[[*SAME, ttft]], how="left")[ttft] / frame[ttft])
