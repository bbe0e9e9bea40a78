"""The door: put token reduction into a video language model for as long as a ``with`` block lasts.

``generate`` of the model instance reduces the videos, splices the prompt and goes on from embeddings; the forward of
its core does so for a plain call. From there on the model itself counts in the reduced prompt: nothing is translated
back. Hooks on the decoder layers run the stages inside (``holitom.attach.decoder``)."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal, get_args, get_origin, get_type_hints

from torch import nn

from holitom.attach.llava_package import PackageRun
from holitom.attach.session import Run, check_model
from holitom.attach.stats import RunStats, SampleStats
from holitom.attach.tower import tower_layers
from holitom.errors import BadUsage, UnsupportedModel
from holitom.models import Adapter, adapter_for
from holitom.types import Decode, Inner, Outer, Reduction, Tower, check_budget

__all__ = ["Run", "RunStats", "SampleStats", "reduce_tokens"]


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
    the block ends, also after an exception; inside it the model cannot be copied or pickled. A second thread is refused
    while a call is under way; a call that outlives the block raises in its own thread, and so does what goes on from a
    cache that was filled inside it. Raises UnsupportedModel (unknown family, training mode, compiled model, static,
    offloaded or quantised cache, chunked prefill, assisted decoding; sliding windows for stages inside the decoder) and
    BadUsage (budget, layers, attributes of a stage, labels, inputs).
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
    _check_stages(adapter, chosen)
    run = (PackageRun if hasattr(adapter, "owner") else Run)(model, adapter, chosen)
    try:
        run.install()
        yield run
    finally:
        run.remove()


def _check_stages(adapter: Adapter, reduction: Reduction) -> None:
    """Stages of the wrong kind, layers out of range or out of order, and decoders that stages inside cannot follow."""
    outer, inner, decode, tower = reduction.outer, reduction.inner, reduction.decode, reduction.tower
    if outer is not None:
        _check_kind(outer, Outer)
    elif reduction.budget < 1:
        raise BadUsage(f"budget {reduction.budget} without an outer stage to spend it", fix="give outer=...")
    for stage in inner:
        _check_kind(stage, Inner)
    if inner:
        _check_layers("inner stages", [s.layer for s in inner], int(inner[0].score == "prev"), len(adapter.layers) - 1)
    if decode is not None:
        _check_kind(decode, Decode)
        _check_layers("a decode stage", [decode.layer], 1, len(adapter.layers) - 1)
    if tower is not None:
        _check_kind(tower, Tower)
        _check_layers("a tower stage", tower.layers, 0, len(tower_layers(adapter)) - 2)
    config = adapter.text.config
    slides = getattr(config, "sliding_window", None) is not None and getattr(config, "use_sliding_window", True)
    kind = config._attn_implementation
    if (inner or decode is not None) and (slides or not kind.startswith(("eager", "sdpa", "flash_attention"))):
        what = f"stages inside the decoder need full attention by eager, sdpa or flash, not {'sliding ' * slides}{kind}"
        raise UnsupportedModel(what, fix="use an outer stage only")


def _check_kind(stage: Any, kind: type) -> None:
    """An instance that can be called, with the attributes that its protocol in ``holitom.types`` names."""
    hints = get_type_hints(kind)
    del hints["fidelity"]  # a word for readers
    missing = [name for name in hints if not hasattr(stage, name)]
    if isinstance(stage, type) or not callable(stage) or missing:
        what = f"{stage!r} is no {kind.__name__} stage" + f", without {', '.join(missing)}" * bool(missing)
        raise BadUsage(what, fix=f"give an instance of a class like holitom.types.{kind.__name__}")
    for name, hint in hints.items():
        value = getattr(stage, name)
        fits = value in get_args(hint) if get_origin(hint) is Literal else isinstance(value, get_origin(hint) or hint)
        if not fits:
            raise BadUsage(f"{type(stage).__name__} has {name} {value!r}", fix=f"give it one of {hint}")


def _check_layers(whose: str, layers: Sequence[int], first: int, last: int) -> None:
    """Layers out of range, twice, or out of order are refused."""
    if not all(layer in range(first, last + 1) for layer in layers) or list(layers) != sorted(set(layers)):
        raise BadUsage(f"{whose} at layers {list(layers)}", fix=f"give ascending ints in [{first}, {last}]")
