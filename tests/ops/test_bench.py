import json

import pytest
import torch

from holitom import methods
from holitom_repro import bench
from holitom_repro.bench import against_loop
from holitom.errors import BadUsage, CannotRun
from holitom.ops.segmentation import best_segments
from holitom.ops.similarity import neighbour_cosine


def test_rows_and_tables(tmp_path, capsys):
    path = tmp_path / "rows.jsonl"
    arguments = ["--frames", "6", "--dim", "16", "--scaling", "4", "8", "--repeats", "1", "--json", str(path)]
    assert bench.run(arguments) == 0
    printed = capsys.readouterr()
    assert "6 x 196 x 16" in printed.out and "float32 on cpu" in printed.out
    assert "plain loop" in printed.err
    *methods, against, shorter, longer = [json.loads(line) for line in path.read_text().splitlines()]
    assert {row["method"] for row in methods} == set(bench.NAMES)
    assert all(f"\n{row['method']} " in printed.out for row in methods)
    assert against["same"] is True
    assert against["ratio"] == pytest.approx(against["loop_seconds"] / against["seconds"])
    assert [shorter["frames"], longer["frames"]] == [4, 8]
    assert shorter["linear"] == 1


def test_every_method_is_measured():
    """What the package offers as a stage has a row."""
    schedules = {"PyramidDrop"}  # measured by one of its stages
    stages = {name for name in methods.__all__ if isinstance(getattr(methods, name), type)}
    assert stages - schedules == {name.partition("(")[0] for name in bench.NAMES}


def test_rows_are_ratios_of_one_run():
    rows = bench.bench_methods(["HoliTom", "DyCoke", "HieraVidSelect", "DyCokeDecode"], frames=4, dim=8, repeats=3)
    assert [row["kind"] for row in rows] == ["outer", "outer", "inner", "product", "inner", "product", "decode"]
    assert [row["tokens"] for row in rows] == [784, 784, 784, 784, 392, 392, 784]
    assert [row["budget"] for row in rows] == [0.15, 0.25, None, None, None, None, None]
    ours = rows[0]
    for row in rows:
        assert row["milliseconds"] > 0 and row["peak"] > 0 and row["timed"] == 3
        assert row["holitom"] / row["reads"] == pytest.approx(rows[1]["holitom"] / rows[1]["reads"])
        assert row["reads"] / ours["reads"] == pytest.approx(row["milliseconds"] / ours["milliseconds"])


def test_one_method_alone(capsys):
    assert bench.run(["--method", "ToMe,FastV", "--dim", "8", "--repeats", "1", "--dtype", "bfloat16"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[-2:]] == ["ToMe", "FastV"]
    with pytest.raises(BadUsage, match=r"no method 'Tome'.*Choose from HoliTom"):
        bench.run(["--method", "Tome", "--dim", "8"])
    with pytest.raises(BadUsage, match="budget"):
        bench.run(["--budget", "0"])


def test_help_needs_nothing(capsys):
    with pytest.raises(SystemExit) as stop:
        bench.run(["--help"])
    assert stop.value.code == 0
    assert "--no-loop" in capsys.readouterr().out


def test_without_a_checkout_the_loop_is_missing(monkeypatch, tmp_path):
    monkeypatch.setattr(against_loop, "__file__", str(tmp_path / "site" / "holitom" / "bench" / "against_loop.py"))
    with pytest.raises(CannotRun, match="--no-loop"):
        bench.load_oracle()
    assert bench.bench_loop([(3, (2, 2), 8)], [], loop=False, repeats=1)[0]["ratio"] is None


def test_peak_bytes_counts_what_lives_at_once():
    def call():
        a = torch.empty(100_000, dtype=torch.float32)
        b = a + 1
        del a
        c = b.view(10, 10_000)  # a view holds nothing of its own
        return c.add_(1).sum()

    assert 800_000 <= bench.peak_bytes(call) <= 850_000  # Python's own objects are a few kilobytes


def test_the_synthetic_video_has_scenes_static_and_moving_cells():
    video = bench.synthetic_video(48, (14, 14), 256, seed=1)
    sim = neighbour_cosine(video.tokens)
    found = best_segments(sim, 0.8)
    assert 3 <= len(found) <= 8
    share = (sim > 0.8).float().mean()
    assert 0.4 < share < 0.8
    assert ((sim > 0.7) & (sim < 0.9)).float().mean() > 0.1  # textured cells, around the threshold
    assert torch.equal(video.tokens, bench.synthetic_video(48, (14, 14), 256, seed=1).tokens)
