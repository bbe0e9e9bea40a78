"""The page of widgets without a browser: what a change does, what a failure leaves, and the still page."""

import numpy as np
import pytest

from holitom.errors import BadUsage
from holitom_repro.explorer import Explorer, Side, State
from holitom_repro.explorer import widgets as module
from holitom.video import write_video


@pytest.fixture
def explorer():
    made = Explorer(State(frames=8, focus=2), controls="live")
    _ = made.page
    made.refresh()
    return made


def test_the_controls_stand_at_the_state(explorer):
    assert explorer.chosen() == State(frames=8, focus=2)
    alone = Explorer(State(frames=8, focus=2, second=None))
    _ = alone.page
    assert alone.chosen().second is None and alone.second.budget.disabled


def test_a_change_changes_picture_table_and_state(explorer):
    before = explorer._picture.value, explorer._table.value
    explorer.first.budget.value = 0.4
    assert explorer.state.first.budget == 0.4
    assert before[0] != explorer._picture.value and before[1] != explorer._table.value
    assert 'alt="three_shots.mp4, 8 frames' in explorer._picture.value


def test_what_does_not_apply_is_greyed_out(explorer):
    assert not explorer.first.tau.disabled and explorer.second.tau.disabled
    assert not explorer.first.layer.disabled and explorer.second.layer.disabled
    explorer.second.method.value = "HoliTom"
    explorer.second.inner.value = "drop"
    assert not explorer.second.tau.disabled and not explorer.second.ratio.disabled


def test_a_failure_becomes_a_message_and_the_picture_stays(explorer):
    before = explorer._picture.value
    explorer.first.budget.value = 0
    assert 'role="alert"' in explorer._message.value and "outside (0, 1]" in explorer._message.value
    assert explorer._picture.value == before and explorer.state.first.budget == 0.1
    explorer.first.budget.value = 0.2
    assert explorer._message.value == "" and explorer._picture.value != before


def test_a_fault_of_the_kit_is_no_traceback(explorer, monkeypatch):
    def broken(state):
        raise ZeroDivisionError("oh")

    monkeypatch.setattr(module, "view", broken)
    explorer.first.budget.value = 0.3
    assert "A fault in the kit (ZeroDivisionError: oh)" in explorer._message.value


def test_a_file_of_ones_own(explorer, tmp_path):
    file = write_video(tmp_path / "mine.mp4", np.random.default_rng(0).integers(0, 255, (5, 64, 64, 3), dtype=np.uint8))
    explorer.clip.value = module.OWN
    assert explorer.own.layout.display == "" and "No video has been chosen" in explorer._message.value
    explorer.path.value = str(file)
    assert explorer.state.clip == str(file) and explorer.focus.max == 5
    assert "the video has 5: all of them are used" in explorer._message.value


def test_an_upload_is_opened(explorer, tmp_path):
    file = write_video(tmp_path / "mine.mp4", np.full((3, 64, 64, 3), 99, np.uint8))
    explorer.clip.value = module.OWN
    explorer._uploaded({"new": ({"name": "../up.mp4", "content": memoryview(file.read_bytes())},)})
    assert explorer.state.clip.endswith("up.mp4") and len(explorer.view.clip) == 3
    assert explorer.state.clip.startswith(explorer._uploads.name), "a name cannot lead out of the folder"
    write_video(file, np.full((5, 64, 64, 3), 20, np.uint8))
    before = explorer._picture.value
    explorer._uploaded({"new": ({"name": "up.mp4", "content": memoryview(file.read_bytes())},)})
    assert explorer.focus.max == 5 and explorer._picture.value != before, "another video of that name is shown"


def test_many_changes_are_drawn_once(explorer, monkeypatch):
    waiting = []
    monkeypatch.setattr(module, "_later", waiting.append)
    for share in (0.2, 0.3, 0.4):
        explorer.first.budget.value = share
    assert len(waiting) == 1
    waiting.pop()()
    assert explorer.state.first.budget == 0.4


def test_the_still_page_shows_a_picture_and_leaves_no_widget(monkeypatch):
    shown = []
    monkeypatch.setattr(module, "display", lambda *parts: shown.extend(parts))
    Explorer(State(frames=8))._ipython_display_()
    assert [type(part).__name__ for part in shown] == ["Picture", "Table"]
    made = Explorer(State("nowhere.mp4"), controls="still")
    made._ipython_display_()
    assert "There is no file nowhere.mp4" in shown[-1].data and "page" not in vars(made)


def test_controls_have_three_manners():
    with pytest.raises(BadUsage, match="auto, live or still"):
        Explorer(controls="yes")
    assert Explorer().state.first == Side(inner="merge")
