import json

import pytest
import torch

from holitom import bench
from holitom.errors import CannotRun
from holitom.ops.segmentation import best_segments
from holitom.ops.similarity import neighbour_cosine


def test_rows_and_table(tmp_path, capsys):
    path = tmp_path / "rows.jsonl"
    arguments = ["--frames", "6", "--dim", "16", "--scaling", "4", "8", "--repeats", "1", "--json", str(path)]
    assert bench.run(arguments) == 0
    printed = capsys.readouterr()
    assert "6 x 196 x 16" in printed.out
    assert "plain loop" in printed.err
    against, *scaling = [json.loads(line) for line in path.read_text().splitlines()]
    assert against["same"] is True
    assert against["ratio"] == pytest.approx(against["loop_seconds"] / against["seconds"])
    assert [row["frames"] for row in scaling] == [4, 8]
    assert scaling[0]["linear"] == 1


def test_help_needs_nothing(capsys):
    with pytest.raises(SystemExit) as stop:
        bench.run(["--help"])
    assert stop.value.code == 0
    assert "--no-loop" in capsys.readouterr().out


def test_without_a_checkout_the_loop_is_missing(monkeypatch, tmp_path):
    monkeypatch.setattr(bench, "__file__", str(tmp_path / "site" / "holitom" / "bench.py"))
    with pytest.raises(CannotRun, match="--no-loop"):
        bench.load_oracle()
    assert bench.bench_ops([(3, (2, 2), 8)], [], loop=False, repeats=1)[0]["ratio"] is None


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
