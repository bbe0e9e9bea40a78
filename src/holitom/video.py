"""Read video files with PyAV: chosen frames, found exactly, without holding the whole video.

A frame is identified by its time stamp, so that a long video is decoded only around the frames that are wanted; a file
whose time stamps are missing or damaged is decoded from start to end instead, which gives the same frames."""

import bisect
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
from av.container import InputContainer
from av.stream import Disposition
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from holitom.errors import BadUsage, BadVideo, CannotRun

DECODER = f"pyav {av.__version__}"
_ANY_VIDEO = "give a file that FFmpeg can decode, for instance an H.264 .mp4"
_TEXT_CODECS = {"ansi", "bintext", "idf", "xbin"}  # FFmpeg would render a text file as pictures of its letters


@dataclass(frozen=True)
class Sampling:
    """How frames are chosen: ``np.linspace(0, n - 1, frames, dtype=int)`` over the n frames of a file, and what the
    releases do besides. repeat: show frames again in clips of fewer than asked (else each once); per_second: take so
    many a second, and linspace only where those are more than asked; decord: number the frames as decord 0.6 does where
    an edit list hides some from players."""

    repeat: bool = False
    per_second: float | None = None
    decord: bool = False


EVENLY = Sampling()
ONEVISION = Sampling(repeat=True, decord=True)
"""LLaVA-OneVision's evaluation (lmms_eval/models/llava_onevision.py in HoliTom's release)."""
LLAVA_VIDEO = Sampling(per_second=1.0, decord=True)
"""LLaVA-Video's evaluation (lmms_eval/models/llava_vid.py in HoliTom's release)."""


def sample_index(total: int, frames: int, sampling: Sampling = EVENLY, rate: float = 0.0) -> np.ndarray:
    """Places of at most ``frames`` frames among ``total``, of which ``rate`` come in a second."""
    if sampling.per_second:
        steps = np.arange(0, total, max(1, round(rate / sampling.per_second)))
        if len(steps) <= frames:
            return steps
    if frames >= total and not sampling.repeat:
        return np.arange(total)
    return np.linspace(0, total - 1, frames, dtype=int)


@dataclass(frozen=True)
class Frames:
    """Frames of one video: pixels [T, H, W, 3] uint8 RGB, upright; index [T]: the number of each among the ``total``
    that were counted; seconds [T]: its time after the first, by the stream's own time stamps where it has them; notes:
    what a reader should know, such as fewer frames than asked, or a file that is cut off."""

    pixels: np.ndarray
    index: np.ndarray
    seconds: np.ndarray
    duration: float
    total: int
    decoder: str = DECODER
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.pixels)


def load_frames(path: str | os.PathLike[str], frames: int, sampling: Sampling = EVENLY) -> Frames:
    """Decode the frames of a video file that ``sampling`` chooses, at most ``frames``.

    A file that is cut off or damaged gives what can be decoded, and ``notes`` says so. Raises BadVideo (missing, no
    video, sound only, nothing decodable), CannotRun (memory) and BadUsage (``frames`` < 1).
    """
    if frames < 1:
        raise BadUsage(f"frames={frames!r} is not a number of frames", fix="ask for 1 or more, for instance 32")
    path = Path(path)
    if not path.is_file():
        raise BadVideo(f"there is no file {path}", fix="check the path")
    try:
        return _read(_scan(path), frames, sampling)
    except MemoryError as error:
        raise CannotRun(f"{frames} frames of {path} do not fit into memory", fix="ask for fewer frames") from error
    except (av.error.FFmpegError, OSError) as error:
        why = getattr(error, "strerror", None) or error
        raise BadVideo(f"{path} is not a video that can be decoded ({why})", fix=_ANY_VIDEO) from error


@dataclass(frozen=True)
class _Film:
    """What a file's packets say, nothing decoded. pts, keys: ascending time stamps of the frames that are shown, and of
    the key frames among them; complete: whether every frame has a time stamp of its own; rate: frames a second; hidden:
    how many packets an edit list hides, ``before`` of them in front of the first frame; key_packets: which packets, the
    hidden ones counted, are key frames; length: seconds by the file's head (0: not said)."""

    path: Path
    pts: list[int]
    keys: list[int]
    complete: bool
    rate: float
    hidden: int
    before: int
    key_packets: list[int]
    length: float


class _Astray(Exception):
    """A frame did not turn up where its time stamp is."""


def _opened(path: Path) -> InputContainer:
    """For reading. "file:", because FFmpeg takes what stands before a colon for a protocol, and "%d" in a picture's
    name for many files; titles and the like may be in any encoding: nobody reads them."""
    return av.open(f"file:{path}", metadata_errors="replace", options={"pattern_type": "none"})


def _stream(container: InputContainer, path: Path) -> VideoStream:
    """The stream that players and decord show, by FFmpeg's own choice; no picture that is attached to sound."""
    stream = container.streams.best("video")
    if stream is None or stream.disposition & Disposition.attached_pic:
        raise BadVideo(f"{path} holds no film: sound or a still picture at most", fix=_ANY_VIDEO)
    codec = stream.codec_context
    if codec is None or codec.name in _TEXT_CODECS:
        raise BadVideo(f"{path} is not a video: it is text, or its codec is not known", fix=_ANY_VIDEO)
    large = codec.width * codec.height >= 320 * 240
    stream.thread_type = "AUTO" if large else "NONE"  # threads cost more than they give on small pictures
    return stream


def _scan(path: Path) -> _Film:
    packets: list[tuple[int, bool, bool]] = []
    complete = True
    with _opened(path) as container:
        stream = _stream(container, path)
        try:
            for packet in container.demux(stream):
                if packet.size:
                    packets.append((packet.pts or 0, packet.is_keyframe, packet.is_discard))
                    complete &= packet.is_discard or (packet.pts is not None and not packet.is_corrupt)
        except av.error.FFmpegError:
            complete = False
        rate, length = float(stream.average_rate or stream.guessed_rate or 1), (container.duration or 0) / av.time_base
    pts = sorted(stamp for stamp, _, hidden in packets if not hidden)
    if not pts:
        raise BadVideo(f"{path} holds no picture: it is empty or cut off before its first frame", fix=_ANY_VIDEO)
    keys = sorted(stamp for stamp, key, hidden in packets if key and not hidden)
    complete &= len(set(pts)) == len(pts) and bool(keys) and keys[0] <= pts[0]
    hidden, before = len(packets) - len(pts), sum(stamp < pts[0] for stamp, _, hidden in packets if hidden)
    key_packets = [number for number, (_, key, _) in enumerate(packets) if key]
    return _Film(path, pts, keys, complete, rate, hidden, before, key_packets, length)


def _read(film: _Film, frames: int, sampling: Sampling) -> Frames:
    find, total = _sought, len(film.pts)
    while True:
        counted = total + (film.hidden if sampling.decord else 0)
        index = sample_index(counted, frames, sampling, film.rate)
        places = _as_decord(index, film, total) if counted > total else index
        times: list[float] = []
        notes: list[str] = []
        try:
            pixels = _pictures(places, find(film, places, times, notes))
        except _Astray:
            find = _decoded
            continue
        if not times:
            raise BadVideo(f"no frame of {film.path} can be decoded: it is damaged or cut off", fix=_ANY_VIDEO)
        if len(times) == total:
            break
        total = len(times)  # the packets promised another number
    seconds = np.asarray(times) - times[0]
    span = float(np.ptp(seconds))
    duration = span * total / (total - 1) if total > 1 else 1 / film.rate
    if counted < frames:
        notes.append(f"{frames} frames were asked, the video has {counted}")
    if film.hidden:
        how = "counted, as decord does" if sampling.decord else "left out"
        notes.append(f"an edit list hides {film.hidden} frames, which are {how}")
    if duration + 0.5 < 0.95 * film.length:
        notes.append(f"the file announces {film.length:.1f} s, its pictures end after {duration:.1f} s")
    off = np.abs(seconds - np.linspace(0, seconds[-1], total)).max()
    if off > max(1.5 * duration / total, 0.01 * duration):
        notes.append(f"the frames do not come at an even rate: chosen by number, they are up to {off:.1f} s off")
    return Frames(pixels, index, seconds[places], duration, counted, notes=tuple(notes))


def _as_decord(index: np.ndarray, film: _Film, shown: int) -> np.ndarray:
    """Which of the ``shown`` frames decord 0.6 gives for these numbers (SeekAccurate in its video_reader.cc): it counts
    packets that an edit list hides, but its decoder leaves them out. So later frames come too early, until it seeks to
    another key frame; beyond the last frame it repeats what it gave before."""
    places: list[int] = []
    late = place = current = 0
    for number in index.tolist():
        if number >= current:  # else the same again
            if number > current and len({bisect.bisect_right(film.key_packets, n) for n in (number, current)}) > 1:
                late = film.before
            place = max(number - late, 0) if number - late < shown else place
            current = number + 1
        places.append(place)
    return np.array(places)


Found = Iterator[tuple[int, VideoFrame]]


def _sought(film: _Film, places: np.ndarray, times: list[float], notes: list[str]) -> Found:
    """The frames at these places: seeks to the key frame before each. times: filled with those of all frames. Raises
    _Astray."""
    if not film.complete:
        raise _Astray
    with _opened(film.path) as container:
        stream = _stream(container, film.path)
        times += [float(pts * stream.time_base) for pts in film.pts]
        key = None
        for place in np.unique(places).tolist():
            wanted = film.pts[place]
            before = film.keys[bisect.bisect_right(film.keys, wanted) - 1]
            try:
                if key is None or before > key:  # a whole group of pictures can be skipped
                    container.seek(before, stream=stream)
                    decoded, key = container.decode(stream), before
                late = (f for f in decoded if f.pts is None or f.pts >= wanted or (f.is_corrupt and f.pts >= key))
                frame = next(late, None)
            except av.error.FFmpegError as error:
                raise _Astray from error
            if frame is None or frame.pts != wanted or frame.is_corrupt:
                raise _Astray
            yield place, frame


def _decoded(film: _Film, places: np.ndarray, times: list[float], notes: list[str]) -> Found:
    """All frames from start to end, damaged packets skipped. times, notes: filled."""
    damaged = 0
    with _opened(film.path) as container:
        packets = container.demux(_stream(container, film.path))
        while True:
            try:
                if (packet := next(packets, None)) is None:
                    break
                frames = packet.decode()
            except av.error.FFmpegError:  # the demuxer then stops by itself, a decoder goes on with the next packet
                damaged += 1
                continue
            for frame in frames:
                damaged += frame.is_corrupt
                times.append(frame.time if frame.time is not None else times[-1] + 1 / film.rate if times else 0.0)
                yield len(times) - 1, frame
    if damaged:
        notes.append(f"{damaged} packets or frames are damaged: left out, or filled in by the decoder")


def _pictures(places: np.ndarray, found: Iterable[tuple[int, VideoFrame]]) -> np.ndarray:
    """The frames at ``places`` in one array [chosen, H, W, 3], upright as the first one says, and of its size."""
    pixels, matrix = np.empty(0), ()
    for place, frame in found:
        rows = places == place
        if not rows.any():
            continue
        if not pixels.size:  # of the first frame only: PyAV holds a frame in memory whose side data has been read
            side = frame.side_data.get("DISPLAYMATRIX")
            matrix = (1, 0, 0, 0, 1) if side is None else np.frombuffer(side, np.int32)[:5].tolist()
        picture = _upright(frame, matrix, pixels.shape[1:3])
        if not pixels.size:
            pixels = np.empty((len(places), *picture.shape), np.uint8)
        pixels[rows] = picture
    return pixels


def _upright(frame: VideoFrame, matrix: tuple[int, ...], size: tuple[int, ...]) -> np.ndarray:
    """The picture [H, W, 3] as players show it: phones store it as the sensor saw it, and a matrix beside it says how
    to turn and mirror it; an angle is taken to the nearest quarter. size: the H and W that it must have, if any."""
    a, b, _, c, d = matrix  # x' = a x + c y, y' = b x + d y
    swapped = abs(b) + abs(c) > abs(a) + abs(d)
    names = ("width", "height") if swapped else ("height", "width")
    picture = frame.to_ndarray(format="rgb24", **dict(zip(names, size, strict=False)))
    if swapped:
        picture, a, d = picture.transpose(1, 0, 2), c, b
    return picture[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1]
