"""Decoding: the frames that are asked for, exactly, and one clear error for everything that is not a video."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest

from holitom.errors import BadUsage, BadVideo
from holitom.video import load_frames, sample_index, write_video


def counted(frames: int, height: int = 48, width: int = 64) -> np.ndarray:
    """Frame i is a flat grey of level 4 * i: the level tells which frame was decoded."""
    levels = (np.arange(frames) * 4 % 256).astype(np.uint8)
    return np.broadcast_to(levels[:, None, None, None], (frames, height, width, 3)).copy()


def encode(path: Path, pixels: np.ndarray, *, codec: str = "libx264", options: dict[str, str] | None = None) -> Path:
    with av.open(str(path), "w", options={"movflags": "faststart"} if path.suffix == ".mp4" else {}) as container:
        stream = container.add_stream(codec, rate=10, options=options or {})
        stream.height, stream.width = pixels.shape[1:3]
        stream.pix_fmt = "yuv420p"
        for picture in pixels:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    return path


def levels(pixels: np.ndarray) -> np.ndarray:
    return pixels.reshape(len(pixels), -1).mean(1)


@pytest.mark.parametrize(("total", "frames"), [(100, 32), (33, 32), (32, 32), (7, 3), (10, 1)])
def test_sampling_is_the_linspace_of_llava_next(total: int, frames: int) -> None:
    assert sample_index(total, frames).tolist() == np.linspace(0, total - 1, frames, dtype=int).tolist()


@pytest.mark.parametrize(
    ("name", "codec", "options"),
    [
        ("long_groups.mp4", "libx264", {"g": "50", "bf": "3"}),
        ("short_groups.mp4", "libx264", {"g": "4", "bf": "2", "flags": "-cgop", "x264-params": "open-gop=1"}),
        ("intra.mp4", "libx264", {"g": "1"}),
        ("stream.ts", "libx264", {"g": "8"}),
        ("alt_reference.webm", "libvpx-vp9", {"g": "8", "auto-alt-ref": "1", "lag-in-frames": "10"}),
        ("no_time_stamps.h264", "libx264", {"g": "8", "bf": "2"}),
    ],
)
def test_every_sampled_frame_is_the_frame_of_its_index(tmp_path: Path, name: str, codec: str, options: dict) -> None:
    path = encode(tmp_path / name, counted(60), codec=codec, options=options)
    for frames in (1, 5, 13, 60):
        got = load_frames(path, frames)
        assert got.total == 60
        assert got.index.tolist() == np.linspace(0, 59, frames, dtype=int).tolist()
        assert np.abs(levels(got.pixels) - got.index * 4).max() < 2.0
        if not name.endswith(".h264"):  # a raw stream does not know its rate
            assert got.seconds == pytest.approx(got.index / 10, abs=0.02)
            assert got.duration == pytest.approx(6.0, abs=0.11)
        assert got.notes == () and got.decoder.startswith("pyav ")


def test_the_shipped_clip_decodes_the_same_by_seeking_and_from_start_to_end() -> None:
    from holitom import video

    path = Path(__file__).parents[2] / "data" / "videos" / "three_shots.mp4"
    sought = load_frames(path, 16)
    (pictures, _, total, duration), damaged = video._from_start_to_end(path, sought.total, 16)
    assert (total, damaged) == (330, 0)
    assert np.array_equal(sought.pixels, np.stack(pictures))
    assert duration == pytest.approx(13.2) and sought.duration == pytest.approx(13.2)


def test_a_video_of_one_frame_and_one_with_fewer_frames_than_asked(tmp_path: Path) -> None:
    one = load_frames(encode(tmp_path / "one.mp4", counted(1)), 32)
    assert one.pixels.shape == (1, 48, 64, 3) and one.index.tolist() == [0]
    few = load_frames(encode(tmp_path / "few.mp4", counted(5)), 32)
    assert len(few) == 5 and few.index.tolist() == [0, 1, 2, 3, 4]
    assert few.notes == ("32 frames were asked, the video has 5: all of them are used",)


def test_a_clip_cut_out_without_encoding_it_again_is_whole(tmp_path: Path) -> None:
    """The frames before its start stay in the file, hidden: its first frame needs them."""
    whole, cut = encode(tmp_path / "whole.mp4", counted(40), options={"g": "20", "bf": "0"}), tmp_path / "cut.mp4"
    with av.open(str(whole)) as source, av.open(str(cut), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.size:
                hidden = round(8 / (packet.time_base * source.streams.video[0].average_rate))
                packet.pts, packet.dts, packet.stream = packet.pts - hidden, packet.dts - hidden, stream
                target.mux(packet)
    found = load_frames(cut, 64)
    assert found.total == 32 and not any("announces" in note for note in found.notes)
    assert np.abs(levels(found.pixels) - levels(counted(40))[8:]).max() < 3


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".ts"])
def test_a_file_that_is_cut_off_gives_what_is_there_and_says_so(tmp_path: Path, suffix: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (40, 48, 64, 3)).astype(np.uint8)
    path = encode(tmp_path / f"whole{suffix}", noise, options={"g": "5", "bf": "0"})
    whole = load_frames(path, 40)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    cut = load_frames(path, 100)
    assert 10 < len(cut) < 40
    assert np.array_equal(cut.pixels[:-1], whole.pixels[: len(cut) - 1])  # the last one may be half there
    if suffix == ".mp4":  # the only one of the three that announces its number of frames
        assert any("announces 40 frames" in note for note in cut.notes)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda p: p, "there is no file"),
        (lambda p: p.mkdir() or p, "is a directory"),
        (lambda p: (p.write_bytes(b"") and p) or p, "is not a video"),
        (lambda p: p.write_text("what is the colour of the circle?\n" * 50) and p, "is not a video"),
        (lambda p: p.write_bytes(bytes(range(256)) * 64) and p, "is not a video"),
    ],
)
def test_what_is_not_a_video_is_refused_by_name(tmp_path: Path, make, words: str) -> None:
    with pytest.raises(BadVideo, match=words) as raised:
        load_frames(make(tmp_path / "clip.mp4"), 4)
    assert "clip.mp4" in str(raised.value) and raised.value.fix and raised.value.exit_code == 2


def test_a_text_file_is_not_drawn_as_a_video(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("a long walk\n" * 500)
    with pytest.raises(BadVideo):
        load_frames(path, 4)


def test_sound_without_picture(tmp_path: Path) -> None:
    path = tmp_path / "song.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=44100)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 44100
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    with pytest.raises(BadVideo, match="sound but no picture"):
        load_frames(path, 4)


def test_an_mp4_without_its_index_is_refused(tmp_path: Path) -> None:
    path = write_video(tmp_path / "clip.mp4", counted(30))  # the index stands at the end of the file
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(BadVideo, match=r"clip\.mp4 is not a video"):
        load_frames(path, 4)


def test_a_codec_that_nobody_knows_is_refused(tmp_path: Path) -> None:
    path = write_video(tmp_path / "clip.mp4", counted(10))
    path.write_bytes(path.read_bytes().replace(b"avc1", b"zzzz"))
    with pytest.raises(BadVideo, match=r"clip\.mp4 is not a video that can be decoded"):
        load_frames(path, 4)


def test_a_title_in_another_encoding_is_no_fault(tmp_path: Path) -> None:
    path = write_video(tmp_path / "clip.mp4", counted(10))
    assert b"Lavf" in path.read_bytes()
    path.write_bytes(path.read_bytes().replace(b"Lavf", b"L\xe9vf"))
    assert len(load_frames(path, 4)) == 4


@pytest.mark.parametrize("frames", [0, -1, True])
def test_a_number_of_frames_must_be_one(tmp_path: Path, frames) -> None:
    with pytest.raises(BadUsage):
        load_frames(tmp_path / "clip.mp4", frames)


def test_a_phone_video_comes_out_upright(tmp_path: Path) -> None:
    picture = np.zeros((1, 32, 64, 3), np.uint8)
    picture[:, :, :32] = 255  # left half white
    path = encode(tmp_path / "phone.mp4", np.repeat(picture, 3, 0))
    word = lambda *values: b"".join(v.to_bytes(4, "big", signed=True) for v in values)  # noqa: E731
    upright = word(1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30)
    clockwise = word(0, 1 << 16, 0, -(1 << 16), 0, 0, 0, 0, 1 << 30)  # turned by 90 degrees
    data = path.read_bytes()
    at = data.index(upright, data.index(b"tkhd"))
    path.write_bytes(data[:at] + clockwise + data[at + 36 :])
    got = load_frames(path, 1).pixels[0]
    assert got.shape == (64, 32, 3)
    assert got[:28].mean() > 250 and got[36:].mean() < 5  # left has become top


def test_a_written_video_reads_back_almost_unchanged_and_leaves_no_partial_file(tmp_path: Path) -> None:
    blocks = np.random.default_rng(0).integers(0, 256, (6, 8, 8, 3)).astype(np.uint8)
    pixels = blocks.repeat(8, 1).repeat(8, 2)
    got = load_frames(write_video(tmp_path / "deep" / "clip.mp4", pixels), 6)
    assert np.abs(got.pixels.astype(int) - pixels).mean() < 2.0
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["clip.mp4"]
