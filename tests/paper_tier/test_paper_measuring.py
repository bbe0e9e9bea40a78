"""What the paper tier says before it starts, how cells are shared out, and how several processes are started."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import SiglipVisionConfig, SiglipVisionModel

from holitom_repro import cli, paths
from holitom.errors import BadUsage, CannotRun, UnsupportedModel
from holitom_repro.evaluation.cells import HUB, Cell, CellFiles
from holitom_repro.experiments import cells
from holitom.methods import FastVID
from holitom_repro.paper_tier import gate, launching, measuring, planning
from holitom_repro.paper_tier.__main__ import main
from holitom_repro.paper_tier.measuring import Settings, measure, share
from holitom_repro.results import Record
from holitom.types import Reduction

TINY = str(paths.data("tiny", "onevision"))
FULL = Reduction("Vanilla")


def cell(benchmark: str = "videomme", model: str = TINY, reduction: Reduction = FULL, **more) -> Cell:
    return Cell("table1", reduction.name, model, reduction, benchmark, 32, **more)


@pytest.fixture(autouse=True)
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test asks the hub."""
    monkeypatch.setattr(planning, "_gib", lambda *question: None)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))


def test_parts_are_disjoint_and_complete() -> None:
    wanted = cells("table1", "paper")
    parts = [share(wanted, (i, 7)) for i in range(7)]
    assert sorted(repr(one) for part in parts for one in part) == sorted(map(repr, wanted))
    with pytest.raises(BadUsage, match="part 7 of 7"):
        share(wanted, (7, 7))


def test_the_plan_says_disk_and_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "home" / "mvbench_video").mkdir(parents=True)
    monkeypatch.setattr(planning, "_gib", lambda repository, *rest: 3.0)
    lines = planning.describe([cell(), cell("mvbench")], CellFiles(tmp_path, "paper"), 8)
    text = "\n".join(lines)
    assert "6700 questions are left" in text
    assert "videomme: 6 GiB" in text, "archives, and what is unpacked from them"
    assert "mvbench: here" in text
    assert "on 8 processes" in text
    assert "a guess" in text
    monkeypatch.setattr(planning, "_gib", lambda repository, *rest: 1e9)
    with pytest.raises(CannotRun, match="do not fit"):
        planning.describe([cell()], CellFiles(tmp_path, "paper"), 1)


def test_time_is_that_of_finished_cells(tmp_path: Path) -> None:
    files = CellFiles(tmp_path, "paper")
    files.folder.mkdir(parents=True)
    record = {"value": 50, "n": 10, "unit": "points", "metric": "accuracy", "experiment": "table1", "row": "Vanilla"}
    record |= {"model": TINY, "benchmark": "videomme", "frames": 32, "tier": "paper", "source": "measured"}
    record |= {"provenance": {"made": "up for a test"}}
    (files.folder / "a.json").write_text(Record(**record, extra={"seconds": 20.0}).to_json())
    assert planning.estimate([cell(limit=30)], files, 1).startswith("about 1 min 0 s")


def test_original_checkpoints_are_refused_with_the_way_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "LLaVA-Video-7B-Qwen2"
    folder.mkdir()
    stored = {"architectures": ["LlavaQwenForCausalLM"], "mm_vision_tower": "google/siglip", "model_type": "llava_qwen"}
    (folder / "config.json").write_text(json.dumps(stored))
    monkeypatch.setitem(HUB, "video-7b", str(folder))
    with pytest.raises(UnsupportedModel, match="holitom convert"):
        measure([cell(model="video-7b")], Settings(), runs=tmp_path)


def test_egoschemas_full_set_is_refused_before_anything_runs(tmp_path: Path) -> None:
    with pytest.raises(BadUsage, match="egoschema_subset"):
        measure([cell("egoschema")], Settings(), runs=tmp_path)
    assert not {c.benchmark for c in cells("table1", "paper")} & {"egoschema"}


@pytest.fixture
def swept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[list[tuple[str, str]]]:
    """What every sweep was asked for, (model, row); a sweep of the 72B model runs out of memory."""
    asked = []

    def run_cells(wanted, tier, **options):
        asked.append([(one.model, one.row) for one in wanted])
        if any(one.model == "ov-72b" for one in wanted):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return []

    monkeypatch.setattr(measuring.sweep, "run_cells", run_cells)
    monkeypatch.setattr(planning, "runnable", lambda cells: None)
    monkeypatch.setattr(planning, "pooling_head", lambda cells: None)
    monkeypatch.setattr(gate, "judge", lambda cells, records: [])
    return asked


def test_a_model_too_large_for_the_gpu_stops_no_other(swept, tmp_path: Path, capsys) -> None:
    with pytest.raises(CannotRun, match=r"does not fit on this GPU.*72B.*larger GPU; finished cells are kept"):
        measure(cells("table2", "paper"), Settings(), runs=tmp_path)
    assert [{model for model, _ in one} for one in swept] == [{"ov-7b"}, {"ov-7b"}, {"ov-72b"}]
    assert {row for _, row in swept[0]} == {"Vanilla"} and "HoliTom" in {row for _, row in swept[1]}


def test_the_error_of_a_full_gpu_keeps_nothing_on_it(swept, tmp_path: Path) -> None:
    """`all` goes on with the next experiment while it holds what stopped this one."""
    with pytest.raises(CannotRun) as caught:
        measure([cell(model="ov-72b")], Settings(gate=False), runs=tmp_path)
    assert caught.value.__context__ is None


def test_how_processes_are_started() -> None:
    words = ["table1", "--limit", "8"]
    assert launching.command(1, words, gpus=True)[1:] == ["-m", "holitom_repro.paper_tier", *words]
    many = launching.command(8, words, gpus=True)
    assert many[1:3] == ["-m", "accelerate.commands.launch"]
    assert many[many.index("--num_processes") + 1] == "8"
    assert many[-5:] == ["-m", "holitom_repro.paper_tier", *words]
    assert "torch.distributed.run" in launching.command(2, words, gpus=False), "accelerate starts one process on CPUs"


def test_a_failed_launch_is_told(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(CannotRun, match="exit code 3"):
        launching.run(1, ["no-such-experiment"], gpus=False)
    assert "there is no experiment" in capfd.readouterr().err


def test_the_commands_refuse_what_makes_no_sense(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["table1", "--part", "4/4"]) == 3
    assert main(["method"]) == 3
    assert cli.main(["table1", "--no-gate"]) == 3
    assert "belongs to the paper tier" in capsys.readouterr().err
    assert cli.main(["fig-inference", "--tier", "speed", "--processes", "2"]) == 3
    assert "in one process" in capsys.readouterr().err


def test_fastvid_gets_the_pooling_head_or_does_not_start(tmp_path: Path) -> None:
    asked = [one for one in cells("table1", "paper") if one.row == "FastVID"]
    assert asked and all(one.reduction.outer.head == "siglip" for one in asked)
    assert all(one.reduction.outer.head == "substitute" for one in cells("table1", "tiny") if one.row == "FastVID")
    mine = cell(reduction=Reduction("FastVID", FastVID(head="siglip"), 0.25))
    vision = json.loads(Path(TINY, "config.json").read_text())["vision_config"]
    torch.manual_seed(0)
    SiglipVisionModel(SiglipVisionConfig(**{**vision, "vision_use_head": True})).save_pretrained(tmp_path / "head")
    assert str(tmp_path / "head") in planning.pooling_head([cell(), mine], tmp_path / "head")
    assert planning.pooling_head([cell()], tmp_path / "nowhere") is None
    (tmp_path / "nowhere").mkdir()
    with pytest.raises(CannotRun, match="pooling head cannot be read"):
        planning.pooling_head([mine], tmp_path / "nowhere")
    with pytest.raises(CannotRun, match="pooling head"):  # the hub cannot be asked, and its tower is another
        measure([mine], Settings(gate=False), runs=tmp_path)
