"""The plan: order, settings, expected minutes, what a dry run says, and what is measured again."""

import contextlib

import pytest

from holitom.errors import BadUsage, CannotRun
from holitom_repro.experiments import inference
from holitom_repro.latency import command, measuring, running
from holitom_repro.latency.plan import PARTS, SWEPT, TIERS, sizes
from holitom_repro.latency.records import read
from holitom_repro.latency.running import described, missing, record_plan


def test_the_most_valuable_comes_first():
    plan = sizes("speed")
    assert [size.part for size in plan[:2]] == ["aims", "rows"] and plan[0].protocol.ways == (
        "eager",
        "static",
        "graph",
    )
    assert {size.part for size in plan} == set(PARTS) and plan[-1].frames == 256
    assert [name for name, _ in plan[0].settings()] == ["all tokens", "10%", "10%"]
    assert plan[0].protocol.repeats >= 20 and all(size.protocol.repeats >= 20 for size in plan)
    assert sorted(size.batch for size in plan if size.part == "batches") == [1, 2, 4, 8, 16, 32]
    cut = next(size for size in plan if size.part == "72b")
    assert cut.depth == 20 and cut.settings()[-1][1].inner[0].layer < 20
    assert {row for size in plan for row in size.rows} >= set(SWEPT)
    assert set(inference.TIERS) == set(TIERS) - {"cpu"} and sizes("tiny", ["rows"])[0].printed


def test_every_part_fits_a_short_lease():
    """Ten minutes for a command: no size may be expected to take longer, and the first two fit together."""
    plan = sizes("speed")
    assert all(0 < size.seconds() < 600 for size in plan)
    assert sum(size.seconds() for size in plan[:2]) < 420
    by_frames = [size.seconds() for size in sorted(plan, key=lambda s: s.frames) if size.part == "frames"]
    assert by_frames == sorted(by_frames)
    assert sizes("tiny")[0].seconds() is None


def test_the_papers_shape_on_a_cpu_is_its_own_plan(capsys):
    (size,) = sizes("cpu")
    assert (size.model, size.frames, size.depth, size.dtype) == ("ov-7b", 32, 28, "bfloat16")
    assert size.seconds() is None and dict(size.untried)["eager"].startswith("not tried")
    assert command.run(["--plan", "cpu", "--dry-run"]) == 0
    printed = capsys.readouterr().out
    assert "12 passes" in printed and "H200" not in printed


def test_unknown_parts_and_tiers():
    with pytest.raises(BadUsage, match=r"no part row .nearest: rows"):
        sizes("tiny", ["row"])
    with pytest.raises(BadUsage, match="paper tier"):
        sizes("paper")


def test_without_a_gpu_the_speed_plan_refuses_and_its_dry_run_does_not(tmp_path, capsys):
    with pytest.raises(CannotRun, match="needs a CUDA device") as caught:
        record_plan("speed", tmp_path / "x.jsonl", device="cpu")
    assert caught.value.exit_code == 2 and "--dry-run" in caught.value.fix
    assert command.run(["--plan", "speed", "--dry-run"]) == 0
    printed = capsys.readouterr().out
    assert "decoding: eager, static, graph" in printed and "to measure" in printed and "20 layers" in printed
    for words in (["--dry-run"], ["--part", "rows"], ["--minutes", "3"]):
        with pytest.raises(BadUsage, match="belong to a plan"):
            command.run([*words, "--device", "cpu"])


def test_what_is_recorded_is_not_measured_again(tmp_path, monkeypatch):
    monkeypatch.setattr(measuring, "machine_state", lambda device: {"idle": None, "reason": "a test"})
    out = tmp_path / "x.jsonl"
    asked = []

    @contextlib.contextmanager
    def progress(passes):
        asked.append(passes)
        yield lambda n: None

    first = record_plan("tiny", out, device="cpu", parts=["aims"], limit=1, progress=progress)
    assert [record["row"] for record in first.records] == ["Vanilla", "HoliTom (w/o M)", "HoliTom"]
    assert first.records[0]["decoding"]["static"]["same_tokens"] == 1 and not first.left
    again = record_plan("tiny", out, device="cpu", parts=["aims"], limit=1, progress=progress)
    assert asked == [9, 0] and len(read(out)) == 3 and again.records == read(out)
    assert "recorded" in described("tiny", out, "cpu", ["aims"], 1)
    monkeypatch.setattr(running, "code_fingerprint", lambda: "another")
    assert missing(sizes("tiny", ["aims"], 1), {}, "cpu")


def test_the_time_is_kept(tmp_path, monkeypatch):
    """What is expected to end too late is not begun, and named."""
    begun = []
    monkeypatch.setattr(running, "load", lambda *a, **k: type("Loaded", (), {"name": "ov-7b", "layers": 28}))
    monkeypatch.setattr(running, "measure", lambda loaded, settings, **k: begun.append(k["part"]) or [])
    done = record_plan("speed", None, device="cuda", minutes=2)
    assert begun[0] == "aims" and done.left and {"rows"} <= {size.part for size in done.left}
    assert len(begun) + len(done.left) == len(sizes("speed"))


def test_slow_backends_are_not_tried_at_every_size():
    size = next(size for size in sizes("speed", ["frames"]) if size.frames == 128)
    record = {
        "model": "ov-7b",
        "device": "a GPU",
        "frames": 32,
        "batch": 1,
        "attention_tried": {"sdpa": 0.2, "eager": 0.5, "flash_attention_2": "not installed"},
    }
    assert running._slower(size, [record]) == {"eager": "not tried: 2.5 times as slow at 32 frames, batch 1"}
    assert running._slower(size, [record | {"frames": 256}, record | {"model": "video-7b"}]) == {}
