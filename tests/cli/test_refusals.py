"""What a forwarded target refuses at once: values and places that it could only fail on later."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

import pytest
import torch

from holitom_repro import cli, paths, refusals
from holitom_repro.bench import command as ops
from holitom.errors import CannotRun

EMBEDS = ["export-embeds", "--model", "no-such-model", "--video", "x.mp4", "--prompt", "?"]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["train-tiny", "--steps", "nan"], "not a number above 0"),
        (["train-tiny", "--steps", "0"], "not a number above 0"),
        (["train-tiny", "--steps", "-1"], "not a number above 0"),
        (["train-tiny", "--threads", "0"], "whole number above 0"),
        (["train-tiny", "--workers", "-1"], "whole number above 0"),
        (["train-tiny", "--work", "{file}"], "is a file, not a folder"),
        (["train-tiny", "--out", "{file}"], "is a file, not a folder"),
        (["train-tiny", "--out", ""], "the path is empty"),
        (["demo", "--out", "{file}"], "is a file, not a folder"),
        (["demo", "--out", ""], "the path is empty"),
        (["demo", "--video", ""], "the path is empty"),
        ([*EMBEDS, "--out", ""], "the path is empty"),
        ([*EMBEDS, "--out", "{folder}"], "is a folder"),
        ([*EMBEDS, "--out", "{file}/x"], "is a file, not a folder"),
        ([*EMBEDS, "--out", "x", "--device", "bogus"], "--device bogus is not known"),
        ([*EMBEDS, "--out", "x", "--device", "meta"], "--device meta is not known"),
        (["bench", "latency", "--device", "bogus"], "--device bogus is not known"),
        (["bench", "latency", "--out", "{folder}"], "is a folder"),
        (["bench", "latency", "--plan", "tiny", "--dry-run", "--minutes", "nan"], "--minutes nan"),
        (["bench", "released", "--released", ".", "--device", "meta"], "--device meta is not known"),
        (["bench", "ops", "--dim", "0"], "whole number above 0"),
        (["bench", "ops", "--dim", "-1"], "whole number above 0"),
        (["bench", "ops", "--frames", "0"], "whole number above 0"),
        (["bench", "ops", "--json", "{folder}"], "is a folder"),
    ],
)
def test_bad_values_are_bad_usage_at_once(words, expected, capsys, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setattr(os, "execve", lambda *_: pytest.fail("training began"))
    words = [word.format(file=tmp_path / "file", folder=tmp_path) for word in words]
    assert cli.main(words) == 3
    said = capsys.readouterr().err
    assert expected in said.splitlines()[-1] and "Traceback" not in said


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
@pytest.mark.parametrize("words", [["train-tiny"], [*EMBEDS, "--out", "x"]])
def test_a_gpu_that_is_not_there(words, capsys):
    assert cli.main([*words, "--device", "cuda"]) == 2
    assert "no CUDA device here. Give --device cpu" in capsys.readouterr().err


def test_a_folder_without_the_right_to_write(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(CannotRun, match="not writable"):
        refusals.file_to_write(tmp_path / "deep" / "x", "--out")


def test_ctrl_c_while_training_says_that_it_continues(tmp_path):
    words = ["train-tiny", "--only", "onevision", "--device", "cpu", "--threads", "1"]
    words += ["--work", str(tmp_path / "work"), "--out", str(tmp_path / "out")]
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "holitom_repro", *words], stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    said = ""
    while "step" not in said and (letter := process.stderr.read(1)):  # the progress bar: training has begun
        said += letter
    os.killpg(process.pid, signal.SIGINT)
    said += process.communicate(timeout=60)[1]
    assert process.returncode == 130, said
    assert "run the same command to continue" in said and "Traceback" not in said


def test_what_was_timed_is_printed_before_the_file_fails(tmp_path, capsys, monkeypatch):
    def full(path, text):
        raise CannotRun("the disk is full", fix="free some space")

    monkeypatch.setattr(ops, "write_atomic", full)
    words = ["--method", "DyCokeDecode", "--dim", "8", "--repeats", "1", "--json", str(tmp_path / "rows")]
    with pytest.raises(CannotRun):
        ops.run(words)
    assert "DyCokeDecode" in capsys.readouterr().out


@pytest.mark.parametrize("option", ["tau=abc", "tau=nan", "tau=5", "tau=[", "k=2.5", "beta=true"])
def test_options_of_another_kind_are_refused_before_the_model_is_loaded(option, capsys, tmp_path, monkeypatch):
    from holitom.models import processing

    monkeypatch.setattr(processing, "load_model", lambda *_, **__: pytest.fail("the model was loaded"))
    words = ["export-embeds", "--model", str(paths.data("tiny", "onevision")), "--video", "x.mp4", "--prompt", "?"]
    assert cli.main([*words, "--out", str(tmp_path / "x"), "--option", option]) == 3
    assert option.partition("=")[0] in capsys.readouterr().err


def test_options_keep_their_values():
    from holitom_repro.serving.options import fields_of

    told = ["tau=1e-1", "k=7", "beta=null", "counts=exact"]
    assert fields_of("holitom", told) == {"tau": 0.1, "k": 7, "beta": None, "counts": "exact"}


def test_a_full_disk_leaves_no_part_of_a_file(tmp_path, monkeypatch):
    from safetensors import SafetensorError

    from holitom_repro.serving import PromptEmbeds, embeds

    def full(tensors, path, metadata):
        path.write_bytes(b"part")
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(embeds, "save_file", full)
    with pytest.raises(CannotRun, match="disk is full"):
        embeds.save(PromptEmbeds(torch.zeros(2, 2), torch.arange(2)), tmp_path / "x")
    assert not list(tmp_path.iterdir())


@pytest.fixture
def records(tmp_path):
    source = next(path for path in sorted(paths.data("measured").glob("*.jsonl")) if "released" not in path.name)
    lines = source.read_bytes().splitlines(keepends=True)[:2]
    assert json.loads(lines[0])["kind"] == "latency"
    return tmp_path / "latency.jsonl", lines


def test_a_record_that_was_cut_off_is_left_out_with_a_warning(records, capsys):
    from holitom_repro.latency.records import read, write

    path, (first, second) = records
    path.write_bytes(first + second[:100])
    held = read(path)
    assert held == [json.loads(first)]
    assert capsys.readouterr().err.count("line 2: cut off") == 1
    write(path, [json.loads(second)], append=True)
    assert len(read(path)) == 2 and not capsys.readouterr().err


@pytest.mark.parametrize("broken", [b'{"version": 1, \n', b'{"a": "\xff"}\n', b"[]\n"])
def test_a_broken_record_elsewhere_is_named(records, broken):
    from holitom_repro.latency.records import read

    path, (first, second) = records
    path.write_bytes(first + broken + second)
    with pytest.raises(CannotRun, match=r"latency\.jsonl, line 2: ") as caught:
        read(path)
    assert "delete that line" in caught.value.fix and ".." not in str(caught.value)
