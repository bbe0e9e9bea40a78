"""One JSON line per timed row: every sample, its summary, and all that is needed to judge it."""

import json
import statistics
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

STAGES = ("vision", "saliency", "outer", "splice", "prefill", "inner", "first_token")
"""vision: tower (and a stage in it), projector, pooling; saliency: what the patches of the tower's last layer receive,
and its keys, from q and k; outer: the reduction before the language model; splice: prompt, newlines, embeddings;
prefill: the decoder; inner: stages inside it, with their attention rows and the later layers' positions and masks;
first_token: last norm to the chosen id."""
ADDED = ("saliency", "outer", "inner")  # what only a reduction has
SAME = ["model", "layers", "device", "dtype", "attention", "frames", "batch", "code"]  # of rows that may be compared
KEY = [*SAME, "row", "at", "new_tokens"]  # what makes another measurement of the same row needless


def spread(samples: Sequence[float], scale: float = 1) -> dict[str, float]:
    """median, first and third quartile (inclusive method) and n, times ``scale``."""
    low, middle, high = statistics.quantiles(samples, method="inclusive") if len(samples) > 1 else [*samples] * 3
    return {"median": middle * scale, "q1": low * scale, "q3": high * scale, "n": len(samples)}


@dataclass(frozen=True, kw_only=True)
class TimedRow:
    """One row timed on one model, device, number of frames and videos. at: "all tokens" or a budget in words, such as
    "printed, 10%"; budget: the share asked of the outer stage; setting: ``Reduction.describe()``.

    layers: decoder layers that ran, of full_layers; device: "CPU", or the GPU's name; clock: ``stages.clock_of``;
    cells: of a frame; tokens_per_layer: visual tokens per video that entered each layer (mean over the batch). samples,
    in seconds: ttft, stages {name: [...]}, decode (of new_tokens tokens). outcome: "measured", or without samples "out
    of memory" or "unsupported", with the reason. created: UTC.
    """

    tier: str
    row: str
    at: str
    budget: float
    setting: dict[str, Any]
    model: str
    layers: int
    full_layers: int
    device: str
    dtype: str
    attention: str
    clock: str
    frames: int
    cells: int
    batch: int
    new_tokens: int
    content: str
    outcome: str
    reason: str
    tokens_per_layer: list[float]
    samples: dict[str, Any]
    provenance: dict[str, Any]
    created: str
    code: str

    @property
    def key(self) -> tuple[Any, ...]:
        return tuple(getattr(self, name) for name in KEY)

    @property
    def summary(self) -> dict[str, Any]:
        """Each a ``spread``: ttft_ms, stages_ms, prefill_ms (with the inner stages), added_ms (what only a reduction
        has), decode_tok_s (None without decoding). Then kept_pct and mean_pct: the visual tokens in the first layer
        and in the mean over the layers."""
        if not self.samples:
            return {}
        stages, decode, visual = self.samples["stages"], self.samples["decode"], self.frames * self.cells / 100

        def total(*names: str) -> dict[str, float]:
            return spread([sum(parts) for parts in zip(*(stages[name] for name in names), strict=True)], 1000)

        return {
            "ttft_ms": spread(self.samples["ttft"], 1000),
            "stages_ms": {name: total(name) for name in STAGES},
            "prefill_ms": total("prefill", "inner"),
            "added_ms": total(*ADDED),
            "decode_tok_s": spread([self.batch * self.new_tokens / s for s in decode]) if decode else None,
            "kept_pct": self.tokens_per_layer[0] / visual,
            "mean_pct": statistics.fmean(self.tokens_per_layer) / visual,
        }

    def as_dict(self) -> dict[str, Any]:
        """With the summary, as the file holds it."""
        return asdict(self) | {"summary": self.summary}

    def __str__(self) -> str:
        """One line for a terminal."""
        said, made = f"{self.outcome} ({self.reason})", self.summary
        if made:
            said = ", ".join(f"{n} {made[f'{n}_ms']['median']:.2f} ms" for n in ("ttft", "prefill", "added"))
            said += f", {made['decode_tok_s']['median']:.1f} tokens/s" if made["decode_tok_s"] else ""
        return f"{self.model}, {self.frames} frames x {self.batch}, {self.device}: {self.row}, {self.at}: {said}"


def append(path: Path, row: TimedRow) -> None:
    """Add a line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row.as_dict(), ensure_ascii=False, allow_nan=False) + "\n")


def read(path: Path) -> list[TimedRow]:
    """The rows of a file; none where there is no file. Summaries follow from the samples, whatever is stored. A line
    that is no whole row is left out, with a warning: its row counts as not measured."""
    names, found = [field.name for field in fields(TimedRow)], []
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []
    for number, line in enumerate(lines, start=1):
        try:
            stored = json.loads(line)
            found.append(TimedRow(**{name: stored[name] for name in names}))
        except (ValueError, KeyError, TypeError) as error:
            print(f"warning: {path}, line {number} is no timed row and is left out ({error})", file=sys.stderr)
    return found


def table(rows: Iterable[TimedRow]) -> Any:
    """A pandas frame with columns like "frames" and "summary.ttft_ms.median". x_full: how many times as fast as the
    full model's the first token comes, where that was timed by the same code on the same device."""
    import pandas as pd

    frame, ttft = pd.json_normalize([row.as_dict() for row in rows]), "summary.ttft_ms.median"
    full = frame[frame["at"] == "all tokens"].drop_duplicates(SAME, keep="last")
    return frame.assign(x_full=frame[SAME].merge(full[[*SAME, ttft]], how="left")[ttft] / frame[ttft])
