"""Decoding: the frames that are asked for, as players show them; one clear error for everything that is no video."""

import gc
import tracemalloc
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from holitom import video
from holitom.errors import BadUsage, BadVideo, CannotRun
from holitom.video import LLAVA_VIDEO, ONEVISION, Sampling, load_frames, sample_index

SHIPPED = Path(__file__).parents[2] / "data" / "videos" / "three_shots.mp4"


def counted(frames, height=48, width=64):
    """Frame i is a flat grey of level 4 * i: the level tells which frame was decoded."""
    levels = (np.arange(frames) * 4 % 256).astype(np.uint8)
    return np.broadcast_to(levels[:, None, None, None], (frames, height, width, 3)).copy()


def noise(frames):
    return np.random.default_rng(0).integers(0, 256, (frames, 48, 64, 3)).astype(np.uint8)


def encode(path, pixels, codec="libx264", options=None, times=None):
    """At 10 frames a second, or with time stamps of its own in tenths of a second."""
    with av.open(str(path), "w", options={"movflags": "faststart"} if path.suffix == ".mp4" else {}) as container:
        stream = container.add_stream(codec, rate=10, options=options or {})
        stream.height, stream.width = pixels.shape[1:3]
        stream.pix_fmt = "yuv420p"
        for i, picture in enumerate(pixels):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts = i if times is None else times[i]
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def levels(pixels):
    return pixels.reshape(len(pixels), -1).mean(1)


def said(frames, words):
    return any(words in note for note in frames.notes)


# --- which frames


def test_sampling_of_both_releases_and_of_the_tiny_tier():
    """Written out, as in load_video of the release's lmms_eval/models: llava_onevision.py always asks linspace for 32,
    llava_vid.py takes one a second until those are more than 64; the tiny tier shows no frame twice."""
    for total in (1, 2, 20, 31, 32, 33, 48, 64, 65, 360, 1500, 1919, 1920, 1921, 5400, 100_000):
        linspace = np.linspace(0, total - 1, 32, dtype=int).tolist()
        assert sample_index(total, 32).tolist() == (linspace if total > 32 else list(range(total)))
        for rate in (0.4, 0.6, 8.0, 12.0, 24000 / 1001, 25.0, 29.97, 30.0, 59.94):
            assert sample_index(total, 32, ONEVISION, rate).tolist() == linspace
            second = list(range(0, total, max(1, round(rate))))
            even = np.linspace(0, total - 1, 64, dtype=int).tolist()
            assert sample_index(total, 64, LLAVA_VIDEO, rate).tolist() == (second if len(second) <= 64 else even)


@pytest.mark.parametrize(
    ("name", "codec", "options"),
    [
        ("long_groups.mp4", "libx264", {"g": "50", "bf": "3"}),
        ("open_groups.mp4", "libx264", {"g": "4", "bf": "2", "flags": "-cgop", "x264-params": "open-gop=1"}),
        ("stream.ts", "libx264", {"g": "8"}),
        ("alt_reference.webm", "libvpx-vp9", {"g": "8", "auto-alt-ref": "1", "lag-in-frames": "10"}),
        ("no_time_stamps.h264", "libx264", {"g": "8", "bf": "2"}),
    ],
)
def test_every_sampled_frame_is_the_frame_of_its_index(tmp_path, name, codec, options):
    path = encode(tmp_path / name, counted(60), codec, options)
    for frames in (1, 5, 13, 60):
        got = load_frames(path, frames)
        assert got.total == 60 and got.notes == () and got.decoder.startswith("pyav ")
        assert got.index.tolist() == np.linspace(0, 59, frames, dtype=int).tolist()
        assert np.abs(levels(got.pixels) - got.index * 4).max() < 2.0
        if not name.endswith(".h264"):  # a raw stream does not know its rate
            assert got.seconds == pytest.approx(got.index / 10, abs=0.02)
            assert got.duration == pytest.approx(6.0, abs=0.11)


def test_the_shipped_clip_decodes_the_same_by_seeking_and_from_start_to_end(monkeypatch):
    sought, reread = load_frames(SHIPPED, 16), []
    decoded = video._decoded
    monkeypatch.setattr(video, "_sought", lambda *_: (_ for _ in ()).throw(video._Astray))
    monkeypatch.setattr(video, "_decoded", lambda *given: reread.append(1) or decoded(*given))
    whole = load_frames(SHIPPED, 16)
    assert reread == [1] and sought.total == whole.total == 330 and sought.notes == whole.notes == ()
    assert np.array_equal(sought.pixels, whole.pixels)
    assert sought.seconds == pytest.approx(whole.seconds) and sought.duration == pytest.approx(whole.duration)
    assert sought.duration == pytest.approx(13.2)


def test_short_clips(tmp_path):
    path = encode(tmp_path / "few.mp4", counted(5))
    few = load_frames(path, 32)
    assert few.index.tolist() == [0, 1, 2, 3, 4] and few.notes == ("32 frames were asked, the video has 5",)
    again = load_frames(path, 32, ONEVISION)
    assert len(again) == 32 and again.index.tolist() == np.linspace(0, 4, 32, dtype=int).tolist()
    assert np.array_equal(again.pixels, few.pixels[again.index])
    slow = load_frames(encode(tmp_path / "slow.mp4", counted(40)), 32, LLAVA_VIDEO)
    assert slow.index.tolist() == [0, 10, 20, 30] and slow.notes == ()
    one = encode(tmp_path / "one.mp4", counted(1))
    assert load_frames(one, 32).pixels.shape == (1, 48, 64, 3)
    one.write_bytes(one.read_bytes().replace(b"Lavf", b"L\xe9vf"))  # a title in another encoding is no fault
    assert len(load_frames(one, 4)) == 1


def test_frames_that_an_edit_list_hides(tmp_path):
    """A clip cut out without encoding it again keeps what its first frame needs. Players leave it out and nothing is
    damaged. decord 0.6 counts it, starts with the first frame that is not hidden, and is right again behind the next
    key frame that it seeks (20); beyond the end it repeats. The second clip's end is cut by its edit list."""
    whole, cut = encode(tmp_path / "whole.mp4", counted(40), options={"g": "20", "bf": "0"}), tmp_path / "cut.mp4"
    with av.open(str(whole)) as source, av.open(str(cut), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.size:
                hidden = round(8 / (packet.time_base * source.streams.video[0].average_rate))
                packet.pts, packet.dts, packet.stream = packet.pts - hidden, packet.dts - hidden, stream
                target.mux(packet)
    short, data = tmp_path / "short.mp4", cut.read_bytes()
    at = data.index(b"elst") + 12  # the first entry's length, in milliseconds
    short.write_bytes(data[:at] + (2000).to_bytes(4, "big") + data[at + 4 :])
    for path, last in ((cut, 39), (short, 27)):
        shown = np.arange(8, last + 1)
        found = load_frames(path, 64)
        assert found.total == len(shown) and said(found, f"hides {40 - len(shown)} frames, which are left out")
        assert np.abs(levels(found.pixels) - 4 * shown).max() < 3 and not said(found, "announces")
        sought = [8, 21, 26, 39 if last == 39 else 26]  # for numbers 0, 13, 26, 39
        for frames, expected in ((64, [*shown, *[last] * (40 - len(shown))]), (4, sought)):
            got = load_frames(path, frames, Sampling(decord=True))
            assert got.total == 40 and got.index.tolist() == sample_index(40, frames).tolist()
            assert said(got, "counted, as decord does") and not said(got, "announces")
            assert np.abs(levels(got.pixels) - 4 * np.array(expected)).max() < 3


# --- what a stream says of itself


@pytest.mark.parametrize(
    ("matrix", "shown"),
    [
        ((-1, 0, 0, 1), lambda p: p[:, ::-1]),
        ((0, 1, -1, 0), lambda p: np.rot90(p, -1)),
        ((0, -1, 1, 0), lambda p: np.rot90(p)),
        ((0, -1, -1, 0), lambda p: p[::-1, ::-1].transpose(1, 0, 2)),
        ((0.174, 0.985, -0.985, 0.174), lambda p: np.rot90(p, -1)),  # 80 degrees
    ],
)
def test_a_display_matrix_turns_and_mirrors_to_the_nearest_quarter(tmp_path, matrix, shown):
    """x' = a x + c y, y' = b x + d y, as FFmpeg's display.h has it."""
    picture = np.zeros((32, 64, 3), np.uint8)
    picture[:16, :32], picture[:16, 32:], picture[16:, :32] = (220, 30, 30), (30, 220, 30), (30, 30, 220)
    path = encode(tmp_path / "phone.mp4", np.repeat(picture[None], 3, 0))
    one, data = 1 << 16, path.read_bytes()
    at = data.index(np.array([one, 0, 0, 0, one, 0, 0, 0, 1 << 30], ">i4").tobytes(), data.index(b"tkhd"))
    a, b, c, d = (round(value * one) for value in matrix)
    path.write_bytes(data[:at] + np.array([a, b, 0, c, d, 0, 0, 0, 1 << 30], ">i4").tobytes() + data[at + 36 :])
    got = load_frames(path, 1).pixels[0].astype(int)
    assert got.shape == shown(picture).shape and np.abs(got - shown(picture)).mean() < 8


def test_a_picture_size_that_changes_inside_the_file(tmp_path):
    paths = []
    for i, side in enumerate((48, 72)):
        times = range(20 * i, 20 * (i + 1))
        paths.append(encode(tmp_path / f"{i}.ts", counted(40, side, side + 16)[times], options={"g": "5"}, times=times))
    live = tmp_path / "live.ts"
    live.write_bytes(b"".join(path.read_bytes() for path in paths))
    got = load_frames(live, 40)
    assert got.pixels.shape == (40, 48, 64, 3)
    assert np.abs(levels(got.pixels) - 4 * np.arange(40)).max() < 3
    assert load_frames(live, 1).notes == ()


@pytest.mark.parametrize(("suffix", "codec"), [(".mp4", "libx264"), (".mkv", "libx264"), (".avi", "mpeg4")])
def test_time_stamps_are_the_streams_own_in_damaged_files_too(tmp_path, suffix, codec):
    """Ten frames, then two seconds without any, and so on: said in a note. Damage that the decoder hides is, too."""
    times = [i // 10 * 30 + i % 10 for i in range(40)]
    path = encode(tmp_path / f"uneven{suffix}", noise(40), codec, {"g": "10", "bf": "0"}, times)
    whole = load_frames(path, 40)
    assert whole.seconds == pytest.approx(np.array(times) / 10)
    assert len(whole.notes) == 1 and said(whole, "do not come at an even rate")
    data = bytearray(path.read_bytes())
    with av.open(str(path)) as container:
        place, size = [(packet.pos, packet.size) for packet in container.demux(video=0) if packet.size][17]
    start = place + size // 2
    data[start : start + size // 3] = bytes(size // 3)
    path.write_bytes(data)
    hurt = load_frames(path, 40)
    assert said(hurt, "damaged") and hurt.seconds == pytest.approx(whole.seconds)
    assert np.array_equal(hurt.pixels[:17], whole.pixels[:17]) and not np.array_equal(hurt.pixels, whole.pixels)
    assert load_frames(SHIPPED, 40).notes == ()


def muxed(path, *streams):
    """Streams of three pictures each: codec, size, disposition; "aac" for a little sound."""
    with av.open(str(path), "w") as container:
        for codec, size, disposition in streams:
            stream = container.add_stream(codec, rate=44100 if codec == "aac" else 10)
            stream.disposition = disposition
            if codec != "aac":
                (stream.height, stream.width), stream.pix_fmt = size, "yuvj420p" if codec == "mjpeg" else "yuv420p"
        for stream in container.streams:
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
            frame.sample_rate = 44100
            for i in range(1 if stream.codec.name in ("aac", "mjpeg") else 3):
                if stream.type == "video":
                    frame = av.VideoFrame.from_ndarray(counted(9, stream.height, stream.width)[3 + i], format="rgb24")
                container.mux(stream.encode(frame))
            container.mux(stream.encode())
    return path


COVER, DEFAULT = av.stream.Disposition.attached_pic.value, av.stream.Disposition.default.value
SMALL, LARGE = (48, 64), (96, 128)


@pytest.mark.parametrize(
    ("name", "streams"),
    [
        ("two.mkv", [("libx264", LARGE, 0), ("libx264", SMALL, DEFAULT)]),
        ("film.mp4", [("mjpeg", LARGE, COVER), ("aac", SMALL, 0), ("libx264", SMALL, 0)]),
    ],
)
def test_the_film_is_the_stream_that_a_player_shows(tmp_path, name, streams):
    """By FFmpeg's own choice, which decord makes too: the default one; a picture attached to sound is none."""
    assert load_frames(muxed(tmp_path / name, *streams), 2).pixels.shape[1:3] == SMALL
    for song in ([("aac", SMALL, 0)], [("aac", SMALL, 0), ("mjpeg", LARGE, COVER)]):
        with pytest.raises(BadVideo, match="holds no film"):
            load_frames(muxed(tmp_path / "song.mp4", *song), 4)


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".ts"])
def test_a_file_that_is_cut_off_gives_what_is_there_and_says_so(tmp_path, suffix):
    path = encode(tmp_path / f"whole{suffix}", noise(40), options={"g": "5", "bf": "0"})
    whole = load_frames(path, 40)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    cut = load_frames(path, 100)
    assert 10 < len(cut) < 40
    assert np.array_equal(cut.pixels[:-1], whole.pixels[: len(cut) - 1])  # the last one may be half there
    assert cut.seconds == pytest.approx(whole.seconds[: len(cut)])
    assert suffix == ".ts" or said(cut, "announces 4.0 s")  # a transport stream announces nothing


# --- memory, names, and what is no video


def test_reading_holds_the_frames_and_little_more(tmp_path, monkeypatch):
    """One array for all pictures, and decoded frames are let go one by one."""
    path = encode(tmp_path / "clip.mp4", np.repeat(counted(12, 240, 320), 4, 0))
    load_frames(path, 2)
    gc.collect()
    tracemalloc.start()
    got = load_frames(path, 32)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < got.pixels.nbytes + 4 * 240 * 320 * 3
    held, upright = [], video._upright

    def watched(*given):
        held.append(len(held) % 8 == 7 and sum(type(each) is av.VideoFrame for each in gc.get_objects()))
        return upright(*given)

    monkeypatch.setattr(video, "_upright", watched)
    gc.disable()
    load_frames(path, 32)
    gc.enable()
    assert len(held) == 32 and max(held) < 12  # a decoder holds some


@pytest.mark.parametrize(
    "name", ["2026-11-29T12:30:45.mp4", "clip:a.mp4", "concat:a.mp4", "file:b.mp4", "a%03d.mp4", "-i.mp4", "ü ñ#?.mp4"]
)
def test_a_name_is_a_name_and_no_protocol_or_pattern(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    encode(tmp_path / "clip.mp4", counted(4)).rename(name)
    assert len(load_frames(name, 2)) == 2
    assert [path.name for path in tmp_path.iterdir()] == [name]
    for picture, level in (("a%d.png", 200), ("a1.png", 100)):
        Image.fromarray(np.full((48, 64, 3), level, np.uint8)).save(picture)
    assert levels(load_frames("a%d.png", 4).pixels).tolist() == [200]


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda p: p, "there is no file"),
        (lambda p: p.write_bytes(b""), "is not a video"),
        (lambda p: p.write_text("what is the colour of the circle?\n" * 50), "is not a video"),
        (lambda p: p.write_bytes(encode(p.with_suffix(".mov"), counted(30)).read_bytes()[:2000]), "is not a video"),
        (lambda p: p.write_bytes(encode(p, counted(9)).read_bytes().replace(b"avc1", b"zzzz")), "is not known"),
    ],
)
def test_what_is_not_a_video_is_refused_by_name(tmp_path, make, words):
    path = tmp_path / "clip.mp4"
    make(path)
    with pytest.raises(BadVideo, match=words) as raised:
        load_frames(path, 4)
    assert "clip.mp4" in str(raised.value) and raised.value.fix and raised.value.exit_code == 2


def test_what_else_is_refused(tmp_path, monkeypatch):
    (tmp_path / "notes.txt").write_text("a long walk\n" * 500)
    with pytest.raises(BadVideo):  # FFmpeg would draw its letters
        load_frames(tmp_path / "notes.txt", 4)
    with pytest.raises(BadUsage):
        load_frames(SHIPPED, 0)
    monkeypatch.setattr(video.np, "empty", lambda *_: (_ for _ in ()).throw(MemoryError))
    with pytest.raises(CannotRun, match="do not fit into memory"):
        load_frames(SHIPPED, 4)
