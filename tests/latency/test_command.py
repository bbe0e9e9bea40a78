"""The command line, what it needs, and what it refuses."""

import json
import subprocess
import sys
import textwrap

import pytest
import torch

from holitom_repro import forwarded
from holitom.errors import BadUsage, CannotRun
from holitom_repro.latency import command, measuring
from holitom_repro.latency.records import read
from holitom_repro.latency.shapes import SHAPES, Shape, build, load


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    monkeypatch.setattr(measuring, "machine_state", lambda device: {"idle": True, "reason": "a test"})


QUICK = ["--repeats", "1", "--warmup", "1", "--new-tokens", "2", "--quiet", "--frames", "4", "--dtype", "float32"]


def test_it_measures_prints_and_appends(tmp_path, capsys):
    out = tmp_path / "x.jsonl"
    words = ["latency", "--model", "tiny", "--device", "cpu", "--method", "holitom", *QUICK, "--content", "static:0.5"]
    assert forwarded.bench([*words, "--budget", "0.25", "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "Vanilla" in printed and "HoliTom" in printed and "4 frames, batch 1, CPU, float32" in printed
    rows = read(out)
    assert [row["row"] for row in rows] == ["Vanilla", "HoliTom"]
    assert rows[1]["content"]["how"].startswith("forced")


def test_help_says_what_it_needs(capsys):
    with pytest.raises(SystemExit):
        command.run(["--help"])
    assert "torch, transformers and jaxtyping" in capsys.readouterr().out
    assert forwarded.bench(["--help"]) == 0
    assert "latency" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--model", "ov-8b"], "neither a known shape nor a folder"),
        (["--model", "tiny", "--layers", "2"], "--layers with a checkpoint"),
        (["--model", "ov-7b", "--layers", "99"], "99 layers of ov-7b"),
        (["--model", "tiny", "--method", "holytom"], "nearest: holitom"),
        (["--model", "tiny", "--budget", "2"], r"outside \(0, 1\]"),
        (["--model", "tiny", "--repeats", "0"], "--repeats 0"),
        (["--model", "tiny", "--frames", "0"], "numbers from 1 on"),
        (["--model", "tiny", "--video", "nowhere.mp4"], "no file nowhere.mp4"),
        (["--plan", "tiny"], "--plan without --out"),
    ],
)
def test_refusals_name_the_fix(words, says):
    with pytest.raises(BadUsage, match=says):
        command.run([*words, "--device", "cpu", "--quiet"])


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_gpu_cuda_is_refused():
    with pytest.raises(CannotRun, match="no CUDA device"):
        load("ov-7b", device="cuda")


def test_shapes_are_those_of_the_published_models():
    seven, big = SHAPES["ov-7b"], SHAPES["ov-72b-shape"]
    text = seven.config().text_config
    assert (text.hidden_size, text.num_hidden_layers, text.num_key_value_heads) == (3584, 28, 4)
    assert big.cut(20).layers == 20 and big.cut(20).full_layers == 80 and big.cut(None).layers == 80
    assert SHAPES["video-7b"].config().mm_newline_position == "grid"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_random_models_are_made_in_their_dtype(dtype):
    small = Shape("small", "ov-7b", 4, 32, 64, 3, 4, 2, vocab_size=160000).config()
    small.vision_config.hidden_size, small.vision_config.intermediate_size = 32, 64
    small.vision_config.num_hidden_layers, small.vision_config.num_attention_heads = 2, 4
    small.vision_config.image_size = 28
    model = build(small, device=torch.device("cpu"), dtype=dtype)
    assert {p.dtype for p in model.parameters()} == {dtype} and torch.get_default_dtype() == torch.float32
    weight = model.model.language_model.layers[0].mlp.up_proj.weight.float()
    assert weight.std().item() == pytest.approx(0.02, rel=0.1) and not model.training
    assert float(model.model.language_model.norm.weight.float().min()) == 1
    again = build(small, device=torch.device("cpu"), dtype=dtype)
    assert torch.equal(model.lm_head.weight, again.lm_head.weight)


def test_it_runs_with_torch_and_transformers_alone(tmp_path):
    """No Jupyter, lmms-eval, pandas, plotting or video library is imported on the way to a record."""
    script = f"""
    import importlib.machinery
    import sys

    BANNED = {{
        "IPython", "ipykernel", "papermill", "nbformat", "jupyter_client", "lmms_eval", "pandas", "matplotlib",
        "seaborn", "datasets", "evaluate", "av",
    }}


    class Blocked:  # may be looked for, may not be imported
        def find_spec(self, name, path=None, target=None):
            if name.split(".")[0] in BANNED:
                return importlib.machinery.ModuleSpec(name, self)

        def create_module(self, spec):
            raise ModuleNotFoundError(f"blocked: {{spec.name}}", name=spec.name)

        def exec_module(self, module):
            pass


    sys.meta_path.insert(0, Blocked())
    from holitom_repro.latency import command, measuring
    from holitom_repro.latency.shapes import Shape, build, Loaded, SHAPES

    config = Shape("small", "ov-7b", 4, 32, 64, 4, 4, 2).config()
    config.vision_config.hidden_size, config.vision_config.intermediate_size = 32, 64
    config.vision_config.num_hidden_layers, config.vision_config.num_attention_heads = 2, 4
    config.vision_config.image_size = 56
    import torch

    made = build(config, device=torch.device("cpu"), dtype=torch.float32)
    command.load = lambda *a, **k: Loaded(made, "small", "ov-7b", 4, 4, 4, "random", "speed", True)
    measuring.machine_state = lambda device: {{"idle": None, "reason": "a test"}}
    code = command.run({["--model", "ov-7b", "--device", "cpu", "--method", "holitom", "fastv", *QUICK]}
                       + ["--budget", "0.5", "--out", {str(tmp_path / "x.jsonl")!r}])
    loaded = sorted(BANNED & {{name.split(".")[0] for name in sys.modules}})
    assert code == 0 and not loaded, loaded
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    rows = [json.loads(line) for line in (tmp_path / "x.jsonl").read_text().splitlines()]
    assert [row["outcome"] for row in rows] == ["measured"] * 3
