"""The commands and reproduce.sh: every outcome is an exit code and one message, whatever surrounds them."""

import errno
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from browser import until

from holitom.errors import BadUsage, BadVideo, CannotRun
from holitom_repro import __main__ as doors
from holitom_repro import claims, machine, notebooks, paths
from holitom_repro.notebooks import NOTEBOOKS, Finished

ROOT = Path(__file__).parents[2]


@pytest.fixture
def door(capsys):
    """door("table2 --limit 2") -> exit code, stdout, stderr of the command in this process."""

    def call(line: str) -> tuple[int, str, str]:
        code = doors.main(line.split())
        return code, *capsys.readouterr()

    return call


def finished(name="table2", *, trial=False, verdicts=()):
    found = [claims.Verdict(id=name, statement="It holds.", verdict=verdict, why="because") for verdict in verdicts]
    return Finished(Path(f"{name}.ipynb"), Path(f"runs/{name}.ipynb"), trial, 65.0, [], found)


def start(words: list, heard=signal.SIG_DFL, **more) -> subprocess.Popen:
    """A process in a session of its own that gets SIGINT as its shell treats it."""
    pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    handed_over = {"preexec_fn": lambda: signal.signal(signal.SIGINT, heard), "start_new_session": True}
    return subprocess.Popen(words, **pipes, **handed_over, **more)


# ---- what is typed
@pytest.mark.parametrize(
    ("line", "code", "said"),
    [
        ("", 3, ""),
        ("tabel2", 3, "Did you mean 'table2'"),
        ("table2 --tier speed", 3, "not offered in the speed tier. Use --tier tiny or --tier paper"),
        ("table2 --limit 0", 3, "greater than or equal to 1"),
        ("table2 --limt 2", 3, "'--limt' is not known here"),
        ("table2 -p budgts [0.1]", 3, "table2 has no parameter 'budgts'. Use one of"),
        ("fig-inference --tier speed", 2, "needs a CUDA GPU"),
        ("help table2", 0, ""),
    ],
)
def test_what_cannot_be_is_refused_in_one_message_before_any_work(door, monkeypatch, line, code, said):
    monkeypatch.setattr(machine, "gpu", lambda: machine.Answer(False, "none"))
    monkeypatch.setattr(notebooks, "run", lambda *_: pytest.fail("it ran"))
    got, _, err = door(line)
    assert (got, said in err) == (code, True), err
    assert err.count("\n") <= 1 and "Traceback" not in err


def test_every_command_explains_itself(door):
    words = [line.split()[1] for line in door("--help")[1].splitlines() if line.startswith("│ ") and line[2].isalpha()]
    assert {"list", "all", "claims", "report", "doctor", "explore", "lab", "test", "bench", "demo"} <= set(words)
    assert {notebook.command for notebook in NOTEBOOKS.values()} <= set(words)
    for word in set(words) - {"demo", "convert", "train-tiny", "bench"}:  # those are their programs' own
        code, out, _ = door(f"{word} --help")
        assert code == 0 and "Usage" in out, word


def test_list_names_every_notebook_with_question_minutes_and_hardware(door, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    code, out, _ = door("list")
    assert code == 0 and all(hardware in out for hardware in notebooks.HARDWARE.values())
    for notebook in NOTEBOOKS.values():
        (line,) = [line for line in out.splitlines() if line.split()[:1] == [notebook.command]]
        assert notebook.question in line and f"{notebook.minutes['tiny']:g} min" in line


@pytest.mark.parametrize("word", ["02_flops", "fig_inner"])
def test_a_notebook_is_known_by_its_file_too_and_gets_its_parameters(door, monkeypatch, word):
    seen = []
    monkeypatch.setattr(doors, "_run", lambda notebook, *given: seen.append((notebook.name, *given)) or finished())
    assert door(f"{word} -p budgets [0.05] --limit 3 -p clip a=b.mp4 --fresh")[0] == 0
    assert seen == [(word, "tiny", {"limit": 3, "fresh": True, "budgets": "[0.05]", "clip": "a=b.mp4"})]


def test_what_follows_at_the_paper_tier_reaches_it(monkeypatch):
    parsed = []
    fake = SimpleNamespace(OPTIONS="HOLITOM_TEST", parser=lambda: SimpleNamespace(parse_args=parsed.append))
    monkeypatch.setitem(sys.modules, "holitom_repro.paper_tier", fake)
    monkeypatch.setattr("holitom_repro.paper_tier", fake, raising=False)
    monkeypatch.setattr(doors, "_run", lambda *_: finished())
    assert doors.main(["table1", "--tier", "paper", "--processes", "8", "--no-gate"]) == 0
    assert os.environ["HOLITOM_TEST"] == "--processes 8 --no-gate" and parsed == [["--processes", "8", "--no-gate"]]


# ---- what comes out
@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "runs/x.json"), 2, "the disk is full. Free some space"),
        (PermissionError(errno.EACCES, "", "/etc/shadow/x"), 2, "/etc/shadow/x: it belongs to somebody else. Use a"),
        (BadVideo("it holds no picture", fix="give another file"), 2, "it holds no picture. Give another file"),
        (KeyboardInterrupt(), 130, "run the same command to continue"),
        (RuntimeError("something odd\nwith details"), 2, "a fault in the kit, RuntimeError: something odd. Please"),
    ],
)
def test_failures_become_one_message_and_a_code(door, monkeypatch, error, code, said):
    def fail(*_):
        raise error

    monkeypatch.setattr(doors, "_run", fail)
    got, _, err = door("table2")
    assert (got, said in err) == (code, True), err
    assert err.count("\n") == 1 and "Traceback" not in err
    assert code == 130 or "Traceback" in door("table2 --debug")[2]


STRICT = [("HOLDS", False, "table2 --strict", 0), ("FAILS", False, "table2 --strict", 1), ("FAILS", False, "table2", 0)]


@pytest.mark.parametrize(("verdict", "trial", "line", "code"), [*STRICT, ("NOT RUN", True, "table2 --strict", 0)])
def test_strict_ends_with_1_when_a_verdict_is_not_the_expected_one(door, monkeypatch, verdict, trial, line, code):
    monkeypatch.setattr(claims, "load", lambda: [SimpleNamespace(id="table2", expected="HOLDS")])
    monkeypatch.setattr(doors, "_run", lambda *_: finished(verdicts=[verdict], trial=trial))
    got, out, err = door(line)
    assert got == code and (verdict in out) != trial and "wrote runs/table2.ipynb" in err
    assert ("table2: FAILS, expected HOLDS" in out) == (verdict == "FAILS")


def test_all_goes_on_after_a_failure_and_names_it_at_the_end(door, monkeypatch):
    asked = {}

    def run(notebook, tier, given):
        asked[notebook.name] = given
        if notebook.name == "table1":
            raise CannotRun("the clip is broken", fix="restore it")
        return finished(notebook.name)

    monkeypatch.setattr(doors, "_run", run)
    code, _, err = door("all --limit 2")
    assert code == 2 and set(asked) == set(NOTEBOOKS) and err.count("1.1 min") == len(NOTEBOOKS) - 1
    assert asked["table2"] == {"limit": 2} and asked["02_flops"] == {}, "what it knows"
    assert "the clip is broken" in err and err.endswith("failed: table1\n")


def test_saved_tables_are_shown_as_they_are_where_there_is_no_wide_terminal(door, monkeypatch, tmp_path):
    (tmp_path / "table2.md").write_text("| méthode | FLOPs |\n|---|---:|\n| HoliTom | 6.9 |\n", encoding="utf-8")
    done = Finished(Path("table2.ipynb"), tmp_path / "copy.ipynb", False, 1.0, [tmp_path / "table2.md"], [])
    monkeypatch.setattr(doors, "_run", lambda *_: done)
    assert "| HoliTom | 6.9 |" in door("table2")[1]


SLOW = "import sys; from pathlib import Path; from holitom_repro import __main__ as doors, paths; "
SLOW += "paths.root = lambda: Path(sys.argv[1]); sys.exit(doors.main(['table2']))"
CELL = """
    import time
    from pathlib import Path
    Path("begun").touch()
    try:
        time.sleep(60)
    finally:
        Path("tidied").touch()
"""


@pytest.mark.parametrize("heard", [signal.SIG_DFL, signal.SIG_IGN], ids=["ctrl-C", "in the background"])
def test_ctrl_c_stops_the_cell_at_work_and_ends_with_130(kit, heard):
    folder = kit("table2", CELL).parent
    process = start([sys.executable, "-P", "-c", SLOW, str(paths.root())], heard)
    until(lambda: (folder / "begun").exists() or process.poll() is not None, "begun")
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130 and said.endswith("run the same command to continue\n"), said
    assert (folder / "tidied").exists(), "a sweep in a cell can end its processes"
    assert "Traceback" not in said


# ---- this machine
def test_doctor_says_what_stops_which_tier(door, monkeypatch):
    monkeypatch.setattr(machine, "gpu", lambda: machine.Answer(False, "none here"))
    monkeypatch.setattr(machine, "hub", lambda: machine.Answer(True, "answers"))
    monkeypatch.setattr(machine, "_imports", lambda: ("imports", True, "", "", machine.EVERY))
    code, out, _ = door("doctor")
    assert "no  GPU" in out and "(stops: speed, paper)" in out and "speed  cannot run here: GPU" in out
    assert code == (0 if "tiny   can run here" in out else 2)


def test_doctor_finds_a_library_of_another_python(monkeypatch, tmp_path):
    (tmp_path / "numpy").mkdir()
    (tmp_path / "numpy" / "__init__.py").write_text("raise ImportError('numpy of another Python')")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{ROOT / 'src'}")
    _, well, said, *_ = machine._imports()
    assert not well and "numpy of another Python" in said


@pytest.mark.parametrize("given", ["http://127.0.0.1:port", "mirror", "http://127.0.0.1:9"])
def test_a_hub_that_is_no_address_does_not_answer(monkeypatch, given):
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setenv("HF_ENDPOINT", given)
    found = machine.hub.__wrapped__()
    assert not found.ok and given in found.found


def test_an_environment_that_lacks_something_is_told(monkeypatch):
    monkeypatch.setattr(machine, "version", lambda name: None if name == "av" else machine.locked(ROOT).get(name, "1"))
    assert [word for word in machine.lacking(ROOT) if word.startswith("av")] == ["av is missing (needs >=14)"]
    monkeypatch.setattr(paths, "root", lambda: Path("/another/checkout"))
    assert "holitom-repro is that of /another/checkout" in machine.lacking(ROOT)


# ---- reproduce.sh, with a stand-in for Python
FAKE = """#!/usr/bin/env bash
case "$*" in
  *"-c import sys, ensurepip"*) [ "${FAKE_FAILS:-}" != version ] ;;
  *"-m venv"*) mkdir -p "${!#}/bin" && cp "$0" "${!#}/bin/python" ;;
  *holitom_repro.machine*) [ "${FAKE_FAILS:-}" != doctor ] || { echo "torch is missing (needs >=2.11)"; exit 1; } ;;
  *"-m pip --version"*) ;;
  *"-m pip install"*core.txt*) [ "${FAKE_FAILS:-}" != slow ] || { touch "$(dirname "$0")/slow"; sleep 30; } ;;
  *"-m pip install"*) [ "${FAKE_FAILS:-}" != pip ] || { echo "${FAKE_SAYS:-no}" >&2; exit 1; } ;;
  *"-c import sys, torch"*) exit 1 ;;
  *) echo "ran: $*"; env | grep -E '^(PYTHON|PIP_TARGET|LC_ALL)' ;;
esac
"""


@pytest.fixture
def checkout(tmp_path) -> Path:
    """What the script reads, in a folder with a space and a letter that is not ASCII; Pythons that only pretend."""
    place = tmp_path / "a kit, schön"
    place.mkdir()
    shutil.copy(ROOT / "reproduce.sh", place)
    shutil.copy(ROOT / "pyproject.toml", place)
    shutil.copytree(ROOT / "requirements", place / "requirements")
    (tmp_path / "tools").mkdir()
    for name in ("python3.12", "python3.11", "python3"):
        (tmp_path / "tools" / name).write_text(FAKE)
        (tmp_path / "tools" / name).chmod(0o755)
    return place


@pytest.fixture
def script(checkout, tmp_path):
    """script("list", FAKE_FAILS="pip") -> CompletedProcess of reproduce.sh, called from another folder."""

    def call(*words: str, heard=signal.SIG_DFL, user: int | None = None, **environment: str):
        kept = {k: v for k, v in os.environ.items() if k not in ("VIRTUAL_ENV", "CONDA_PREFIX", "PYTHONUTF8")}
        path = {"PATH": f"{tmp_path / 'tools'}:{os.environ['PATH']}", "HOME": str(tmp_path / "home")}
        called = [checkout / "reproduce.sh", *words]
        process = start(called, heard, cwd=tmp_path, user=user, env={**kept, **path, **environment})
        if environment.get("FAKE_FAILS") == "slow":
            until((checkout / ".venv" / "bin" / "slow").exists, "slow")
            os.killpg(process.pid, signal.SIGINT)  # as ctrl-C in a terminal
        out, err = process.communicate(timeout=60)
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    return call


def test_the_first_call_sets_up_and_the_second_does_not(script, checkout):
    first, second = script("list"), script("demo", "--video", "a b.mp4")
    assert first.returncode == 0 and "setting up" in first.stderr and "ready after" in first.stderr
    assert second.stderr == "" and "ran: -P -m holitom_repro demo --video a b.mp4\n" in second.stdout
    with (checkout / "requirements" / "dev.txt").open("a") as lock:
        lock.write("six==1.17.0\n")
    assert "setting up" in script("list").stderr, "another lock is another environment"
    assert not (checkout.parent / "home").exists()


def test_help_needs_no_environment_and_nothing_asked_is_no_success(script, checkout):
    asked, nothing = script("table2", "--help"), script()
    assert asked.returncode == 0 and "claims [--json] [--strict]" in asked.stdout
    assert nothing.returncode == 3 and not (checkout / ".venv").exists()


def test_the_users_surroundings_stay_outside(script):
    foreign = dict.fromkeys(("PYTHONPATH", "PYTHONHOME", "PYTHONSTARTUP", "PYTHONWARNINGS", "PIP_TARGET"), "/x")
    ran = script("list", LC_ALL="C", TMPDIR="/no/such/folder", CDPATH="/", **foreign)
    seen = dict(line.split("=", 1) for line in ran.stdout.splitlines() if "=" in line)
    assert ran.returncode == 0 and seen["PYTHONUTF8"] == seen["PYTHONNOUSERSITE"] == "1" and seen["LC_ALL"] == "C.UTF-8"
    assert not set(foreign) & set(seen)


def test_an_activated_environment_is_used_when_it_will_do_and_named_when_not(script, checkout, tmp_path):
    active = tmp_path / "active"
    (active / "bin").mkdir(parents=True)
    python = active / "bin" / "python"
    shutil.copy(tmp_path / "tools" / "python3", python)
    done = script("list", CONDA_PREFIX=str(active))
    assert "ran: -P -m holitom_repro list" in done.stdout and not (checkout / ".venv").exists() and done.stderr == ""
    python.write_text("#!/bin/sh\necho torch is missing; exit 1\n")
    done = script("list", VIRTUAL_ENV=str(active))
    assert f"not using the activated environment {active}: torch is missing\n" in done.stderr and done.returncode == 0
    shutil.rmtree(checkout / ".venv")
    python.unlink()
    done = script("list", VIRTUAL_ENV=str(active))
    assert f"{active}: it has no Python\n" in done.stderr and done.returncode == 0


@pytest.mark.parametrize(
    ("fails", "says", "fix"),
    [
        ("version", "", "install one"),
        ("pip", "[Errno 28] No space left on device", "free about 3 GB"),
        ("pip", "ERROR: No matching distribution found for torch==2.13.0", "check the network or name a mirror"),
        ("doctor", "torch is missing (needs >=2.11)", "then run the same command again"),
    ],
)
def test_a_set_up_that_fails_names_the_fix_and_is_taken_up_again(script, fails, says, fix):
    done = script("list", FAKE_FAILS=fails, FAKE_SAYS=says)
    assert done.returncode == 2 and says in done.stderr and done.stderr.count("  fix: ") == 1 and fix in done.stderr
    assert "ran: -P -m holitom_repro list" in script("list").stdout


@pytest.mark.parametrize("heard", [signal.SIG_DFL, signal.SIG_IGN], ids=["ctrl-C", "in the background"])
def test_ctrl_c_in_the_set_up(script, heard):
    stopped = script("list", FAKE_FAILS="slow", heard=heard)
    assert stopped.returncode == 130 and "stopped during set-up; run the same command to continue" in stopped.stderr
    assert "ran: -P -m holitom_repro list" in script("list").stdout


def test_a_folder_in_which_no_environment_can_be_made_is_named(checkout):
    moved = checkout.rename(checkout.with_name("2026-11-29 12:30"))
    done = subprocess.run([moved / "reproduce.sh", "list"], capture_output=True, encoding="utf-8")
    assert done.returncode == 2 and done.stderr.count("\n") == 2 and "a name without a colon" in done.stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be two users")
@pytest.mark.parametrize("place", ["runs/cache", ".venv"])
def test_what_belongs_to_somebody_else_is_said_in_one_message(script, checkout, tmp_path, place):
    for folder in (tmp_path, *tmp_path.parents):
        if folder.stat().st_uid == 0 and folder != Path("/"):
            folder.chmod(folder.stat().st_mode | 0o755)
    os.chown(checkout, 65432, 65432)  # nobody by name, as in a container
    (checkout / place).mkdir(parents=True)
    done = script("list", user=65432)
    assert done.returncode == 2 and done.stderr.count("\n") == 2, done.stderr
    assert "belongs to root, and " in done.stderr and "sudo chown -R" in done.stderr


# ---- prompts for engines
def test_a_prompt_of_embeddings_goes_on_as_the_model_does():
    import torch

    from holitom.attach import reduce_tokens
    from holitom.methods import HoliTom, HoliTomMerge
    from holitom.models.inputs import VideoProcessor, load_model
    from holitom.types import Reduction
    from holitom.video import load_frames
    from holitom_repro.serving import prompt_embeds

    folder = paths.data("tiny", "onevision")
    model = load_model(folder, dtype="float32", device="cpu")
    frames = load_frames(paths.data("videos", "three_shots.mp4"), 8)
    inputs = VideoProcessor.from_pretrained(folder)(frames.pixels, "how many scenes are there ?")
    reduction, ask = Reduction("HoliTom", HoliTom(tau=0.8), 0.25), {"max_new_tokens": 5, "do_sample": False}
    made = prompt_embeds(model, inputs, reduction)
    with reduce_tokens(model, reduction=reduction):
        wanted = model.generate(**inputs, **ask)[:, inputs["input_ids"].shape[1] :]
    mask = torch.ones(1, len(made), dtype=torch.long)
    assert torch.equal(model.generate(inputs_embeds=made[None], attention_mask=mask, **ask), wanted)
    with pytest.raises(BadUsage, match="inside the language model"):
        prompt_embeds(model, inputs, Reduction("HoliTom", HoliTom(), 0.25, (HoliTomMerge(layer=4, ratio=0.5),)))
