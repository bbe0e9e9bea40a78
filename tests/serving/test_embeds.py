"""A file of prompt embeddings continues as the model does under reduce_tokens; what cannot travel is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from holitom_repro import paths
from holitom.attach import reduce_tokens
from holitom_repro.cli import main
from holitom.errors import BadUsage, CannotRun
from holitom.methods import DyCoke, FastV, HoliTom, HoliTomMerge, ToMe, VisionZip
from holitom.models.processing import VideoProcessor, load_model
from holitom_repro.serving import load, prompt_embeds, save
from holitom_repro.serving.language_model import export
from holitom_repro.tiny import world
from holitom_repro.tiny.benchmarks import pixels
from holitom.types import Reduction

MODEL = str(paths.data("tiny", "onevision"))
OUTER = (HoliTom(tau=0.8), VisionZip(), ToMe(), DyCoke())
TOKENS = 5


@pytest.fixture(scope="module")
def model():
    return load_model(MODEL, dtype="float32", device="cpu")


@pytest.fixture(scope="module")
def prompts() -> list[dict]:
    """Two videos of different length, a question each."""
    processor = VideoProcessor.from_pretrained(MODEL)
    clips = [world.make_clip(world.development_rng(seed), frames) for seed, frames in ((1, 8), (2, 12))]
    return [processor(pixels(clip), clip.questions[0].text) for clip in clips]


def continued(model, embeds, positions, mask=None):
    """Greedy tokens from embeddings, as an engine continues."""
    mask = torch.ones(embeds.shape[:2], dtype=torch.long) if mask is None else mask
    kwargs = {"inputs_embeds": embeds, "attention_mask": mask, "max_new_tokens": TOKENS, "do_sample": False}
    return model.generate(**kwargs, **({} if positions is None else {"position_ids": positions}))


def reference(model, inputs, reduction):
    with reduce_tokens(model, reduction=reduction):
        out = model.generate(**inputs, max_new_tokens=TOKENS, do_sample=False)
    return out[:, inputs["input_ids"].shape[1] :]


@pytest.mark.parametrize("outer", OUTER, ids=lambda m: type(m).__name__)
def test_the_file_continues_like_reduce_tokens(model, prompts, tmp_path: Path, outer) -> None:
    reduction = Reduction(type(outer).__name__, outer, 0.25)
    for number, inputs in enumerate(prompts):
        made = prompt_embeds(model, inputs, reduction)
        assert made.embeds.shape[0] < inputs["input_ids"].shape[1]
        stored = load(save(made, tmp_path / f"{number}.safetensors"))
        assert torch.equal(stored.embeds, made.embeds)
        assert stored.provenance == made.provenance
        positions = None if stored.contiguous else stored.position_ids[None]
        got = continued(model, stored.embeds[None], positions)
        assert torch.equal(got, reference(model, inputs, reduction))


def test_several_files_make_a_batch(model, prompts, tmp_path: Path) -> None:
    reduction = Reduction("HoliTom", HoliTom(tau=0.8), 0.25)
    files = [prompt_embeds(model, inputs, reduction) for inputs in prompts]
    width = max(len(file.embeds) for file in files)
    embeds, mask = torch.zeros(2, width, files[0].embeds.shape[1]), torch.zeros(2, width, dtype=torch.long)
    for row, file in enumerate(files):
        embeds[row, width - len(file.embeds) :] = file.embeds
        mask[row, width - len(file.embeds) :] = 1
    got = continued(model, embeds, None, mask)
    for row, inputs in enumerate(prompts):
        alone = reference(model, inputs, reduction)[0]
        assert torch.equal(got[row, : len(alone)], alone)


def test_the_exported_language_model_continues_the_file(model, prompts, tmp_path: Path) -> None:
    processor = VideoProcessor.from_pretrained(MODEL)
    alone = AutoModelForCausalLM.from_pretrained(export(model, processor.tokenizer, tmp_path / "lm"), dtype="float32")
    reduction = Reduction("HoliTom", HoliTom(tau=0.8), 0.25)
    made = prompt_embeds(model, prompts[0], reduction)
    assert torch.equal(continued(alone, made.embeds[None], None), reference(model, prompts[0], reduction))
    with pytest.raises(BadUsage, match="there already"):
        export(model, processor.tokenizer, tmp_path / "lm")


@pytest.mark.parametrize(
    "reduction",
    [Reduction("FastV", inner=(FastV(2, 0.5),)), Reduction("HoliTom", HoliTom(), 0.25, (HoliTomMerge(4, 0.5),))],
)
def test_stages_inside_the_model_are_refused(model, prompts, reduction) -> None:
    with pytest.raises(BadUsage, match="inside the language model"):
        prompt_embeds(model, prompts[0], reduction)


def test_the_model_is_as_it_was(model, prompts) -> None:
    before = model.generate(**prompts[0], max_new_tokens=TOKENS, do_sample=False)
    prompt_embeds(model, prompts[0], Reduction("HoliTom", HoliTom(tau=0.8), 0.25))
    assert torch.equal(model.generate(**prompts[0], max_new_tokens=TOKENS, do_sample=False), before)


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "prompt.safetensors"
    video = paths.data("videos", "three_shots.mp4")
    words = ["--model", MODEL, "--video", str(video), "--prompt", "how many scenes ?", "--out", str(out)]
    words += ["--frames", "8", "--device", "cpu"]
    assert main(["export-embeds", *words, "--option", "tau=0.8"]) == 0
    stored = load(out)
    assert f"[{len(stored.embeds)}, {stored.embeds.shape[1]}]" in capsys.readouterr().out
    assert stored.provenance["method"]["outer"]["tau"] == 0.8
    assert main(["export-embeds", *words, "--preset", "table1:HoliTom:0.10"]) == 3
    assert main(["export-embeds", *words, "--preset", "table1:HoliTom:0.10", "--outer-only"]) == 0
    assert load(out).provenance["left_out"] == ["HoliTomMerge"]
    assert "left out: HoliTomMerge" in capsys.readouterr().err


def test_other_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "x.safetensors").write_bytes(b"nothing")
    with pytest.raises(CannotRun, match="cannot be read"):
        load(tmp_path / "x.safetensors")
    with pytest.raises(CannotRun, match="no prompt embeddings"):
        load(paths.data("tiny", "onevision", "model.safetensors"))
