"""What a block leaves behind (nothing), and its meeting with other threads, copies, compilers, offloading, autocast."""

import contextlib
import copy
import gc
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from hosts import HOSTS
from seam import GREEDY, NEAR, Between, Drop, Host, KeepEvery, Nearest, batch, calling, marks, words

from holitom.attach import reduce_tokens
from holitom.attach.decoder import Decoder
from holitom.errors import BadUsage, UnsupportedModel
from holitom.methods import HoliTom, HoliTomMerge
from holitom.types import Reduction

BOTH = Reduction("both", HoliTom(tau=0.5), 0.3, (HoliTomMerge(2, 0.5), Drop(3, score="this")), Nearest(4, 1))
KEYED = KeepEvery(requires=frozenset({"saliency", "keys"}))
EVERY_KIND = Reduction("every kind", KEYED, 0.3, BOTH.inner, BOTH.decode)


def fail():
    raise RuntimeError("a stage failed")


def test_nothing_is_left_behind(host):
    model, text = host.model, batch(words(12))
    expected, before = model(**text).logits, marks(model)
    with reduce_tokens(model, reduction=BOTH):
        assert marks(model) != before
        model.generate(**host.inputs(0), **GREEDY)
    assert marks(model) == before
    for broken in (
        Reduction("a", calling(KeepEvery, fail), 0.3),
        Reduction("b", KeepEvery(), 0.3, (calling(Drop, fail, 2),)),
    ):
        with reduce_tokens(model, reduction=broken):
            with pytest.raises(RuntimeError, match="a stage failed"):
                model.generate(**host.inputs(0), **GREEDY)
            assert torch.equal(model(**text).logits, expected), "a failed call colours the next"
        assert marks(model) == before
    assert torch.equal(model(**text).logits, expected)


def test_no_copy_is_made_inside_the_block(plain):
    """It would stay reduced, by stages that act on the first."""
    with reduce_tokens(plain.model, KeepEvery(), 0.3), pytest.raises(TypeError, match="cannot pickle"):
        copy.deepcopy(plain.model)


def test_no_reference_keeps_the_model_alive():
    host = Host()
    with reduce_tokens(host.model, KeepEvery(), 0.3, Drop(2)):
        host.model.generate(**host.inputs(0), **GREEDY)
    alive = weakref.ref(host.model)
    del host
    gc.collect()
    assert alive() is None


# --- threads


def in_thread(call):
    """What comes of it in a thread of its own: its result, or its error."""
    future = ThreadPoolExecutor(1).submit(call)
    return future.exception(20) or future.result()


@pytest.mark.parametrize("where", ["generate", "beams", "forward"])
def test_what_outlives_its_block_raises_in_its_thread(plain, where):
    steps, reached, go_on = [], threading.Event(), threading.Event()

    def wait():
        steps.append(1)
        reached.set()
        go_on.wait(10)

    settings = {"max_new_tokens": 40, "do_sample": False, "logits_processor": [Between(wait)]}
    calls = {
        "generate": lambda: plain.model.generate(**plain.inputs(0), **settings),
        "beams": lambda: plain.model.generate(**plain.inputs(0), **settings, num_beams=3),
        "forward": lambda: plain.model(**plain.inputs(0)),
    }
    stages = [calling(Drop, wait, 1), Drop(3)] if where == "forward" else [Drop(2)]
    with reduce_tokens(plain.model, KeepEvery(), 0.3, stages):
        late = ThreadPoolExecutor(1).submit(calls[where])
        reached.wait(10)
    go_on.set()
    error = late.exception(10)
    assert isinstance(error, BadUsage) and "block has ended" in error.what and len(steps) == 1


@pytest.mark.parametrize("where", ["tower", "outer", "generate"])
def test_a_second_thread_is_refused_while_a_call_is_under_way(plain, where):
    """Also while only the tower runs, and between the tokens of a generation."""
    inputs, refused = plain.inputs(0), []

    def meanwhile(*_):
        for call in (lambda: plain.model(**inputs), lambda: plain.model.generate(**inputs, **GREEDY)):
            refused.append(in_thread(call))

    with reduce_tokens(plain.model, KeepEvery(), 0.3):
        expected = plain.model.generate(**inputs, **GREEDY)
    handle = plain.model.model.vision_tower.register_forward_hook(meanwhile) if where == "tower" else None
    between = [Between(meanwhile)] if where == "generate" else []
    outer = calling(KeepEvery, meanwhile) if where == "outer" else KeepEvery()
    with reduce_tokens(plain.model, outer, 0.3) as run:
        ours = plain.model.generate(**inputs, **GREEDY, logits_processor=between)
        if handle:
            handle.remove()
        free = in_thread(lambda: plain.model.generate(**batch(words(5)), **GREEDY))
        run.provide(run.encode(inputs["pixel_values_videos"]))
        provided = in_thread(lambda: run.provide(run.encode(inputs["pixel_values_videos"])))
    assert torch.equal(ours.sequences, expected.sequences)
    assert refused and all(error.what == "another thread is using this model" for error in refused)
    assert not isinstance(free, Exception)  # nothing is under way, so any thread may call
    assert "provided already" in str(provided)  # else it would answer about the other's video


@torch.no_grad()
def test_calls_that_begin_behind_their_block(plain):
    """By a method that was taken inside, or by going on from a cache (or its copy) that was filled inside."""
    token, caches = torch.tensor([[7]]), []
    with reduce_tokens(plain.model, KeepEvery(), 0.3) as run:
        caches += [plain.model(**plain.inputs(0), use_cache=True).past_key_values]
        caches += [copy.deepcopy(caches[0])]
        kept = plain.model.generate
    for late in (lambda: kept(**plain.inputs(0), **GREEDY), lambda: run.encode(plain.clips[:1])):
        with pytest.raises(BadUsage, match="block has ended that this call"):
            late()
    for cache in caches:
        with pytest.raises(BadUsage, match="the block has ended"):
            plain.model(input_ids=token, past_key_values=cache)
        with pytest.raises(BadUsage, match="the block has ended"):
            plain.model.generate(**batch(words(99)), past_key_values=cache, **GREEDY)


@torch.no_grad()
def test_another_thread_may_call_the_decoder_meanwhile(plain):
    """By itself it gives the model's own answer, and takes nothing from the call under way."""
    text, plainly = plain.model.model.language_model, batch(words(9))
    expected, seen = text(**plainly).last_hidden_state, []

    def meanwhile():
        seen.append(in_thread(torch.no_grad()(lambda: text(**plainly))))

    with reduce_tokens(plain.model, KeepEvery(), 0.3, [Drop(2), calling(Drop, meanwhile, 3)]):
        plain.model.generate(**plain.inputs(0), **GREEDY)
    assert len(seen) == 1 and torch.equal(seen[0].last_hidden_state, expected)


def test_a_second_thread_opens_a_block_while_the_first_one_does(plain, monkeypatch):
    before, install, found = marks(plain.model), Decoder.install, []

    def meanwhile(self):
        monkeypatch.setattr(Decoder, "install", install)
        found.append(in_thread(lambda: reduce_tokens(plain.model, KeepEvery(), 0.3).__enter__()))
        return install(self)

    monkeypatch.setattr(Decoder, "install", meanwhile)
    with reduce_tokens(plain.model, KeepEvery(), 0.3):
        plain.model.generate(**plain.inputs(0), **GREEDY)
    assert isinstance(found[0], BadUsage) and "already inside" in found[0].what
    assert marks(plain.model) == before


# --- models that are not plain


def test_compiled_models_are_refused(plain):
    compiled, called, late = (copy.deepcopy(plain.model) for _ in range(3))
    compiled.model.language_model.forward = torch.compile(compiled.model.language_model.forward)
    called.model.compile()
    for model in (compiled, called, torch.compile(copy.deepcopy(plain.model))):
        with pytest.raises(UnsupportedModel, match="compiled"), reduce_tokens(model, KeepEvery(), 0.3):
            pass
    with reduce_tokens(late, KeepEvery(), 0.3):
        late.model.language_model.compile()
        with pytest.raises(UnsupportedModel, match="compiled"):
            late(**plain.inputs(0))


@torch.no_grad()
def test_compiling_inside_the_block_gives_the_same(plain):
    """What is reduced runs uncompiled, whoever compiles what calls it."""
    model, inputs = plain.model, plain.inputs(0)
    with reduce_tokens(model, KeepEvery(), 0.3, Drop(2)) as run:
        expected = model(**inputs).logits
        assert torch.equal(torch.compile(model, backend="eager")(**inputs).logits, expected)
    assert len(run.stats.samples) == 2


def test_training_and_nesting_are_refused(plain):
    with reduce_tokens(plain.model):
        plain.model.train()
        with pytest.raises(UnsupportedModel, match="training mode"):
            plain.model(**plain.inputs(0))
        plain.model.eval()
        for again in (plain.model, plain.model.model):
            with pytest.raises(BadUsage, match="already inside"), reduce_tokens(again):
                pass
        plain.model(**plain.inputs(0))  # and is still attached
    with pytest.raises(UnsupportedModel, match=r"training mode.*eval"), reduce_tokens(Host().model.train()):
        pass


def test_the_inner_model_alone_takes_a_plain_forward(plain):
    core, inputs = plain.model.model, plain.inputs(0)
    with reduce_tokens(core, KeepEvery(), 0.3, Drop(2)) as run:
        states = core(**inputs).last_hidden_state
        with pytest.raises(BadUsage, match=r"none came with it|position_ids are given"):
            plain.model.generate(**inputs, **GREEDY)
    with reduce_tokens(plain.model, KeepEvery(), 0.3, Drop(2)):
        torch.testing.assert_close(plain.model.lm_head(states), plain.model(**inputs).logits)
    run.stats.check_acted()


def apart(model):
    """Every decoder layer by itself, in memory or on disk, and the rest in memory."""
    places = {"model.language_model.rotary_emb": "cpu"}
    for name, _ in model.named_parameters():
        depth = 4 if "language_model.layers" in name else 3 if "language_model" in name else 2
        part = ".".join(name.split(".")[: depth if name.startswith("model.") else 1])
        places[part] = "disk" if part[-1] in "13" else "cpu"
    return places


@pytest.mark.parametrize("name", HOSTS)
@pytest.mark.parametrize("where", ["tower", "all in memory", "all on disk", "layers apart"])
def test_offloaded_weights(name, where, tmp_path):
    """Parts that accelerate keeps elsewhere until they run: as the plain model, with every kind of stage."""
    accelerate = pytest.importorskip("accelerate")
    host = Host(name)
    with reduce_tokens(host.model, reduction=EVERY_KIND) as run:
        features, expected = run.encode(**host.pixels(0)), host.model.generate(**host.inputs(0, 1), **GREEDY)
    core, cpu = host.model.model, torch.device("cpu")
    tower = core.visual if hasattr(core, "visual") else core.vision_tower
    if where == "all on disk":
        accelerate.disk_offload(host.model, tmp_path, execution_device=cpu)
    elif where == "layers apart":
        accelerate.dispatch_model(
            host.model, apart(host.model), main_device="cpu", offload_dir=tmp_path, force_hooks=True
        )
    else:
        accelerate.cpu_offload(tower if where == "tower" else host.model, execution_device=cpu)
    before = marks(host.model)
    with reduce_tokens(host.model, reduction=EVERY_KIND) as run:
        ours = host.model.generate(**host.inputs(0, 1), **GREEDY)
        bare = host.model(**host.inputs(0, 1)).logits[:, -1]
        again = run.encode(**host.pixels(0))
    for field in ("tokens", "saliency", "keys"):
        torch.testing.assert_close(getattr(again[0], field), getattr(features[0], field), atol=1e-6, rtol=0)
    assert torch.equal(ours.sequences, expected.sequences)
    torch.testing.assert_close(bare, expected.logits[0], **NEAR)
    assert marks(host.model) == before
    assert where == "layers apart" or next(tower.parameters()).device.type == "meta", "was not put away again"


def test_an_autocast_around_the_block_leaves_stages_their_precision(plain):
    seen = []

    def look():
        seen.append(torch.is_autocast_enabled("cpu"))

    outer, stages = calling(KeepEvery, look), calling(Drop, look, 1)
    with torch.autocast("cpu", torch.bfloat16), reduce_tokens(plain.model, outer, 0.3, stages):
        plain.model.generate(**plain.inputs(0), **GREEDY)
    assert seen == [False] * 2


class Wrapper(torch.nn.Module):
    """What PEFT and others put around a module: calls go through, names may not."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, *args, **given):
        return self.inner(*args, **given)


def replaced(model, path, make):
    """A copy in which one module is another."""
    model = copy.deepcopy(model)
    parent, _, name = path.rpartition(".")
    setattr(model.get_submodule(parent), name, make(model.get_submodule(path)))
    return model


INSIDE = "model.language_model"
WRAPPED = {
    "model.vision_tower": None,
    f"{INSIDE}.embed_tokens": None,
    f"{INSIDE}.layers.1.self_attn.q_proj": None,
    f"{INSIDE}.layers.2.input_layernorm": None,
    INSIDE: "is wrapped or lacks",
    f"{INSIDE}.layers.2": "Wrapper has no q_proj",
    f"{INSIDE}.layers.1.self_attn": "Wrapper has no q_proj",
}


@pytest.mark.parametrize("path", WRAPPED)
def test_parts_that_are_wrapped(plain, path):
    """Work as before, or are refused by name where what is inside must be known."""
    with reduce_tokens(plain.model, reduction=EVERY_KIND):
        expected = plain.model.generate(**plain.inputs(0, 1), **GREEDY).sequences
    model = replaced(plain.model, path, Wrapper)
    refused = pytest.raises(UnsupportedModel, match=WRAPPED[path]) if WRAPPED[path] else contextlib.nullcontext()
    with refused, reduce_tokens(model, reduction=EVERY_KIND):
        assert torch.equal(model.generate(**plain.inputs(0, 1), **GREEDY).sequences, expected)


@pytest.mark.filterwarnings("ignore")
def test_a_quantised_decoder(plain):
    """Its layers have no weight that is a tensor: stages that keep all score it, and change nothing."""
    quantise = torch.ao.quantization.quantize_dynamic
    model = replaced(plain.model, INSIDE, lambda text: quantise(text, {torch.nn.Linear}))
    with reduce_tokens(model):
        expected = model.generate(**plain.inputs(0), **GREEDY).logits[0]
    whole = (Drop(2, 1.0), Drop(3, 1.0, score="this"), Drop(4, 1.0, query="text"))
    with reduce_tokens(model, inner=whole, decode=Nearest(4, 999)):
        ours = model.generate(**plain.inputs(0), **GREEDY).logits[0]
    torch.testing.assert_close(ours, expected, **NEAR)
    for stage in whole:
        assert all(seen["score"].isfinite().all() and seen["score"].std() > 0 for seen in stage.seen)
