"""What cannot run says why and how to mend it: exit 2, no traceback, no finished work lost."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import textwrap
import time

import pytest

from holitom_repro import cli, machine, runner
from holitom.errors import BadVideo
from holitom_repro.experiments.registry import EXPERIMENTS

NO_GPU = {"CUDA_VISIBLE_DEVICES": ""}


@pytest.mark.parametrize("target", ["table1", "all"])
def test_speed_tier_without_a_gpu(holitom, target):
    done = holitom(target, "--tier", "speed", env=NO_GPU)
    assert done.returncode == 2
    assert "needs a CUDA GPU" in done.stderr and "--tier tiny" in done.stderr
    assert "Traceback" not in done.stderr


def test_paper_tier_without_a_hub(holitom):
    closed = {
        **NO_GPU,
        "HF_HUB_OFFLINE": "",
        "TRANSFORMERS_OFFLINE": "",
        "HF_ENDPOINT": "http://127.0.0.1:9",
        "http_proxy": "",
        "HTTP_PROXY": "",
    }
    done = holitom("table1", "--tier", "paper", env=closed)
    assert done.returncode == 2
    assert "model hub" in done.stderr and "127.0.0.1 does not answer" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_tier_that_does_not_offer_the_experiment_is_bad_usage(monkeypatch, capsys):
    monkeypatch.setattr(machine, "gpu", lambda: machine.Answer(True, "a GPU"))
    assert cli.main(["table1", "--tier", "speed"]) == 3
    assert "use --tier tiny or --tier paper" in capsys.readouterr().err.lower()


def test_missing_models_are_named_before_any_work(monkeypatch, capsys):
    monkeypatch.setattr(runner, "missing_models", lambda tier: ["onevision"])
    assert cli.main(["table2"]) == 2
    assert "train-tiny" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "code", "expected"),
    [
        (
            OSError(errno.ENOSPC, "No space left on device", "runs/x.json"),
            2,
            "the disk is full while writing runs/x.json",
        ),
        (OSError(errno.EDQUOT, "Disk quota exceeded", "runs/x.json"), 2, "the disk is full"),
        (PermissionError(errno.EACCES, "Permission denied", "figures"), 2, "Permission denied: 'figures'"),
        (BadVideo("it holds no picture", fix="give another file"), 2, "Give another file"),
        (KeyboardInterrupt(), 130, "stopped; run the same command to continue"),
        (RuntimeError("something odd\nwith details"), 2, "a fault in the kit, RuntimeError: something odd"),
    ],
)
def test_failures_become_one_message_and_a_code(monkeypatch, capsys, error, code, expected):
    def fail(*_):
        raise error

    monkeypatch.setattr(runner, "run", fail)
    assert cli.main(["table1"]) == code
    said = capsys.readouterr().err
    assert expected in said
    assert "Traceback" not in said
    if not isinstance(error, KeyboardInterrupt):
        cli.main(["table1", "--debug"])
        assert "Traceback" in capsys.readouterr().err


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk_behind_standard_output(holitom):
    with open("/dev/full", "w") as full:
        done = holitom("list", stdout=full)
    assert done.returncode == 2
    assert "the disk is full" in done.stderr
    assert "Traceback" not in done.stderr and "Exception ignored" not in done.stderr


SLOW = """
    import sys, time
    from pathlib import Path
    from holitom_repro import cli, experiments, paths, runner
    from holitom_repro.evaluation import sweep
    from holitom_repro.evaluation.cells import CellFiles
    from holitom_repro.experiments import grids

    paths.runs = lambda *parts: Path(sys.argv[1]).joinpath(*parts)
    runner.missing_models = lambda tier: []
    made = [c for c in grids.cells("table1", "tiny", 1) if c.saliency == "own"][:3]
    grids.cells = experiments.cells = lambda name, tier, limit=None: made
    done = set()
    sweep.finished = lambda cells, tier, *, runs: len(done)

    def run_cells(cells, tier, *, runs, fresh, processes):
        for cell in cells:
            if len(done) == 2:
                print("slow cell", flush=True)
                time.sleep(60)
            done.add(cell)

    sweep.run_cells = run_cells
    sys.exit(cli.main(["table1", "--limit", "1"]))
"""


def test_ctrl_c_in_a_sweep_says_what_is_kept(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-P", "-c", textwrap.dedent(SLOW), str(tmp_path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert process.stdout.readline() == "slow cell\n", process.stderr.read()
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=30)
    assert process.returncode == 130, said
    assert "stopped; 2 of 3 cells done and kept; run the same command to continue" in said
    assert "Traceback" not in said


TEXT = """
    import sys, time
    from holitom_repro import cli

    def target(words):
        exec("print('begun', flush=True)\\ntime.sleep(60)")

    cli._dispatch = target
    sys.exit(cli.main(["list"]))
"""


def test_ctrl_c_while_code_made_from_text_runs(tmp_path):
    """As while a dataclass is made: Python would end by the signal, whatever the handler returns."""
    (tmp_path / "interrupted_text.py").write_text(textwrap.dedent(TEXT))
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "interrupted_text"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
    )
    assert process.stdout.readline() == "begun\n"
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=30)
    assert process.returncode == 130 and said == "stopped; run the same command to continue\n"


HALF_MADE = """
    import sys
    from holitom_repro import cli, runner

    class Bar:
        def __init__(self):
            raise KeyboardInterrupt

        def __del__(self):
            self.never_set

    runner.run = lambda *_: Bar()
    sys.exit(cli.main(["table1"]))
"""


def test_ctrl_c_while_a_progress_bar_is_made_leaves_one_message():
    words = [sys.executable, "-P", "-c", textwrap.dedent(HALF_MADE)]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 130
    assert done.stderr == "stopped; run the same command to continue\n"


def test_strict_turns_a_failed_claim_into_exit_1(monkeypatch, capsys):
    from holitom_repro.claims import Judged, Verdict

    common = {"id": "x", "statement": "s", "place": "p", "reason": "r", "source": "derived", "unit": "%"}
    good = Judged(**common, verdict=Verdict.REPRODUCED)
    bad = Judged(**common, verdict=Verdict.NOT_REPRODUCED)
    for judged, strict, code in (([good], True, 0), ([good, bad], False, 0), ([good, bad], True, 1)):
        outcome = runner.Outcome(EXPERIMENTS["flops"], judged=judged)
        monkeypatch.setattr(runner, "perform", lambda *_, outcome=outcome: outcome)
        assert cli.main(["flops", *(["--strict"] if strict else [])]) == code
    assert "1 REPRODUCED, 1 NOT REPRODUCED" in capsys.readouterr().out


def test_all_goes_on_after_a_failure_and_ends_with_one_screen(monkeypatch, capsys):
    def perform(experiment, options):
        if experiment.name == "table1":
            raise BadVideo("the clip is broken", fix="restore it")
        return runner.Outcome(experiment, seconds=65)

    monkeypatch.setattr(runner, "perform", perform)
    monkeypatch.setattr(runner, "missing_models", lambda tier: [])
    assert cli.main(["all"]) == 2
    screen = capsys.readouterr().out
    assert all(experiment.target in screen for experiment in EXPERIMENTS.values())
    assert "the clip is broken" in screen and "1 min 5 s" in screen


@pytest.fixture
def videos(tmp_path):
    """One file for each way in which a video can be wrong."""
    import av
    import numpy as np

    from holitom_repro import paths
    from holitom.video import write_video

    (tmp_path / "text.mp4").write_text("no video at all")
    (tmp_path / "broken.mp4").write_bytes(paths.data("videos", "three_shots.mp4").read_bytes()[:3000])
    write_video(tmp_path / "one.mp4", np.full((1, 112, 112, 3), 90, np.uint8))
    with av.open(str(tmp_path / "audio.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=44100)
        for _ in range(4):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
            frame.sample_rate = 44100
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return tmp_path


@pytest.mark.parametrize(
    ("words", "code", "expected"),
    [
        (["--video", "nowhere.mp4"], 2, "there is no file"),
        (["--video", "text.mp4"], 2, "text.mp4"),
        (["--video", "broken.mp4"], 2, "broken.mp4"),
        (["--video", "audio.mp4"], 2, "sound but no picture"),
        (["--budget", "0"], 3, "budget 0.0 is outside (0, 1]"),
        (["--budget", "1.5"], 3, "budget 1.5 is outside (0, 1]"),
        (["--frames", "0"], 3, "Ask for 1 or more"),
    ],
)
def test_the_demo_says_what_is_wrong_and_how_to_mend_it(videos, monkeypatch, capsys, words, code, expected):
    monkeypatch.chdir(videos)
    assert cli.main(["demo", *words]) == code
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("./reproduce.sh: ")]
    assert len(said) == 1 and expected in said[0] and said[0].count(". ") >= 1, said
    assert "a fault in the kit" not in said[0]


def test_a_video_of_one_frame_is_no_error(videos, monkeypatch, capsys):
    monkeypatch.chdir(videos)
    assert cli.main(["demo", "--video", "one.mp4", "--out", str(videos / "drawn")]) == 0
    assert "1 of 1 frames" in capsys.readouterr().out or list(videos.glob("drawn*"))


def test_messages_in_the_guide_are_those_of_the_code(root):
    """Each message that the guide quotes in full still stands in the sources, apart from its values."""
    import re

    guide = (root / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    sources = "".join(path.read_text(encoding="utf-8").lower() for path in (root / "src" / "holitom").rglob("*.py"))
    pieces = (
        "check the path",
        "sound but no picture",
        "is outside (0, 1]",
        "is not a number of frames",
        "is in training mode",
        "it has no config.json",
        "the disk is full",
        "holds other files",
        "run the same command to continue",
        "lists all",
    )
    for piece in pieces:
        assert re.search(re.escape(piece), guide, re.IGNORECASE), piece
        assert piece in sources, piece
