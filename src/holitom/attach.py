"""The door: put token reduction into a video language model for as long as a ``with`` block lasts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import nn

from holitom.attaching.checks import check_model, check_stages
from holitom.attaching.session import Run
from holitom.attaching.stats import RunStats, SampleStats
from holitom.errors import BadUsage
from holitom.models import adapter_for
from holitom.types import Decode, Inner, Outer, Reduction, check_budget

__all__ = ["Run", "RunStats", "SampleStats", "reduce_tokens"]


@contextmanager
def reduce_tokens(
    model: nn.Module,
    outer: Outer | None = None,
    budget: float = 1.0,
    inner: Inner | Sequence[Inner] = (),
    decode: Decode | None = None,
    *,
    reduction: Reduction | None = None,
) -> Iterator[Run]:
    """Reduce the visual tokens of every video that this model sees inside the block::

        with reduce_tokens(model, outer=HoliTom(tau=0.65), budget=0.1, inner=HoliTomMerge(layer=18, ratio=0.5)) as run:
            out = model.generate(**inputs)
        run.stats.last.kept

    outer runs before the language model and keeps about ``budget`` of the T * N tokens; inner stages run once each in
    prefill, in front of their layers; decode chooses what is read for every generated token. ``reduction`` gives all
    four at once. ``run.stats`` says what was asked and spent (``budget``), and ``check_acted()`` raises CannotRun when
    a stage has done nothing.

    Prompts keep their placeholders (any number > 0 per video, one unbroken run each), returned sequences keep the full
    prompt, and masks and positions are given for the full prompt in every later call. Works with DynamicCache: greedy,
    sampling and beam search, left-padded batches, further turns without a new video.
    Images and prompts without video pass through unchanged. Logits of a bare forward belong to the reduced prompt,
    padded on the left.

    Hooks and two instance attributes (``generate``, ``get_video_features``) are set on this model object and removed
    when the block ends, also after an exception; copying the model inside the block is refused, and so is a second
    thread while a call is under way. A cache filled inside the block can only be continued inside such a block; without
    a cache, stages inside the decoder choose anew at every step. Raises UnsupportedModel (unknown family, training
    mode, compiled model, static or offloaded cache, chunked prefill, assisted decoding, sliding-window layers for
    stages inside the decoder) and BadUsage (budget, layers, attributes of a stage, labels, inputs). On a GPU, what a
    stage inside the decoder refuses (values that are not finite, ids that it must not drop) is raised at the next call,
    when ``run.stats`` is read, or at the end of the block: looking earlier would make the host wait for the device. On
    a CPU it is raised at once.
    """
    if reduction is not None and not isinstance(reduction, Reduction):
        raise BadUsage(f"reduction is a {type(reduction).__name__}", fix="give a Reduction: preset(...).reduction")
    chosen = reduction or Reduction("custom", outer, budget, tuple(_as_sequence(inner)), decode)
    if reduction is not None and (outer is not None or budget != 1.0 or inner or decode is not None):
        raise BadUsage("a reduction is given, and stages beside it", fix="give one of the two")
    check_budget(chosen.budget)
    check_model(model)
    adapter = adapter_for(model)
    check_stages(adapter, chosen.outer, chosen.budget, chosen.inner, chosen.decode)
    run = adapter.run(model, chosen)
    try:
        run.install()
        yield run
        run.settle()
    finally:
        run.remove()


def _as_sequence(inner: Any) -> Sequence[Inner]:
    return inner if isinstance(inner, Sequence) else (inner,)
