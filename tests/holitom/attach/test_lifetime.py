"""What a block leaves behind (nothing), and its meeting with other threads, copies, compilers, offloading, autocast."""

import contextlib
import copy
import gc
import pickle
import threading
import weakref

import pytest
import torch
from hosts import HOSTS
from seam import GREEDY, NEAR, Between, Drop, Host, KeepEvery, Nearest, batch, calling, marks, words

from holitom.attach import reduce_tokens
from holitom.attach.decoder import Decoder
from holitom.errors import BadUsage, UnsupportedModel
from holitom.methods import FastV, HoliTom, HoliTomMerge
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


@pytest.mark.parametrize("make", [copy.deepcopy, pickle.dumps])
def test_no_copy_is_made_inside_the_block(make):
    model = HOSTS["llava_onevision"]()
    with reduce_tokens(model, KeepEvery(), 0.3), pytest.raises(BadUsage, match="copied or pickled"):
        make(model)
    make(model)


def test_no_reference_keeps_the_model_alive():
    host = Host()
    with reduce_tokens(host.model, KeepEvery(), 0.3, Drop(2)):
        host.model.generate(**host.inputs(0), **GREEDY)
    alive = weakref.ref(host.model)
    del host
    gc.collect()
    assert alive() is None


# --- threads


def in_thread(call, join=True):
    """Runs it in a thread of its own; returns the thread and what came of it."""
    found = []

    def work():
        try:
            found.append(call())
        except Exception as error:
            found.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    if join:
        thread.join(20)
    return thread, found


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
        thread, found = in_thread(calls[where], join=False)
        reached.wait(10)
    go_on.set()
    thread.join(10)
    assert isinstance(found[0], BadUsage) and "block has ended" in found[0].what
    assert len(steps) == 1


@pytest.mark.parametrize("where", ["tower", "outer", "generate"])
def test_a_second_thread_is_refused_while_a_call_is_under_way(plain, where):
    """Also while only the tower runs, and between the tokens of a generation."""
    inputs, refused, settings = plain.inputs(0), [], dict(GREEDY)

    def meanwhile(*_):
        for call in (lambda: plain.model(**inputs), lambda: plain.model.generate(**inputs, **GREEDY)):
            refused.extend(in_thread(call)[1])

    with reduce_tokens(plain.model, KeepEvery(), 0.3):
        expected = plain.model.generate(**inputs, **GREEDY)
    handle = plain.model.model.vision_tower.register_forward_hook(meanwhile) if where == "tower" else None
    if where == "generate":
        settings["logits_processor"] = [Between(meanwhile)]
    outer = calling(KeepEvery, meanwhile) if where == "outer" else KeepEvery()
    with reduce_tokens(plain.model, outer, 0.3) as run:
        ours = plain.model.generate(**inputs, **settings)
        if handle:
            handle.remove()
        _, free = in_thread(lambda: plain.model.generate(**batch(words(5)), **GREEDY))
        run.provide(run.encode(inputs["pixel_values_videos"]))
        _, provided = in_thread(lambda: run.provide(run.encode(inputs["pixel_values_videos"])))
    assert torch.equal(ours.sequences, expected.sequences)
    assert refused and all(error.what == "another thread is using this model" for error in refused)
    assert not isinstance(free[0], Exception)  # nothing is under way, so any thread may call
    assert "another thread has provided" in str(provided[0])  # else it would answer about the other's video


@torch.no_grad()
def test_calls_that_begin_behind_their_block(plain):
    """By a method that was taken inside, or by going on from a cache (or its copy) that was filled inside."""
    token, caches = torch.tensor([[7]]), []
    with reduce_tokens(plain.model, KeepEvery(), 0.3) as run:
        caches += [plain.model(**plain.inputs(0), use_cache=True).past_key_values]
        caches += [copy.deepcopy(caches[0])]
        kept, expected = plain.model.generate, plain.model(input_ids=token, past_key_values=caches[0]).logits
    for late in (lambda: kept(**plain.inputs(0), **GREEDY), lambda: run.encode(plain.clips[:1])):
        with pytest.raises(BadUsage, match="block has ended that this call"):
            late()
    for cache in caches:
        with pytest.raises(BadUsage, match="the block has ended"):
            plain.model(input_ids=token, past_key_values=cache)
        with pytest.raises(BadUsage, match="the block has ended"):
            plain.model.generate(**batch(words(99)), past_key_values=cache, **GREEDY)
    with reduce_tokens(plain.model, KeepEvery(), 0.3):
        ours = plain.model(input_ids=token, past_key_values=caches[1]).logits
    assert torch.equal(ours, expected)


@torch.no_grad()
def test_another_thread_may_call_the_parts_meanwhile(plain):
    """Tower and decoder by themselves give it the model's own answer, and take nothing from the call under way."""
    core, text = plain.model.model, batch(words(9))
    parts = [lambda: core.vision_tower(plain.clips[1]), lambda: core.language_model(**text)]
    expected = [part().last_hidden_state for part in parts]
    with reduce_tokens(plain.model, KEYED, 0.3, (Drop(2), Drop(3))) as run:
        features = run.encode(plain.clips[:1])[0]
        answer = plain.model.generate(**plain.inputs(0), **GREEDY).sequences

    def meanwhile(*_):
        if threading.current_thread() is threading.main_thread():
            for part, own in zip(parts, expected, strict=True):
                assert torch.equal(in_thread(torch.no_grad()(part))[1][0].last_hidden_state, own)

    handle = core.vision_tower.register_forward_hook(meanwhile)
    with reduce_tokens(plain.model, KEYED, 0.3, [calling(Drop, meanwhile, layer) for layer in (2, 3)]) as run:
        again = run.encode(plain.clips[:1])[0]
        assert torch.equal(plain.model.generate(**plain.inputs(0), **GREEDY).sequences, answer)
    handle.remove()
    assert torch.equal(again.saliency, features.saliency) and torch.equal(again.keys, features.keys)


def test_two_threads_that_open_a_block_at_once(plain, monkeypatch):
    before, both, install, go_on = marks(plain.model), threading.Barrier(2), Decoder.install, threading.Event()

    def together(self):
        with contextlib.suppress(threading.BrokenBarrierError):
            both.wait(0.2)
        return install(self)

    def use():
        with contextlib.ExitStack() as stack:
            stack.callback(go_on.set)  # the refused one lets the other go on
            stack.enter_context(reduce_tokens(plain.model, KeepEvery(), 0.3))
            go_on.wait(10)

    monkeypatch.setattr(Decoder, "install", together)
    threads = [in_thread(use, join=False) for _ in range(2)]
    for thread, _ in threads:
        thread.join(20)
    assert sorted("already inside" in str(found) for _, found in threads) == [False, True]
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
@pytest.mark.parametrize("what", ["model", "forward", "core"])
def test_compiling_inside_the_block_gives_the_same(plain, what):
    """What is reduced runs uncompiled, whoever compiles what calls it."""
    model, inputs = plain.model, plain.inputs(0)
    with reduce_tokens(model, KeepEvery(), 0.3, Drop(2)) as run:
        expected = model(**inputs).logits
        part = {"model": model, "forward": model.forward, "core": model.model}[what]
        out = torch.compile(part, backend="eager")(**inputs)
        ours = model.lm_head(out.last_hidden_state) if what == "core" else out.logits
        assert torch.equal(ours, expected) and len(run.stats.samples) == 2 and run.stats.acted


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
        with pytest.raises(BadUsage, match=r"outside of the block|position_ids are given"):
            plain.model.generate(**inputs, **GREEDY)
    with reduce_tokens(plain.model, KeepEvery(), 0.3, Drop(2)):
        torch.testing.assert_close(plain.model.lm_head(states), plain.model(**inputs).logits)
    assert run.stats.acted


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
    assert torch.equal(ours.sequences, expected.sequences) and run.stats.acted
    torch.testing.assert_close(bare, expected.logits[0], **NEAR)
    assert marks(host.model) == before
    assert where == "layers apart" or next(tower.parameters()).device.type == "meta", "was not put away again"


@pytest.mark.parametrize("inner", [(), (FastV(2, 0.5), HoliTomMerge(3, 0.5))])
def test_an_autocast_around_the_block_leaves_stages_their_precision(plain, inner):
    seen = []

    def look():
        seen.append(torch.is_autocast_enabled("cpu"))

    outer, stages = calling(KeepEvery, look), [calling(Drop, look, 1), *inner]
    with torch.autocast("cpu", torch.bfloat16), reduce_tokens(plain.model, outer, 0.3, stages) as run:
        plain.model.generate(**plain.inputs(0, 1), **GREEDY)
    assert seen == [False] * 4 and run.stats.acted


class Wrapper(torch.nn.Module):
    """What PEFT and others put around a module: calls go through, names may not."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, *args, **given):
        return self.inner(*args, **given)


class Outside(Wrapper):
    """The same around a whole model."""

    def __init__(self, inner):
        super().__init__(inner)
        self.config = inner.config

    def generate(self, **given):
        return self.inner.generate(**given)


def replaced(model, path, make):
    """A copy in which one module is another."""
    model = copy.deepcopy(model)
    parent, _, name = path.rpartition(".")
    setattr(model.get_submodule(parent), name, make(model.get_submodule(path)))
    return model


@pytest.mark.parametrize("name", HOSTS)
def test_parts_that_are_wrapped(name):
    """Work as before, or are refused by name where what is inside must be known."""
    host, qwen, inside = Host(name), name == "qwen2_5_vl", "model.language_model."
    with reduce_tokens(host.model, reduction=EVERY_KIND):
        expected = host.model.generate(**host.inputs(0, 1), **GREEDY).sequences
    tower = "model.visual" if qwen else "model.vision_tower"
    wrapped = [f"{inside}{part}" for part in ("embed_tokens", "layers.1.self_attn.q_proj", "layers.2.input_layernorm")]
    models = [replaced(host.model, path, Wrapper) for path in wrapped + [tower] * (not qwen)]
    for model in [*models, Outside(host.model).eval()]:
        with reduce_tokens(model, reduction=EVERY_KIND) as run:
            assert torch.equal(model.generate(**host.inputs(0, 1), **GREEDY).sequences, expected)
            model(**host.inputs(0))
        assert len(run.stats.samples) == 3
    refused = {inside[:-1]: "wrapped or replaced", f"{inside}layers.2": "Wrapper has no q_proj"}
    refused |= {f"{inside}layers.1.self_attn": "Wrapper has no q_proj"}
    refused |= {tower: "wrapped or replaced"} if qwen else {}
    for path, said in refused.items():
        for make in (Wrapper, torch.nn.DataParallel) if "layers" not in path else (Wrapper,):
            model = replaced(host.model, path, make)
            with pytest.raises(UnsupportedModel, match=said), reduce_tokens(model, reduction=EVERY_KIND):
                pass
            assert not any("forward" in vars(module) for module in model.modules())


@pytest.mark.parametrize("name", HOSTS)
@pytest.mark.filterwarnings("ignore")
def test_a_quantised_decoder(name):
    """Its layers have no weight that is a tensor: stages that keep all score it, and change nothing."""
    host, quantise = Host(name), torch.ao.quantization.quantize_dynamic
    model = replaced(host.model, "model.language_model", lambda text: quantise(text, {torch.nn.Linear}))
    with reduce_tokens(model):
        expected = model.generate(**host.inputs(0), **GREEDY).logits[0]
    whole = (Drop(2, 1.0), Drop(3, 1.0, score="this"), Drop(4, 1.0, query="text"))
    with reduce_tokens(model, inner=whole, decode=Nearest(4, 999)) as run:
        ours = model.generate(**host.inputs(0), **GREEDY).logits[0]
    torch.testing.assert_close(ours, expected, **NEAR)
    assert run.stats.samples and not run.stats.missing
    for stage in whole:
        assert all(seen["score"].isfinite().all() and seen["score"].std() > 0 for seen in stage.seen)
