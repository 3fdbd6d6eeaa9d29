"""Decodes selected frames of video files, seeking if the packet index shows that this saves time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fewtokens.core.shapes import shape_repr
from fewtokens.video.container import Index, is_truncated, open_stream, read_index
from fewtokens.video.scale import Scaler
from fewtokens.video.select import Size
from fewtokens.video.types import VideoError

# A seek flushes the decoder, so up to this many frames are decoded and discarded instead.
_MIN_SEEK = 12
# Number of parts of a video that are decoded in parallel if there are enough threads.
_PARTS = 4
# Reading stops after this many consecutive errors without a packet.
_MAX_ERRORS = 16
# Frames per second if a file does not specify them.
DEFAULT_FPS = 25.0
Progress = Callable[[int, int], None]


class IndexMismatch(Exception):
    """Raised if the decoded frames of a file contradict its packet index; use `VideoFile.counted` instead."""


@dataclass(frozen=True)
class VideoFile:
    """A video file: the times of all frames, and access to each.

    Frames are located by the packet index as long as the decoded frames agree with it. After the first mismatch the
    file is decoded from the start, and frames are located by counting.

    Attributes:
        path, video_stream, allow_truncated: see `read`.
        times: seconds of all frames since the first, float64 [n], ascending.
        duration: seconds until the end of the last frame, or None if unknown.
        fps: average frames per second, or None if unknown.
        aspect: pixel aspect ratio, width over height.
        index: the packet index.
        by_index: whether frames are located by the index instead of by counting.
        declared: number of frames that the file declares, or None.
        expected: estimated number of frames of the complete file.
        time_base: seconds per unit of the timestamps.
        rate: frames per second that the file declares, or None.
        draft: the short side in pixels for which frames are decoded, see `as_draft`; None for all pixels.
    """

    path: Path
    video_stream: int | None
    allow_truncated: bool
    times: NDArray[np.float64]
    duration: float | None
    fps: float | None
    aspect: float
    index: Index
    by_index: bool
    declared: int | None
    expected: int
    time_base: float
    rate: float | None
    draft: int | None = None

    __repr__ = shape_repr

    @staticmethod
    def open(
        path: Path, video_stream: int | None, allow_truncated: bool, progress: Progress | None = None
    ) -> VideoFile:
        """Opens a file by its packet index, or by decoding all frames if the index is not reliable, see `counted`.

        Raises:
            VideoError: the file is not a video, has no frames, or is damaged and `allow_truncated` is False.
        """
        with open_stream(path, video_stream) as (container, stream, _):
            time_base = float(stream.time_base or 1 / 90000)
            rate = float(stream.average_rate) if stream.average_rate else None
            index = read_index(container, stream)
            length = (container.duration or 0) / 1e6 - max(0, container.start_time or 0) / 1e6
            declared = stream.frames or None
            expected = declared or max(index.packets, round(length * (rate or 0)))
            aspect = _aspect(stream)
        by_index = index.reliable and not is_truncated(path)
        times = (index.pts - index.pts[0]) * time_base if by_index else np.empty(0)
        last = (index.end - int(index.pts[0])) * time_base if by_index and index.end is not None else None
        file = VideoFile(
            path, video_stream, allow_truncated, times, _duration(times, rate, last), _fps(times, rate), aspect, index,
            by_index, declared, expected, time_base, rate,
        )  # fmt: skip
        return file if by_index else file.counted(progress)

    @property
    def name(self) -> str:
        return str(self.path)

    @property
    def source_size(self) -> int | None:
        return self.path.stat().st_size

    @property
    def keyframes(self) -> NDArray[np.int64] | None:
        """Indices of the keyframes, int64 [m]; None if frames are located by counting."""
        return np.searchsorted(self.index.pts, self.index.keys) if self.by_index else None

    def as_draft(self, size: int) -> VideoFile:
        """Returns the file for thumbnails of this short side, which are decoded faster and differ by about 1 of 255.

        The decoder does not smooth the borders of blocks, and decodes at a lower resolution if the codec has one. Of a
        part of the file that ends with a requested frame, no frames are decoded after it.
        """
        return replace(self, draft=size)

    def scaler(self, size: Size | None) -> Scaler:
        return Scaler(size, self.name, self.aspect)

    def counted(self, progress: Progress | None = None) -> VideoFile:
        """Decodes the full file and returns a `VideoFile` that locates frames by counting.

        Args:
            progress: called with (0, expected frames) at each frame, since counting reads none of those requested.

        Raises:
            VideoError: no frame can be decoded, or the file is damaged and `allow_truncated` is False.
        """
        stamps: list[int | None] = []
        damage = 0
        for frame in every_frame(self.path, self.video_stream):
            # A recording that starts mid-stream lacks the references of its first frames, but is not damaged.
            if (frame is None or frame.is_corrupt) and (stamps or not self.index.headless):
                damage += 1
            if frame is not None:
                stamps.append(frame.pts)
            if progress is not None:
                progress(0, self.expected)
        if not stamps and not self.index.packets:
            raise VideoError(f"{self.path}: contains no frames")
        if not stamps:
            raise VideoError(f"{self.path}: is cut short or damaged, and none of its frames can be decoded")
        truncated = is_truncated(self.path) and not (self.declared and len(stamps) >= self.declared)
        if (damage or truncated) and not self.allow_truncated:
            count = f"only {len(stamps)} of {self.expected} frames" if self.expected > len(stamps) else "not all frames"
            raise VideoError(
                f"{self.path}: is cut short or damaged: {count} can be decoded without errors; "
                "pass allow_truncated=True (--allow-truncated) to read those that can be decoded"
            )
        times = _frame_times(stamps, self.time_base, self.rate)
        duration, fps = _duration(times, self.rate, None), _fps(times, self.rate)
        return replace(self, times=times, duration=duration, fps=fps, by_index=False)

    def parts(self, indices: NDArray[np.int64]) -> list[NDArray[np.int64]]:
        """Splits frame indices into parts for parallel decoding, each starting at a different keyframe.

        The parts do not depend on the number of threads, so that damaged files are read deterministically.
        """
        if not self.by_index or len(indices) < _PARTS:
            return [indices]
        key = np.searchsorted(self.index.keys, self.index.pts[indices], side="right")
        borders = np.flatnonzero(np.diff(key)) + 1
        even_splits = np.arange(1, _PARTS) * len(indices) / _PARTS
        nearest = {int(borders[np.abs(borders - split).argmin()]) for split in even_splits if len(borders)}
        return np.split(indices, sorted(nearest))

    def frames(self, indices: NDArray[np.int64]) -> Iterator[Any]:
        """Yields the frames at ascending indices, as `av.VideoFrame`.

        Each is kept until the next one has been decoded, so that the memory of frames is reused in the same order
        whether or not the caller converts a frame during that time; see `_without_threads` in `scale.py`.

        Raises:
            IndexMismatch: the decoded frames contradict the packet index.
            VideoError: the file has changed.
        """
        return self._frames_by_index(indices) if self.by_index else self._frames_by_count(indices)

    def _frames_by_count(self, indices: NDArray[np.int64]) -> Iterator[Any]:
        """Decodes all frames up to the last index."""
        remaining = iter(indices.tolist())
        target = next(remaining, None)
        frames = (frame for frame in every_frame(self.path, self.video_stream) if frame is not None)
        for n, frame in enumerate(frames):
            if n == target:
                kept = frame
                yield kept
                target = next(remaining, None)
            if target is None:
                return
        raise VideoError(f"{self.path}: changed while it was read; is it being written?")

    def _frames_by_index(self, indices: NDArray[np.int64]) -> Iterator[Any]:
        """Locates frames by timestamp; seeks if the next keyframe is far enough ahead."""
        import av

        index = self.index
        targets = index.pts[indices]
        # The last keyframe at or before each target, and its index in presentation order.
        key = np.searchsorted(index.keys, targets, side="right") - 1
        key_frame = np.searchsorted(index.pts, index.keys[key])
        needed = set(targets.tolist())
        # Drafts: the targets that are decoded from the same keyframe, by the number of that part.
        part = np.cumsum(np.append(True, key_frame[1:] > indices[:-1]))
        longest = 0 if self.draft else _MIN_SEEK
        with open_stream(self.path, self.video_stream, self.draft) as (container, stream, decoder):
            source: Iterator[Any] = iter(())
            latest = -1  # index of the last decoded frame; -1 if none
            for target, n, k, first, number in zip(targets, indices, key, key_frame, part, strict=True):
                try:
                    if latest < 0 or first - latest > longest:
                        packets = _seek_to_keyframe(container, stream, index.keys, int(k))
                        decoder.flush_buffers()
                        last = set(targets[part == number].tolist()) if self.draft else None
                        source = _decode_needed(packets, decoder, needed, last)
                    frame = next((frame for frame in source if frame.pts is None or frame.pts >= target), None)
                except (av.error.FFmpegError, OSError):
                    raise IndexMismatch from None
                if frame is None or frame.pts != target or frame.is_corrupt:
                    raise IndexMismatch
                latest = int(n)
                yield frame


def _seek_to_keyframe(container: Any, stream: Any, keys: NDArray[np.int64], k: int) -> Iterator[Any]:
    """Seeks to keyframe k, or an earlier one, and returns the packets from there.

    If a seek lands too late, it is repeated further back.
    """
    import av

    back = 0
    while True:
        candidate = max(k - back, 0)
        try:
            container.seek(int(keys[candidate]), stream=stream, backward=True)
        except (av.error.FFmpegError, OSError):
            candidate = 0
        packets = _packets_from_next_keyframe(container, stream, int(keys[k]))
        if packets is not None:
            return packets
        if candidate == 0:
            break
        back = 2 * back + 1
    # As a last resort, the start of the file.
    container.seek(0, unsupported_byte_offset=True)
    packets = _packets_from_next_keyframe(container, stream, int(keys[k]))
    if packets is None:
        raise IndexMismatch
    return packets


def _packets_from_next_keyframe(container: Any, stream: Any, latest: int) -> Iterator[Any] | None:
    """Returns the packets starting with the next keyframe, or None if its timestamp is after `latest`."""
    packets = container.demux(stream)
    first = next((packet for packet in packets if packet.is_keyframe or packet.size == 0), None)
    if first is None or first.pts is None or first.pts > latest:
        return None
    return chain([first], packets)


def _decode_needed(packets: Iterator[Any], decoder: Any, needed: set[int], last: set[int] | None) -> Iterator[Any]:
    """Decodes packets, skipping frames that are neither needed nor references of others.

    Args:
        needed: timestamps.
        last: those after which no packet is decoded; None for no end.
    """
    for packet in packets:
        decoder.skip_frame = "DEFAULT" if packet.pts is None or packet.pts in needed else "NONREF"
        yield from decoder.decode(packet)
        if last is not None and packet.pts in last:
            last.remove(packet.pts)
            if not last:
                # Frames that the decoder holds back would otherwise come only after more packets.
                yield from decoder.decode(None)
                return


def every_frame(path: Path, video_stream: int | None) -> Iterator[Any | None]:
    """Yields all frames in presentation order, and None for each packet that cannot be decoded.

    Decoding resumes after an error. Frames with concealed errors are marked as `is_corrupt` by the decoder.
    """
    import av

    with open_stream(path, video_stream) as (container, stream, decoder):
        errors = 0
        while errors < _MAX_ERRORS:
            try:
                for packet in container.demux(stream):
                    errors = 0
                    try:
                        frames = decoder.decode(packet)
                    except av.error.EOFError:  # the decoder is drained
                        continue
                    except (av.error.FFmpegError, OSError):
                        yield None
                        continue
                    yield from frames
                return
            except (av.error.FFmpegError, OSError):
                errors += 1
                yield None


def _frame_times(stamps: list[int | None], time_base: float, rate: float | None) -> NDArray[np.float64]:
    """Returns the seconds of all frames from their timestamps, or from the frame rate if a timestamp is missing.

    Steps that are not positive, as in concatenated files, are replaced by the median step.
    """
    if any(pts is None for pts in stamps):
        return np.arange(len(stamps)) / (rate or DEFAULT_FPS)
    pts = np.array(stamps, dtype=np.int64)
    steps = np.diff(pts)
    if (steps > 0).all():
        return (pts - pts[0]) * time_base
    seconds = steps * time_base
    median = float(np.median(seconds[steps > 0])) if (steps > 0).any() else 1 / (rate or DEFAULT_FPS)
    return np.concatenate([[0.0], np.cumsum(np.where(steps > 0, seconds, median))])


def _fps(times: NDArray[np.float64], declared: float | None) -> float | None:
    """Returns the declared frame rate if it is within 2% of the measured one, otherwise the measured one."""
    if len(times) < 2:
        return declared
    measured = (len(times) - 1) / float(times[-1])
    return declared if declared and abs(measured / declared - 1) < 0.02 else measured


def _duration(times: NDArray[np.float64], rate: float | None, end: float | None) -> float | None:
    """Returns the seconds until the end of the last frame: `end` if valid, else the last time plus the median step."""
    if not len(times) or (end is not None and end > times[-1]):
        return end
    if len(times) > 1:
        return float(times[-1] + np.median(np.diff(times)))
    return 1 / rate if rate else None


def _aspect(stream: Any) -> float:
    """Returns the pixel aspect ratio (width over height), or 1 if it is missing or implausible."""
    ratio = float(stream.sample_aspect_ratio or 1)
    return ratio if 0.05 < ratio < 20 else 1.0
