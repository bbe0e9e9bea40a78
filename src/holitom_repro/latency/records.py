"""One JSON line per timed setting: every sample, its summary, and all that is needed to judge it.

data/measured/NOTES.md says in words what the fields mean."""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from holitom.errors import BadUsage, CannotRun
from holitom_repro.latency.decoding import WAYS
from holitom_repro.latency.passes import ADDED, STAGES

VERSION = 1
OUTCOMES = ("measured", "out of memory", "unsupported")
FIELDS: dict[str, type | tuple[type, ...]] = {
    "version": int,
    "kind": str,
    "outcome": str,
    "reason": str,
    "tier": str,
    "created": str,
    "model": str,
    "layers": int,
    "full_layers": int,
    "weights": str,
    "device": str,
    "dtype": str,
    "attention": str,
    "attention_tried": dict,
    "clock": str,
    "row": str,
    "at": str,
    "part": str,
    "method": dict,
    "frames": int,
    "cells_per_frame": int,
    "batch": int,
    "content": dict,
    "requested_tokens": (int, float, type(None)),
    "realised_tokens": (int, float, type(None)),
    "tokens_per_layer": list,
    "calls": dict,
    "samples": dict,
    "summary": dict,
    "memory": dict,
    "host_stages": dict,
    "host_syncs": dict,
    "state": dict,
    "provenance": dict,
    "code": str,
}
SUMMARY = ("ttft_ms", "staged_ttft_ms", "stages_ms", "stages_over_total", "added_ms", "videos_per_s")


def spread(samples: Sequence[float], scale: float | int = 1) -> dict[str, float | int]:
    """median, first and third quartile (inclusive method) and n; with one sample, three times the same."""
    if not samples:
        raise BadUsage("no samples to summarise", fix="repeat at least once")
    low, middle, high = (
        statistics.quantiles(samples, n=4, method="inclusive") if len(samples) > 1 else (samples[0],) * 3
    )
    return {"median": middle * scale, "q1": low * scale, "q3": high * scale, "n": len(samples)}


def summarise(samples: Mapping[str, Any], batch: int, new_tokens: int) -> dict[str, Any]:
    """What a record says in short. samples: seconds: ttft, staged_ttft, stages {name: [...]}, decode.

    added_ms: per pass, everything that a reduction adds before and inside the language model (ADDED);
    stages_over_total: the sum of the marked stages over the same pass's end-to-end time (1: nothing is missing), and
    staged_ttft over ttft in the medians is what the marks themselves cost.
    """
    stages = samples["stages"]
    added = [sum(parts) for parts in zip(*(stages[name] for name in ADDED), strict=True)]
    sums = [sum(parts) for parts in zip(*(stages[name] for name in STAGES), strict=True)]
    ratios = [total / whole for total, whole in zip(sums, samples["staged_ttft"], strict=True)]
    ttft = spread(samples["ttft"], 1000)
    summary: dict[str, Any] = {
        "ttft_ms": ttft,
        "staged_ttft_ms": spread(samples["staged_ttft"], 1000),
        "stages_ms": {name: spread(stages[name], 1000) for name in STAGES},
        "stages_over_total": spread(ratios),
        "added_ms": spread(added, 1000),
        "videos_per_s": 1000 * batch / ttft["median"],
        "decode_tok_s": None,
        "answers_per_s": None,
    }
    if samples.get("decode"):
        rate = spread([batch * new_tokens / taken for taken in samples["decode"]])
        whole = ttft["median"] / 1000 + statistics.median(samples["decode"])
        summary |= {"decode_tok_s": rate, "answers_per_s": batch / whole}
    return summary


def extrapolated(summary: Mapping[str, Any], layers: int, full_layers: int) -> dict[str, Any] | None:
    """The time to the first token if the decoder had all of its layers: its two stages times full / measured layers,
    the rest as measured. None when nothing was cut."""
    if layers == full_layers:
        return None
    stages = {name: part["median"] for name, part in summary["stages_ms"].items()}
    decoder = stages["prefill"] + stages["inner"]
    rest = sum(stages.values()) - decoder
    return {
        "ttft_ms": rest + decoder * full_layers / layers,
        "how": f"extrapolated from {layers} of {full_layers} decoder layers: prefill and inner scaled, the rest as is",
    }


def check(record: Mapping[str, Any]) -> Mapping[str, Any]:
    """The record itself if it is whole; BadUsage names what is missing, of a wrong kind or inconsistent."""
    for name, kind in FIELDS.items():
        if name not in record:
            raise BadUsage(f"a latency record lacks {name!r}", fix="record it again with bench latency")
        if not isinstance(record[name], kind) or (isinstance(record[name], bool) and kind is int):
            raise BadUsage(f"{name} of a latency record is {record[name]!r}", fix=f"its kind must be {kind}")
    if record["version"] != VERSION or record["kind"] != "latency":
        raise BadUsage(f"a record of version {record['version']}, kind {record['kind']!r}", fix="record it again")
    if record["outcome"] not in OUTCOMES or (record["outcome"] != "measured" and not record["reason"]):
        raise BadUsage(f"outcome {record['outcome']!r} without a reason", fix=f"use one of {', '.join(OUTCOMES)}")
    if not record["provenance"]:
        raise BadUsage("a latency record without provenance", fix="pass provenance=provenance()")
    if record["outcome"] == "measured":
        _check_measured(record)
    return record


def _check_measured(record: Mapping[str, Any]) -> None:
    samples, summary = record["samples"], record["summary"]
    if missing := [name for name in SUMMARY if name not in summary]:
        raise BadUsage(f"the summary lacks {', '.join(missing)}", fix="record it again")
    counts = {len(samples["staged_ttft"]), *(len(part) for part in samples["stages"].values())}
    expected = (record["repeats"], record["staged_repeats"])
    if counts != {expected[1]} or len(samples["ttft"]) != expected[0] or set(samples["stages"]) != set(STAGES):
        raise BadUsage(f"{len(samples['ttft'])} and {sorted(counts)} samples", fix=f"there must be {expected}")
    if min(samples["ttft"]) <= 0 or min(map(min, samples["stages"].values())) < 0:
        raise BadUsage("a sample is not a duration", fix="record it again")
    again = summarise(samples, record["batch"], record["new_tokens"])
    if abs(again["ttft_ms"]["median"] - summary["ttft_ms"]["median"]) > 1e-6:
        raise BadUsage("the summary does not follow from the samples", fix="record it again")
    if abs(summary["stages_over_total"]["median"] - 1) > 0.01:
        raise BadUsage("the stages do not add up to the total", fix="a boundary is missing in holitom_repro.latency.passes")
    for way, run in record.get("decoding", {}).items():
        _check_decoding(way, run, record)
    if not record["memory"].get("kv_bytes_per_layer"):
        raise BadUsage("no size of the cache per layer", fix="record it again")


def _check_decoding(way: str, run: Mapping[str, Any], record: Mapping[str, Any]) -> None:
    if way not in WAYS or run.get("outcome") not in OUTCOMES:
        raise BadUsage(f"decoding {way!r}: {run.get('outcome')!r}", fix=f"ways are {', '.join(WAYS)}; record it again")
    if run["outcome"] != "measured":
        if not run.get("reason"):
            raise BadUsage(f"decoding {way!r} failed without a reason", fix="record it again")
        return
    again = spread([record["batch"] * record["new_tokens"] / taken for taken in run["seconds"]])
    if abs(again["median"] - run["tok_s"]["median"]) > 1e-6 * again["median"]:
        raise BadUsage(f"the rate of decoding {way!r} does not follow from its samples", fix="record it again")
    if not 0 <= run["same_tokens"] <= 1:
        raise BadUsage(f"{run['same_tokens']} of the tokens of {way!r} agree", fix="record it again")


def write(path: Path, records: Iterable[Mapping[str, Any]], *, append: bool = False) -> Path:
    """Checked records as JSON lines, the whole file or nothing."""
    from holitom_repro.results import write_atomic

    lines = "".join(json.dumps(check(record), ensure_ascii=False) + "\n" for record in records)
    before = "".join(line + "\n" for _, line, _ in stored_lines(path, warn=False)) if append and path.is_file() else ""
    return write_atomic(path, before + lines)


def read(path: Path) -> list[dict[str, Any]]:
    """The checked records of a file. A last line that was cut off is left out, with a warning: its setting counts as
    not measured. CannotRun names the file and the line of any other broken one."""
    if not path.is_file():
        raise CannotRun(f"there is no file {path}", fix="record it: python -m holitom_repro bench latency --help")
    found = []
    for number, _, stored in stored_lines(path):
        if not isinstance(stored, dict):
            raise _broken(path, number, "no latency record")
        try:
            found.append(dict(check(stored)))
        except BadUsage as error:
            raise _broken(path, number, error.what) from error
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise _broken(path, number, f"no whole latency record ({type(error).__name__}: {error})") from error
    return found


def stored_lines(path: Path, *, warn: bool = True) -> list[tuple[int, str, Any]]:
    """Number, text and value of every line; without a last one that is no JSON, which a kill while writing leaves."""
    raw = [(number, line) for number, line in enumerate(path.read_bytes().split(b"\n"), start=1) if line.strip()]
    found = []
    for number, line in raw:
        try:
            text = line.decode("utf-8")
            found.append((number, text, json.loads(text)))
        except ValueError as error:  # of both: UnicodeDecodeError and JSONDecodeError
            if (number, line) != raw[-1]:
                raise _broken(path, number, f"no JSON ({error})") from error
            if warn:  # whoever appends has been told when the file was read
                print(f"warning: {path}, line {number}: cut off, left out and measured again", file=sys.stderr)
    return found


def _broken(path: Path, number: int, what: str) -> CannotRun:
    return CannotRun(
        f"{path}, line {number}: {what}", fix="delete that line, or measure everything anew (experiments: --fresh)"
    )
