"""Choices: what they stand for, what is refused; clips; costs; the answers of the tiny model."""

import json

import numpy as np
import pytest

from holitom import methods
from holitom_repro import paths
from holitom.errors import BadUsage, BadVideo, CannotRun, KitError
from holitom_repro.explorer import Side, State, view
from holitom_repro.explorer.answers import tiny_model
from holitom_repro.explorer.clips import open_clip, shipped
from holitom_repro.explorer.costs import FULL, NOTHING_RECORDED, Point, cost, expected_ttft, recorded
from holitom_repro.explorer.state import INNER, outer_methods, shown_name
from holitom_repro.figures.style import LOOKS
from holitom.flops import paper_flops
from holitom.methods import FastV, HoliTom, HoliTomMerge
from holitom.video import write_video


def test_every_outer_method_of_the_kit_can_be_chosen():
    offered = set(outer_methods())
    assert {"HoliTom", "VisionZip", "PruneVid", "FastVID", "DyCoke", "MMGVid", "HieraVid", "ToMe"} <= offered
    inner = {"FastV", "HoliTomMerge", "PyramidDrop", "PyramidDropStage", "DyCokeDecode", "PruneVidSelect"}
    assert not offered & (inner | {"HieraVidSelect"}) and offered <= set(methods.__all__)
    assert next(iter(outer_methods())) == "HoliTom"


@pytest.mark.parametrize("inner", INNER)
def test_every_method_of_the_menu_has_its_own_colour_and_marker(inner):
    looks = {method: Side(method, inner=inner).look for method in outer_methods()}
    assert looks["MMGVid"] == LOOKS["MMG-Vid"] and looks["HieraVid"] == LOOKS["HieraVid"]
    assert looks["ToMe"] == LOOKS["ToMe"] and looks["RandomDrop"] == LOOKS["Random"]
    assert len({(style.colour, style.marker) for style in looks.values()}) == len(looks)
    with pytest.raises(BadUsage, match="no colour is fixed"):
        _ = Side("SomethingNew").look


def test_a_side_is_a_reduction():
    side = Side("HoliTom", 0.15, 0.7, "merge", 18, 0.5)
    made = side.reduction()
    assert made.outer == HoliTom(tau=0.7) and made.budget == 0.15 and made.inner == (HoliTomMerge(18, 0.5),)
    assert Side("HieraVid", inner="drop").label == "HieraVid, first stage + FastV"
    assert side.label == "HoliTom" and side.settings == "τ = 0.7, K = 18, R = 0.5"
    assert Side().label == "HoliTom (w/o M)" and Side(inner="drop").reduction(6).inner == (FastV(4, 0.5),)
    assert Side(inner="merge", ratio=0).reduction().inner == ()


@pytest.mark.parametrize(
    ("side", "words"),
    [
        (Side(budget=0.0), "outside"),
        (Side("HoliTon"), "nearest: HoliTom"),
        (Side(tau=2), "cosine"),
        (Side(inner="both"), "inner stage"),
        (Side(inner="merge", layer=28), "K = 28"),
        (Side("DyCoke", 0.1), "DyCoke keeps one whole frame"),
    ],
)
def test_bad_settings_are_refused_in_words(side, words):
    with pytest.raises(BadUsage, match=words):
        view(State(frames=8, first=side, second=None))


def test_bad_files_are_refused_in_words(tmp_path):
    with pytest.raises(BadUsage, match="no video"):
        open_clip("  ")
    with pytest.raises(BadVideo, match="no file"):
        open_clip(str(tmp_path / "none.mp4"))
    (tmp_path / "broken.mp4").write_bytes(b"\0" * 2000)
    with pytest.raises(BadVideo, match="not a video"):
        open_clip(str(tmp_path / "broken.mp4"))
    with pytest.raises(BadVideo):
        open_clip(str(_sound(tmp_path / "sound.wav")))


def _sound(path):
    import wave

    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(8000)
        file.writeframes(b"\0\0" * 800)
    return path


def test_one_frame_is_shown_with_a_remark(tmp_path):
    file = write_video(tmp_path / "one.mp4", np.full((1, 64, 64, 3), 90, np.uint8))
    shown = view(State(str(file), second=Side("VisionZip")))
    assert any("nothing merges over time" in remark for remark in shown.clip.remarks)
    assert shown.picture().png and shown.state.focus == 0


def test_every_method_takes_one_frame_or_says_why_not(tmp_path):
    file = write_video(tmp_path / "one.mp4", np.random.default_rng(0).integers(0, 255, (1, 64, 64, 3), dtype=np.uint8))
    for name in outer_methods():
        try:
            view(State(str(file), first=Side(name, 0.5), second=None)).picture()
        except KitError as error:
            assert shown_name(name) in str(error)


def test_a_file_that_is_written_again_is_read_again(tmp_path):
    file = write_video(tmp_path / "clip.mp4", np.full((4, 64, 64, 3), 40, np.uint8))
    before = open_clip(str(file), 4)
    assert open_clip(str(file), 4) is before
    write_video(file, np.full((6, 64, 64, 3), 200, np.uint8))
    after = open_clip(str(file), 8)
    assert len(after) == 6 and len(before) == 4


def test_focus_and_question_stay_within_the_clip():
    assert State(focus=90, question=7).within(16, 3).focus == 15
    assert State(focus=-1, question=7).within(16, 3) == State(focus=0, question=2)
    assert State(question=7).within(16, 0).question == 0


def test_cost_is_the_papers_formula_at_the_realised_count():
    assert cost(1).flops == paper_flops([FULL] * 28, 3584, 18944)
    half = cost(0.25, Side(inner="merge", layer=18, ratio=0.5))
    assert half.flops == paper_flops([1568] * 18 + [784] * 10, 3584, 18944)
    assert half.tokens == 1568 and half.layer_tokens == pytest.approx((18 * 1568 + 10 * 784) / 28)


def test_nothing_is_expected_where_nothing_is_recorded(tmp_path):
    assert recorded(tmp_path / "none.jsonl") == ()
    (tmp_path / "broken.jsonl").write_text(json.dumps({"version": 1}) + "\n")
    assert recorded(tmp_path / "broken.jsonl") == ()
    assert expected_ttft((), "HoliTom", 1e12) == NOTHING_RECORDED


def test_recorded_times_are_those_of_the_newest_code(tmp_path):
    shipped = paths.root() / "data" / "measured" / "tiny_cpu.jsonl"
    line = json.loads(shipped.read_text().splitlines()[0])
    line |= {"model": "ov-7b", "layers": 28, "full_layers": 28, "tokens_per_layer": [FULL] * 28, "device": "a GPU"}
    old = line | {"code": "older", "created": "2026-01-01T00:00:00+00:00", "row": "FastV"}
    (tmp_path / "h200.jsonl").write_text("".join(json.dumps(record) + "\n" for record in (old, line)))
    assert [point.row for point in recorded(tmp_path / "h200.jsonl")] == ["Vanilla"]


def test_expected_times_lie_between_recorded_ones():
    points = [Point("Vanilla", 40e12, 400, "a GPU"), Point("HoliTom", 4e12, 100, "a GPU"), Point("FastV", 9e12, 5, "x")]
    assert expected_ttft(points, "HoliTom", 22e12) == "about 250 ms on a GPU"
    assert expected_ttft(points, "HoliTom", 1e12) == "at most 100 ms on a GPU"
    assert expected_ttft(points, "VisionZip", 50e12) == "at least 400 ms on a GPU"


def test_clips_of_the_tiny_world_come_with_questions(tiny_folder):
    name = "tiny_general/001"
    assert name in shipped()
    opened = open_clip(name)
    assert opened.video.grid == (4, 4) and len(opened) == 32 and len(opened.questions) == 3
    assert open_clip(name, 16).questions == (), "the model was made for 32 frames"


def test_answers_before_and_after(tiny_folder):
    shown = view(State("tiny_general/001", first=Side(budget=1.0), second=Side("UniformStride", budget=0.02)))
    full, same, starved = shown.answers()
    assert full.word == shown.asked.answer and 0.3 < full.probability <= 1
    assert same.word == full.word and same.probability == pytest.approx(full.probability, abs=1e-4)
    assert starved.tokens == 10 and starved.flops < 0.1 * full.flops
    row = shown.table().rows[-1]
    assert row.full.startswith("✓") and shown.asked.text in row.what


def test_a_missing_model_is_said_in_words(tmp_path):
    with pytest.raises(CannotRun, match="tiny model is missing"):
        tiny_model(tmp_path)
