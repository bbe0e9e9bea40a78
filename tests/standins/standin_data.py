"""Small local copies of the paper tier's data sets, in the layout of the published ones, and a model to ask about them.

Each is a folder as its hub repository is (a README with the configurations, JSON or Parquet with the published columns)
and a folder of videos where lmms-eval looks for them below HF_HOME. The task files made here include lmms-eval's own,
and replace the location of the data set (``dataset_path``), nothing else, so that its prompts, answer extraction and
aggregation run as they are. Columns: those that lmms-eval 0.7.3 reads, and their neighbours as far as we know them.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pandas as pd
from lmms_eval import tasks as lmms_tasks

from holitom_repro import paths
from holitom_repro.tiny import vocabulary, world
from holitom_repro.tiny.benchmarks import pixels
from holitom.video import write_video

COLORS = dict(zip(vocabulary.COLORS, "ABCDE", strict=False))  # red is A, ..., white is E; purple keeps its name
PLACES = dict(zip(vocabulary.PLACES, "ABCD", strict=True))
NEEDS = {"videomme": "cv2", "longvideobench_val_v": "decord"}
"""Modules that a task file imports at its top, for functions that these tasks never call."""
OWN = Path(lmms_tasks.__file__).parent


@dataclass(frozen=True)
class Asked:
    """One synthetic video with one question about a colour, for prompts with five options, and one about a place."""

    name: str
    color: world.Question
    place: world.Question


@dataclass(frozen=True)
class StandIns:
    """home: for HF_HOME; tasks: for include paths, task files of lmms-eval's names; renamed: the same tasks called
    standin_<name>, for lmms-eval's own command line, which prefers its files to included ones of the same name; stubs:
    for PYTHONPATH, the modules of NEEDS that are not installed here."""

    home: Path
    tasks: Path
    renamed: Path
    stubs: Path

    def environment(self) -> dict[str, str]:
        own = dict.fromkeys(("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE"), "1")
        return own | {"HF_HOME": str(self.home), "PYTHONPATH": str(self.stubs), "OMP_NUM_THREADS": "1"}


def make(root: Path, videos: int = 5) -> StandIns:
    """Write all four data sets below ``root``, with one question a video (MVBench: in each of its 20 parts)."""
    made = StandIns(root / "home", root / "tasks", root / "renamed", root / "stubs")
    asked = list(_clips(root / "clips", videos))
    for name, write in (
        ("mvbench", _mvbench),
        ("egoschema", _egoschema),
        ("videomme", _videomme),
        ("longvideobench", _longvideobench),
    ):
        write(root / "datasets" / name, made.home, root / "clips", asked)
    for folder, prefix in ((made.tasks, ""), (made.renamed, "standin_")):
        _task_files(folder, prefix, root / "datasets")
    made.stubs.mkdir()
    for module in sorted(set(NEEDS.values())):
        if find_spec(module) is None:  # names that are imported from it, and fail when they are used
            (made.stubs / f"{module}.py").write_text("VideoReader = cpu = VideoCapture = None\n")
    return made


def lettered(folder: Path, words: Mapping[str, str]) -> Path:
    """A copy of the tiny model that has letters for these words: with the same weights it answers multiple choice, as
    the paper's models do."""
    shutil.copytree(paths.data("tiny", "onevision"), folder)
    text = (folder / "tokenizer.json").read_text()
    for word, letter in words.items():
        assert f'"{word}"' in text
        text = text.replace(f'"{word}"', f'"{letter}"')
    (folder / "tokenizer.json").write_text(text)
    return folder


def _clips(folder: Path, videos: int) -> Iterator[Asked]:
    folder.mkdir(parents=True)
    for number in range(videos):
        rng = world.development_rng(90_000 + number)
        colors: list[world.Question] = []
        places: list[world.Question] = []
        while not (colors and places):
            clip = world.make_clip(rng, 12)
            colors = [q for q in clip.questions if q.type == "color" and q.answer in COLORS]
            places = [q for q in clip.questions if q.type == "where"]
        write_video(folder / f"v{number}.mp4", pixels(clip), fps=4)
        yield Asked(f"v{number}", colors[0], places[0])


def _card(folder: Path, configurations: list[tuple[str, str, str]]) -> None:
    lines = ["---", "configs:"]
    for name, split, path in configurations:
        lines += [f"- config_name: {name}", "  data_files:", f"  - split: {split}", f"    path: {path}"]
    (folder / "README.md").write_text("\n".join([*lines, "---", ""]))


def _table(folder: Path, path: str, rows: list[dict[str, Any]]) -> None:
    (folder / path).parent.mkdir(parents=True, exist_ok=True)
    pd.DataFrame(rows).to_parquet(folder / path)


def _videos(clips: Path, folder: Path, asked: list[Asked]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for one in asked:
        shutil.copy(clips / f"{one.name}.mp4", folder)


def _mvbench(folder: Path, home: Path, clips: Path, asked: list[Asked]) -> None:
    """OpenGVLab/MVBench: json/<part>.json, a split "train" each; videos in the folders of ``DATA_LIST``."""
    places = import_module("lmms_eval.tasks.mvbench.utils").DATA_LIST
    (folder / "json").mkdir(parents=True)
    rows = [
        {"video": f"{a.name}.mp4", "question": f" {a.place.text}", "candidates": list(PLACES), "answer": a.place.answer}
        for a in asked
    ]
    for part, place in places.items():
        (folder / "json" / f"{part}.json").write_text(json.dumps(rows))
        _videos(clips, home / "mvbench_video" / place, asked)
    _card(folder, [(part, "train", f"json/{part}.json") for part in places])


def _egoschema(folder: Path, home: Path, clips: Path, asked: list[Asked]) -> None:
    """lmms-lab/egoschema: configuration "Subset", split "test"; the right option is a digit in a string."""
    rows = [
        {
            "question_idx": str(number),
            "question": a.color.text,
            "video_idx": a.name,
            "option": [f"{letter}. {color}" for color, letter in COLORS.items()],
            "answer": str(list(COLORS).index(a.color.answer)),
        }
        for number, a in enumerate(asked)
    ]
    _table(folder, "Subset/test-00000-of-00001.parquet", rows)
    _card(folder, [("Subset", "test", "Subset/test-*.parquet")])
    _videos(clips, home / "egoschema" / "videos", asked)


def _videomme(folder: Path, home: Path, clips: Path, asked: list[Asked]) -> None:
    """lmms-lab/Video-MME: split "test", four options."""
    rows = [
        {
            "video_id": f"{number:03d}",
            "duration": ("short", "medium", "long")[number % 3],
            "domain": "Knowledge",
            "sub_category": "Astronomy",
            "url": f"https://example.org/{a.name}",
            "videoID": a.name,
            "question_id": f"{number:03d}-1",
            "task_type": "Object Recognition",
            "question": a.place.text,
            "options": [f"{letter}. {place}." for place, letter in PLACES.items()],
            "answer": PLACES[a.place.answer],
        }
        for number, a in enumerate(asked)
    ]
    _table(folder, "videomme/test-00000-of-00001.parquet", rows)
    _card(folder, [("videomme", "test", "videomme/test-*.parquet")])
    _videos(clips, home / "videomme" / "data", asked)


def _longvideobench(folder: Path, home: Path, clips: Path, asked: list[Asked]) -> None:
    """longvideobench/LongVideoBench: split "validation"; options in columns of their own, "N/A" where there is none."""
    rows = [
        {
            "id": f"{a.name}_0",
            "video_id": a.name,
            "video_path": f"{a.name}.mp4",
            "subtitle_path": f"{a.name}_en.json",
            "question": a.color.text,
            "question_wo_referring_query": a.color.text,
            "correct_choice": list(COLORS).index(a.color.answer),
            "position": "[0]",
            "topic_category": "NP",
            "question_category": "S2A",
            "level": "L1-Perception",
            "duration_group": 15,
            "starting_timestamp_for_subtitles": 0.0,
            "duration": 3.0,
            "view_count": 1.0,
            **{f"option{k}": color for k, color in enumerate(COLORS)},
        }
        for a in asked
    ]
    _table(folder, "validation-00000-of-00001.parquet", rows)
    _card(folder, [("default", "validation", "validation-*.parquet")])
    _videos(clips, home / "datasets" / "longvideobench" / "videos", asked)


def _task_files(folder: Path, prefix: str, data: Path) -> None:
    own = {
        "egoschema_subset": ("egoschema/egoschema_subset.yaml", "egoschema"),
        "videomme": ("videomme/videomme.yaml", "videomme"),
        "longvideobench_val_v": ("longvideobench/longvideobench_val_v.yaml", "longvideobench"),
    }
    parts = {path.stem: (f"mvbench/{path.name}", "mvbench") for path in OWN.glob("mvbench/mvbench_*.yaml")}
    folder.mkdir()
    for task, (file, place) in (own | parts).items():
        _yaml(folder, prefix + task, {"include": str(OWN / file), "dataset_path": str(data / place)})
    if prefix:  # lmms-eval's own group names the 20 parts, which are found here first
        _yaml(folder, f"{prefix}mvbench", {"task": [prefix + part for part in sorted(parts)]}, kind="group")


def _yaml(folder: Path, name: str, values: Mapping[str, Any], kind: str = "task") -> None:
    lines = [f"{kind}: {name}", *(f"{key}: {json.dumps(value)}" for key, value in values.items())]
    (folder / f"{name}.yaml").write_text("\n".join(lines) + "\n")
