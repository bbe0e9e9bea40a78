"""The door: put token reduction into a video language model for as long as a ``with`` block lasts.

``generate`` of the model instance reduces the videos, splices the prompt and goes on from embeddings; the forward of
its core does so for a plain call. From there on the model itself counts in the reduced prompt: nothing is translated
back. Hooks on the decoder layers run the stages inside (``holitom.attach.decoder``)."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from torch import nn

from holitom.attach.checks import check_model, check_stages
from holitom.attach.llava import PackageRun
from holitom.attach.session import Run
from holitom.attach.stats import RunStats, SampleStats
from holitom.attach.tower import check_tower
from holitom.errors import BadUsage
from holitom.models import adapter_for
from holitom.types import Decode, Inner, Outer, Reduction, Tower, check_budget

__all__ = ["Run", "RunStats", "SampleStats", "reduce_tokens"]
_CHANGING = threading.Lock()  # two threads that open a block at once would take each other's methods for the model's


@contextmanager
def reduce_tokens(
    model: nn.Module,
    outer: Outer | None = None,
    budget: float = 1.0,
    inner: Inner | Sequence[Inner] = (),
    decode: Decode | None = None,
    *,
    tower: Tower | None = None,
    reduction: Reduction | None = None,
) -> Iterator[Run]:
    """Reduce the visual tokens of every video that this model sees inside the block::

        with reduce_tokens(model, outer=HoliTom(tau=0.65), budget=0.1, inner=HoliTomMerge(layer=18, ratio=0.5)) as run:
            out = model.generate(**inputs)
        run.stats.last.kept

    outer runs before the language model and keeps about ``budget`` of the T * N tokens; inner stages run once each in
    prefill, in front of their layers; decode chooses what is read for every generated token; tower (``EarlyTom()``)
    merges frames inside a SigLIP tower, so that outer sees fewer. ``reduction`` gives all five at once. ``run.stats``
    says what was asked and spent; ``check_acted()`` raises CannotRun when a stage has done nothing.

    Prompts keep their placeholders (any number > 0 per video, one unbroken run each), and returned sequences the full
    prompt. ``generate``: greedy, sampling, beams, returned sequences, left-padded batches, several videos, images
    beside them; what reads ids while generating reads those of the full prompt; a cache is always used. A plain forward
    gives the logits of the reduced prompt, padded on the left; further tokens may follow on its cache (their positions
    and mask follow from it), but no further ``generate``. Images and prompts without video pass through unchanged.

    Hooks and instance attributes (``generate``, ``forward`` of the core) are set on this model object and removed when
    the block ends, also after an exception. Copying the model inside the block is refused, and so is a second thread
    while a call is under way; a call that outlives the block raises in its own thread, and so does what goes on from a
    cache that was filled inside it. Raises UnsupportedModel (unknown family, training mode, compiled model,
    static, offloaded or quantised cache, chunked prefill, assisted decoding; sliding windows for stages inside the
    decoder) and BadUsage (budget, layers, attributes of a stage, labels, inputs).
    """
    if reduction is not None and not isinstance(reduction, Reduction):
        raise BadUsage(f"reduction is a {type(reduction).__name__}", fix="give a Reduction: preset(...).reduction")
    if reduction is not None and (budget != 1.0 or inner or any(stage is not None for stage in (outer, decode, tower))):
        raise BadUsage("a reduction is given, and stages beside it", fix="give one of the two")
    stages = tuple(inner) if isinstance(inner, Sequence) else (inner,)
    chosen = reduction or Reduction("custom", outer, budget, stages, decode, tower)
    check_budget(chosen.budget)
    check_model(model, model.modules())
    adapter = adapter_for(model)
    check_stages(adapter, chosen)
    if chosen.tower is not None:
        check_tower(adapter, chosen.tower)
    run = (PackageRun if hasattr(adapter, "owner") else Run)(model, adapter, chosen)
    try:
        with _CHANGING:
            run.install()
        yield run
    finally:
        with _CHANGING:
            run.remove()
