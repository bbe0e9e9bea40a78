"""Which attention implementation the full model is fastest with: tried, not assumed."""

from __future__ import annotations

import gc
import statistics
from collections.abc import Mapping
from typing import Any

import torch

from holitom.errors import CannotRun, KitError
from holitom_repro.latency.faults import device_lost, out_of_memory
from holitom_repro.latency.passes import Inputs, run_pass
from holitom_repro.latency.shapes import Loaded
from holitom_repro.latency.timeline import Clock
from holitom.types import Reduction

BACKENDS = ("flash_attention_2", "sdpa", "eager")


def full_setting(loaded: Loaded) -> Reduction | None:
    """How the full model is run: stock (None), or through this kit where transformers cannot run it (LLaVA-Video)."""
    return None if loaded.stock else Reduction("Vanilla")


def choose_backend(
    loaded: Loaded, inputs: Inputs, clock: Clock, tries: int = 3, skip: Mapping[str, str] | None = None
) -> tuple[str, dict[str, Any]]:
    """Sets the fastest backend on the model and returns its name with what each one did: seconds to the first token
    (median of ``tries`` after one warm-up), or in words why it could not. skip: what need not be tried, and why. Where
    one alone is left, it is taken without a try. CannotRun when none could."""
    seconds: dict[str, float] = {}
    tried: dict[str, Any] = dict(skip or {})
    if not _flash_installed():
        tried.setdefault("flash_attention_2", "not installed")
    left = [name for name in BACKENDS if name not in tried]
    if len(left) == 1:
        loaded.model.set_attn_implementation(left[0])
        return left[0], tried | {left[0]: "taken: the only one left"}
    for name in left:
        try:
            loaded.model.set_attn_implementation(name)
            run_pass(loaded, full_setting(loaded), inputs, clock)
            taken = [run_pass(loaded, full_setting(loaded), inputs, clock).ttft for _ in range(tries)]
            tried[name] = seconds[name] = statistics.median(taken)
        except (KitError, ImportError, ValueError, RuntimeError) as error:
            if device_lost(error):
                raise
            if out_of_memory(error):
                tried[name] = "out of memory"
                release(loaded)
                continue
            tried[name] = f"{type(error).__name__}: {str(error).splitlines()[0][:120]}"
    if not seconds:
        loaded.model.set_attn_implementation("sdpa")
        if any("out of memory" in str(outcome) for outcome in tried.values()):
            return "sdpa", tried
        raise CannotRun(f"the full model runs with no attention backend here ({tried})", fix="see the reasons above")
    best = min(seconds, key=seconds.__getitem__)
    loaded.model.set_attn_implementation(best)
    return best, tried


def release(loaded: Loaded) -> None:
    """Give back what a failed pass still holds, also where its error and its frames hold each other."""
    gc.collect()
    if loaded.device.type == "cuda":
        torch.cuda.empty_cache()


def _flash_installed() -> bool:
    try:
        from transformers.utils import is_flash_attn_2_available

        return bool(is_flash_attn_2_available())
    except ImportError:
        return False
