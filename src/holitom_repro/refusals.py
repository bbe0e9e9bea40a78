"""What a command line refuses before it loads or computes anything: devices, and places that cannot be written to."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

from holitom.errors import BadUsage, CannotRun


def given(text: str) -> Path:
    """The type of an option that takes a path: an empty one is a script's unset variable, not this folder."""
    if not text.strip():
        raise argparse.ArgumentTypeError("the path is empty")
    return Path(text)


def at_least_one(text: str) -> int:
    """The type of an option that counts something."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def file_to_write(path: Path, option: str) -> Path:
    """``path`` if a file can be put there. BadUsage: it is a folder, or lies below a file; CannotRun: no right to."""
    if path.is_dir():
        raise BadUsage(f"{option} {path} is a folder", fix="name a file in it")
    _reachable(path.parent, option)
    return path


def folder_to_write(path: Path, option: str) -> Path:
    """``path`` if it is a folder or one can be made there; otherwise as ``file_to_write``."""
    _reachable(path, option)
    return path


def _reachable(folder: Path, option: str) -> None:
    there = next(place for place in (folder.absolute(), *folder.absolute().parents) if place.exists())
    if not there.is_dir():
        raise BadUsage(f"{option}: {there} is a file, not a folder", fix="name another folder")
    if not os.access(there, os.W_OK | os.X_OK):
        raise CannotRun(f"{option}: {there} is not writable", fix="make it so, or name another folder")


def device(text: str) -> Any:
    """The torch device of that name. BadUsage for another than cpu and cuda; whether it is there is not looked at."""
    import torch

    try:
        found = torch.device(text)
    except RuntimeError:  # torch's words list every backend there is
        found = None
    if found is None or found.type not in ("cpu", "cuda"):
        raise BadUsage(f"--device {text} is not known", fix="use cpu or cuda")
    return found


def present(text: str) -> Any:
    """``device``, and CannotRun when this machine does not have it."""
    import torch

    found = device(text)
    if found.type == "cuda" and not torch.cuda.is_available():
        raise CannotRun("no CUDA device here", fix="give --device cpu")
    if found.type == "cuda" and (found.index or 0) >= torch.cuda.device_count():
        raise CannotRun(f"no {text} here, {torch.cuda.device_count()} GPUs are", fix="give --device cuda")
    return found
