"""What holds for every method, over shapes, contents, budgets and precisions: one test for all of one kind."""

import inspect
import math
from contextlib import nullcontext
from dataclasses import replace

import pytest
import seam
import torch
from hosts import HOSTS
from hypothesis import given, settings
from hypothesis import strategies as st
from seam import GREEDY, Host
from videos import BUDGETS, VIDEOS, check, prompts, same, scenes, with_every_field

from holitom import methods
from holitom.attach import reduce_tokens
from holitom.errors import BadUsage
from holitom.methods import holitom_variants
from holitom.methods.base import budget_tokens
from holitom.types import OPTIONAL_FIELDS, Inner, Outer, Reduction

OUTER = [
    methods.HoliTom(),
    methods.HoliTom(counts="exact"),
    *(getattr(holitom_variants, name)() for name in holitom_variants.__all__),
    methods.VisionZip(),
    methods.PruneVid(),
    methods.FastVID(),
    methods.FastVID(head="substitute"),
    methods.MMGVid(),
    methods.MMGVid(gain="opposite"),
    methods.HieraVid(),
    methods.DyCoke(),
    methods.UniComp(),
    methods.UniComp(head="substitute"),
    methods.VCast(),
    methods.FlashVID(),
    methods.FlashVID(alpha=0.2, tau=0.3),
    methods.UnifiedPool(),
    methods.UnifiedPool(tau=0.99, window=20),
    methods.ToMe(),
    methods.RandomDrop(seed=3),
    methods.UniformStride(),
    methods.SaliencyTopK(),
    methods.SaliencyTopK(lowest=True),
    methods.AveragePool(),
]
NOT_EXACT = (methods.HoliTom, methods.PruneVid, methods.FastVID, methods.MMGVid, methods.DyCoke, methods.UniComp)
"""With their default settings: the others keep round(budget * T * N) tokens of every video."""
INNER = [
    methods.HoliTomMerge(3, 0.5),
    methods.HoliTomMerge(3, 0.8, "mean", causal=False, include_newlines=True),
    methods.FastV(2, 0.5),
    methods.PyramidDropStage(2, 0.25),
    methods.PruneVidSelect(2),
    methods.HieraVidSelect(2, 0.5),
    methods.HieraVidSelect(2, 0.9),
]


def reach(method, budget):
    """The budget, raised where a method refuses less by its nature."""
    return max(budget, 0.25) if isinstance(method, methods.DyCoke) else budget


@pytest.mark.parametrize("method", OUTER, ids=str)
@settings(max_examples=20)
@given(VIDEOS, BUDGETS)
def test_an_outer_stage_takes_any_video_at_any_budget(method, video, budget):
    budget, before = reach(method, budget), video.tokens.clone()
    kept = method(video, budget)
    check(video, kept)
    assert torch.equal(video.tokens, before), "the input was changed"
    assert same(kept, method(video, budget))
    if budget == 1:
        assert torch.equal(kept.tokens, video.tokens.flatten(0, 1)) and (kept.size == 1).all()
    if not isinstance(method, NOT_EXACT) or getattr(method, "counts", "") == "exact":
        assert len(kept) == budget_tokens(video, budget)
    if not isinstance(method, methods.FastVID):  # whose anchors may stand for one other token
        alone = kept.size == 1
        assert torch.equal(kept.tokens[alone], video.tokens[kept.frame, kept.cell][alone]), "not merged, yet changed"


@pytest.mark.parametrize("method", OUTER, ids=str)
@pytest.mark.parametrize("budget", [0.3, 1.0])
def test_an_outer_stage_refuses_one_nan_and_wrong_budgets_by_name(method, budget):
    video = scenes(9, (3, 4), 8)
    assert isinstance(method, Outer) and method.requires <= set(OPTIONAL_FIELDS)
    for name in sorted({"tokens", *method.requires}):
        for value in (math.nan, math.inf):
            broken = getattr(video, name).clone()
            broken[5].view(-1)[3] = value
            with pytest.raises(BadUsage, match=f"{name} hold a NaN or an infinity, first in frame 5"):
                method(replace(video, **{name: broken}), budget)
        if name != "tokens":
            with pytest.raises(BadUsage, match=rf"{type(method).__name__} reads VideoFeatures\.{name}"):
                method(replace(video, **{name: None}), budget)
    for wrong in (0, -0.1, 1.5, math.nan, True):
        with pytest.raises(BadUsage, match=r"\(0, 1\]"):
            method(video, wrong)


@pytest.mark.parametrize("method", OUTER, ids=str)
def test_an_outer_stage_takes_features_that_are_strided_and_carry_gradients(method):
    """Choices are made without gradients, and gradients reach the tokens that are kept."""
    video = scenes(9, (3, 4), 8, 2)
    tokens = video.tokens.mT.contiguous().mT.requires_grad_()
    kept = method(replace(video, tokens=tokens), 0.5)
    assert same(kept, method(video, 0.5)) and not tokens.is_contiguous()
    kept.tokens.sum().backward()
    assert (tokens.grad.flatten(0, 1)[kept.frame * 12 + kept.cell] != 0).any(1).all()


@pytest.mark.parametrize("method", OUTER, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_extra_memory_is_at_most_the_input(method, dtype):
    """Beside what is returned. The worst video of a working size: nothing repeats, most of it is kept."""
    video = scenes(24, (8, 8), 512, dtype=dtype)
    with Peak() as peak:
        kept = method(video, reach(method, 0.25))
    assert peak.bytes - kept.tokens.nbytes <= 2 * video.tokens.nbytes


class Peak(torch.overrides.TorchFunctionMode):
    """Bytes of all tensors that live at once inside the block, by what torch's profiler sees of the allocator."""

    def __enter__(self):
        self.profiler = torch.profiler.profile(profile_memory=True, activities=[torch.profiler.ProfilerActivity.CPU])
        self.profiler.__enter__()
        return self

    def __exit__(self, *error):
        self.profiler.__exit__(*error)
        held = self.bytes = 0
        for event in self.profiler.profiler.kineto_results.events():
            if event.name() == "[memory]":
                held += event.nbytes()
                self.bytes = max(self.bytes, held)


def call(stage, prompt, grouped=True):
    hidden, score, visual, group, gain = prompt
    score = score if stage.query == "text" else score[:, -1].mean(0)
    extra = {"group": group, "gain": gain} if grouped and getattr(stage, "reads_groups", False) else {}
    return stage(hidden, score, visual, len(visual), **extra)


@pytest.mark.parametrize("stage", INNER, ids=str)
@settings(max_examples=30)
@given(prompts(), st.booleans())
def test_an_inner_stage_takes_any_prompt(stage, prompt, grouped):
    hidden, _, visual, _, _ = prompt
    before = hidden.clone()
    ids, rows = call(stage, prompt, grouped)
    assert isinstance(stage, Inner)
    assert (ids.diff() > 0).all() and rows.shape == (len(ids), hidden.shape[1]) and rows.dtype == hidden.dtype
    assert rows.isfinite().all() and torch.equal(hidden, before)
    text = torch.ones(len(hidden), dtype=torch.bool).index_fill_(0, visual, False).nonzero().flatten()
    assert torch.equal(ids[torch.isin(ids, text)], text), "text was dropped"
    assert 1 <= len(ids) - len(text) <= len(visual)
    if not isinstance(stage, methods.HoliTomMerge):
        assert torch.equal(rows, hidden[ids])
    again = call(stage, prompt, grouped)
    assert torch.equal(ids, again[0]) and torch.equal(rows, again[1])


@pytest.mark.parametrize("stage", INNER, ids=str)
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_an_inner_stage_refuses_one_nan_by_name(stage, value):
    draw = torch.Generator().manual_seed(0)
    hidden, score = torch.randn(44, 8, generator=draw), torch.rand(3, 2, 44, generator=draw)
    visual, group = torch.arange(2, 42), torch.arange(40) // 10
    for name in ("scores", *(["states"] if isinstance(stage, (methods.HoliTomMerge, methods.HieraVidSelect)) else [])):
        broken = {"scores": score.clone(), "states": hidden.clone()}
        broken["states"][7, 1] = value if name == "states" else 0
        broken["scores"][1, :, 7] = value if name == "scores" else 0
        with pytest.raises(BadUsage, match=rf"{name}.* {type(stage).__name__} .*hold a NaN or an infinity"):
            call(stage, (broken["states"], broken["scores"], visual, group, torch.zeros(40)))


@pytest.mark.parametrize("stage", [type(stage) for stage in INNER], ids=lambda kind: kind.__name__)
def test_wrong_layers_and_shares_are_refused(stage):
    lowest = 1 if "prev" in str(getattr(stage, "score", "")) else 0
    for layer in (lowest - 1, 2.5):
        with pytest.raises(BadUsage, match="layer"):
            stage(layer, 0.5)
    for share in (-0.1, 1.01, 7.0):
        with pytest.raises(BadUsage, match="outside"):
            stage(3, share)


def test_settings_that_cannot_be_are_refused_by_name():
    inner = {"layer": 7, "ratio": 0.5}
    for method, field, wrong in (
        (methods.HoliTom, r"k=0.* cannot be", {"k": 0}),
        (methods.HoliTom, r"beta=1\.5.* cannot be", {"beta": 1.5}),
        (methods.HoliTom, r"max_window=0.* cannot be", {"max_window": 0}),
        (methods.HoliTom, "counts='some'", {"counts": "some"}),
        (holitom_variants.FixedWindows, "counts='some'", {"counts": "some"}),
        (methods.FastVID, "head='mean'", {"head": "mean"}),
        (methods.HoliTomMerge, "average='sum'", {**inner, "average": "sum"}),
        (methods.HieraVidSelect, "relevance=0", {**inner, "relevance": 0}),
    ):
        with pytest.raises(BadUsage, match=field):
            method(**wrong)


def test_stages_say_what_they_are():
    released = methods.HoliTomMerge(3, 0.5, causal=False, include_newlines=True)
    assert {made.fidelity for made in (methods.HoliTom(tau=0.65), released, methods.FastVID())} == {"golden"}
    assert {made.fidelity for made in (methods.HoliTomMerge(3, 0.5), methods.FastVID(head="substitute"))} == {"port"}
    exact = methods.HoliTom(counts="exact")
    assert {made.fidelity for made in (exact, holitom_variants.FixedWindows())} == {"reconstruction"}
    assert not any(stage.identity for stage in [*INNER, methods.EarlyTom(), methods.HieraVidSelect(7, 0, -1, "coded")])
    assert all(stage.identity for stage in [*WHOLE, methods.EarlyTom(longest=3), methods.EarlyTom(())])


def test_every_method_of_the_package_is_here():
    named = {getattr(methods, name) for name in methods.__all__}
    stages = {kind.__name__ for kind in named if inspect.isclass(kind)} - {"PyramidDrop", "DyCokeDecode"}
    kinds = {type(stage).__name__ for stage in [*OUTER, *INNER, methods.EarlyTom()]}
    assert stages == kinds - set(holitom_variants.__all__)


WHOLE = [
    methods.HoliTomMerge(3, 0.0),
    methods.HoliTomMerge(3, 0.0, "mean", include_newlines=True),
    methods.FastV(2, 0.0),
    methods.PyramidDropStage(2, 1.0),
    methods.PruneVidSelect(2, 1.0),
    methods.HieraVidSelect(2, 0.0),
]
KEEPING = [
    *(Reduction(str(method), method, 1.0) for method in OUTER),
    *(Reduction(str(stage), inner=(stage,)) for stage in WHOLE),
    Reduction("DyCokeDecode", decode=methods.DyCokeDecode(2, 0.0)),
]


@pytest.fixture(scope="module", params=HOSTS)
def unreduced(request):
    """A host, one of its videos with every field a method may read, and the logits without a reduction: of the stock
    model, but of LLaVA-Video, whose row newlines the stock class does not know."""
    host = Host(request.param)
    asked = {name: value for name, value in host.inputs(0).items() if name != "pixel_values_videos"}
    video = with_every_field(seam.video_of(host), torch.Generator().manual_seed(0))
    video = replace(video, saliency=torch.rand(video.tokens.shape[:2], generator=torch.Generator().manual_seed(1)))
    with reduce_tokens(host.model) if request.param == "llava_video" else nullcontext():
        logits = host.model.generate(**host.inputs(0), **GREEDY).logits
    return host, asked, video, torch.cat(logits)


@pytest.mark.parametrize("reduction", KEEPING, ids=lambda reduction: reduction.name)
def test_what_keeps_everything_is_the_unreduced_model_exactly(unreduced, reduction):
    """Every method through its own path on every host, in prefill and in decoding: not one bit is another."""
    host, asked, video, expected = unreduced
    with reduce_tokens(host.model, reduction=reduction) as run:
        run.provide([video])
        assert torch.equal(torch.cat(host.model.generate(**asked, **GREEDY).logits), expected)
    run.stats.check_acted()
