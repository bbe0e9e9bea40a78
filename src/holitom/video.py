"""Read and write video files with PyAV: uniformly sampled frames, found exactly, without holding the whole video.

Sampling follows LLaVA-NeXT's video loader: ``np.linspace(0, n - 1, frames, dtype=int)`` over the n decodable frames.
A frame is identified by its time stamp, so that a long video is decoded only around the frames that are wanted; a file
whose time stamps are missing or damaged is decoded from start to end instead, which gives the same frames.
"""

from __future__ import annotations

import bisect
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
from av.container import InputContainer
from av.video.frame import VideoFrame
from av.video.stream import VideoStream
from jaxtyping import Float, Int, UInt8

from holitom.errors import BadUsage, BadVideo

DECODER = f"pyav {av.__version__}"
_ANY_VIDEO = "give a file that FFmpeg can decode, for instance an H.264 .mp4"
_TEXT_CODECS = {"ansi", "bintext", "idf", "xbin"}  # FFmpeg would render a text file as pictures of its letters


@dataclass(frozen=True)
class Frames:
    """Sampled frames of one video. index: place of each frame among the ``total`` decodable ones; seconds: its time."""

    pixels: UInt8[np.ndarray, "frames height width 3"]
    index: Int[np.ndarray, " frames"]
    seconds: Float[np.ndarray, " frames"]
    duration: float
    total: int
    decoder: str = DECODER
    notes: tuple[str, ...] = ()  # what a reader should know: fewer frames than asked, a file that is cut off

    def __len__(self) -> int:
        return len(self.pixels)


def sample_index(total: int, frames: int) -> Int[np.ndarray, " frames"]:
    """Places of ``frames`` uniformly spaced frames among ``total``; all of them, once, when there are fewer."""
    if frames >= total:
        return np.arange(total)
    return np.linspace(0, total - 1, frames, dtype=int)


def load_frames(path: str | os.PathLike[str], frames: int) -> Frames:
    """Decode ``frames`` uniformly spaced frames of a video file, as RGB.

    A file that is cut off or damaged gives what can be decoded, and ``notes`` says so. Deviation from LLaVA-NeXT, which
    repeats frames of a video that has fewer than asked: here every frame is used once, and ``notes`` says so.
    Raises BadVideo (missing, a directory, not a video, sound only, nothing decodable) and BadUsage (``frames`` < 1).
    """
    if isinstance(frames, bool) or not isinstance(frames, (int, np.integer)) or frames < 1:
        raise BadUsage(f"frames={frames!r} is not a number of frames", fix="ask for 1 or more, for instance 32")
    path = Path(path)
    if not path.exists():
        raise BadVideo(f"there is no file {path}", fix="check the path")
    if path.is_dir():
        raise BadVideo(f"{path} is a directory", fix="give one video file")
    try:
        with _opened(path) as container:
            stream = _video_stream(container, path)
            pts, keys, hidden, complete = _scan(container, stream)
            announced = stream.frames - hidden
            if not pts:
                raise BadVideo(
                    f"{path} holds no picture: it is empty or cut off before its first frame", fix=_ANY_VIDEO
                )
            found = _by_time_stamp(container, stream, pts, keys, frames) if complete else None
        damaged = 0
        if found is None:
            found, damaged = _from_start_to_end(path, len(pts), frames)
        if not found[0]:
            raise BadVideo(f"no frame of {path} can be decoded: it is damaged or cut off", fix=_ANY_VIDEO)
    except (av.error.FFmpegError, OSError) as error:
        raise BadVideo(f"{path} is not a video that can be decoded ({_reason(error)})", fix=_ANY_VIDEO) from error
    pictures, seconds, total, duration = found
    notes = _notes(asked=frames, total=total, announced=announced, damaged=damaged)
    return Frames(
        np.stack(pictures), sample_index(total, frames), np.asarray(seconds, float), duration, total, notes=notes
    )


def write_video(
    path: str | os.PathLike[str],
    pixels: UInt8[np.ndarray, "frames height width 3"],
    fps: int = 8,
    *,
    crf: int = 10,
    pixel_format: str = "yuv444p",
    preset: str = "ultrafast",
) -> Path:
    """Write RGB frames as an H.264 mp4; the file appears under its name only when it is complete.

    yuv444p keeps the colour of every pixel; players that know only yuv420p need ``pixel_format="yuv420p"`` and even
    sizes. Raises OSError when the file cannot be written.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with av.open(str(partial), "w", format="mp4") as container:
            # one thread: the bytes then do not depend on the machine's number of cores
            options = {"crf": str(crf), "preset": preset, "threads": "1"}
            stream = container.add_stream("libx264", rate=fps, options=options)
            stream.height, stream.width = pixels.shape[1:3]
            stream.pix_fmt = pixel_format
            for picture in pixels:
                container.mux(stream.encode(VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")))
            container.mux(stream.encode())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    return path


# pictures, their seconds, number of decodable frames, duration in seconds
_Found = tuple[list[np.ndarray], list[float], int, float]


def _opened(path: Path) -> InputContainer:
    """For reading. Titles and the like may be in any encoding, or damaged: nobody reads them."""
    return av.open(str(path), metadata_errors="replace")


def _video_stream(container: InputContainer, path: Path) -> VideoStream:
    if not container.streams.video:
        what = "holds sound but no picture" if container.streams.audio else "holds no picture"
        raise BadVideo(f"{path} {what}", fix=_ANY_VIDEO)
    stream = container.streams.video[0]
    if stream.codec_context is None:  # the file's head names a codec that FFmpeg does not know
        raise BadVideo(f"{path} is not a video that can be decoded (its codec is not known)", fix=_ANY_VIDEO)
    if stream.codec_context.name in _TEXT_CODECS:
        raise BadVideo(f"{path} is a text file, not a video", fix=_ANY_VIDEO)
    large = stream.codec_context.width * stream.codec_context.height >= 320 * 240
    stream.thread_type = "AUTO" if large else "NONE"  # threads cost more than they give on small pictures
    return stream


def _scan(container: InputContainer, stream: VideoStream) -> tuple[list[int], list[int], int, bool]:
    """Time stamps of all frames and of the key frames, ascending, from the packets alone (nothing is decoded), and how
    many frames are hidden: a clip that was cut without encoding it again keeps what its first frame needs.

    The last value is False when the packets do not name every frame by a time stamp of its own.
    """
    pts: list[int] = []
    keys: list[int] = []
    hidden = 0
    complete = True
    try:
        for packet in container.demux(stream):
            if not packet.size or packet.is_discard:
                hidden += bool(packet.size)
                continue
            complete &= packet.pts is not None and not packet.is_corrupt
            pts.append(packet.pts or 0)
            if packet.is_keyframe:
                keys.append(packet.pts or 0)
    except av.error.FFmpegError:
        complete = False
    pts.sort()
    complete &= len(set(pts)) == len(pts) and bool(keys) and min(keys) <= pts[0]
    return pts, sorted(keys), hidden, complete


def _by_time_stamp(
    container: InputContainer, stream: VideoStream, pts: list[int], keys: list[int], frames: int
) -> _Found | None:
    """Seek to the key frame before each wanted frame; None when a wanted frame does not turn up."""
    base = float(stream.time_base)
    pictures: list[np.ndarray] = []
    seconds: list[float] = []
    decoded: Iterator[VideoFrame] = iter(())
    last_key = None
    for place in sample_index(len(pts), frames):
        wanted = pts[place]
        key = keys[bisect.bisect_right(keys, wanted) - 1]
        try:
            if last_key is None or key > last_key:  # a whole group of pictures can be skipped
                container.seek(key, stream=stream)
                decoded = container.decode(stream)
                last_key = key
            frame = next((f for f in decoded if f.pts is not None and f.pts >= wanted), None)
        except av.error.FFmpegError:
            return None
        if frame is None or frame.pts != wanted or frame.is_corrupt:
            return None
        pictures.append(_rgb(frame))
        seconds.append((wanted - pts[0]) * base)
    step = (pts[-1] - pts[0]) / (len(pts) - 1) if len(pts) > 1 else 0.0
    return pictures, seconds, len(pts), (pts[-1] - pts[0] + step) * base


def _from_start_to_end(path: Path, expected: int, frames: int) -> tuple[_Found, int]:
    """Decode every packet in order, skipping damaged ones; a second pass when fewer frames come out than expected."""
    with _opened(path) as container:
        stream = _video_stream(container, path)
        rate = float(stream.average_rate or stream.guessed_rate or 1)
        wanted = {int(i) for i in sample_index(expected, frames)}
        pictures: list[np.ndarray] = []
        total = damaged = 0
        packets = container.demux(stream)
        while True:
            try:
                if (packet := next(packets, None)) is None:
                    break
                decoded = packet.decode()
            except av.error.FFmpegError:  # the demuxer then stops by itself, a decoder goes on with the next packet
                damaged += 1
                continue
            for frame in decoded:
                if total in wanted:
                    pictures.append(_rgb(frame))
                total += 1
    if total not in (0, expected):
        return _from_start_to_end(path, total, frames)
    seconds = [float(i) / rate for i in sample_index(total, frames)]
    return (pictures, seconds, total, total / rate), damaged


def _rgb(frame: VideoFrame) -> np.ndarray:
    """The picture upright: phones store it as the sensor saw it, with a rotation beside it."""
    return np.ascontiguousarray(np.rot90(frame.to_ndarray(format="rgb24"), k=frame.rotation // 90))


def _notes(*, asked: int, total: int, announced: int, damaged: int) -> tuple[str, ...]:
    notes = []
    if total < asked:
        notes.append(f"{asked} frames were asked, the video has {total}: all of them are used")
    if total < announced:
        notes.append(f"the file announces {announced} frames, {total} can be decoded: it is cut off or damaged")
    elif damaged:
        notes.append(f"{damaged} damaged packets were skipped")
    return tuple(notes)


def _reason(error: Exception) -> str:
    return str(getattr(error, "strerror", None) or error)
