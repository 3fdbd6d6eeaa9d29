"""Decoding: exactly the wanted frames, by seeking where the packet index says that it is worth it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from fewtokens.core.shapes import by_shape
from fewtokens.video.container import Index, index_of, is_cut, opened
from fewtokens.video.scale import Scaler
from fewtokens.video.select import Size
from fewtokens.video.types import VideoError

# A seek empties the decoder; below this many frames to skip, decoding on is quicker.
_WORTH_A_SEEK = 12
# So many parts of a video are decoded at once, if there are as many threads.
_PARTS = 4
# After so many errors in a row without a packet between them nothing more is to be had of a file.
_LAST_ERROR = 16
# Where a file does not say how many frames it shows in a second.
USUAL_FPS = 25.0


class Doubt(Exception):
    """A file does not keep to its packet index: `Film.counted` knows what is in it."""


@dataclass(frozen=True)
class Film:
    """A video file: the times of all its frames, and the way to them.

    A film is known by its packets as long as all that is decoded is what they promise. From the first doubt on it is
    known by decoding all of it.

    Attributes:
        path, number, allow_truncated: as in `read`.
        times: seconds of all frames since the first, float64 [n], rising.
        duration: seconds until the last frame is no longer shown, or None.
        fps: average frames each second, or None.
        aspect: width of a pixel over its height.
        index: of its packets.
        by_index: frames are found by the index; otherwise by counting.
        declared: how many frames the file says it has, or None; `whole`: as well as that can be told.
        time_base: seconds of a unit of the time stamps.
        rate: frames each second that the file declares, or None.
    """

    path: Path
    number: int | None
    allow_truncated: bool
    times: NDArray[np.float64]
    duration: float | None
    fps: float | None
    aspect: float
    index: Index
    by_index: bool
    declared: int | None
    whole: int
    time_base: float
    rate: float | None

    __repr__ = by_shape

    @staticmethod
    def open(path: Path, number: int | None, allow_truncated: bool) -> Film:
        """Reads the packet index; decodes everything if it is not sound.

        Raises:
            VideoError: not a video, no frames; cut or damaged, and `allow_truncated` is not set.
        """
        with opened(path, number) as (container, stream, _):
            time_base = float(stream.time_base or 1 / 90000)
            rate = float(stream.average_rate) if stream.average_rate else None
            index = index_of(container, stream)
            length = (container.duration or 0) / 1e6 - max(0, container.start_time or 0) / 1e6
            declared = stream.frames or None
            whole = declared or max(index.packets, round(length * (rate or 0)))
            aspect = _aspect(stream)
        by_index = index.sound and not is_cut(path)
        times = (index.pts - index.pts[0]) * time_base if by_index else np.empty(0)
        last = (index.end - int(index.pts[0])) * time_base if by_index and index.end is not None else None
        film = Film(
            path, number, allow_truncated, times, _duration(times, rate, last), _fps(times, rate), aspect, index,
            by_index, declared, whole, time_base, rate,
        )  # fmt: skip
        return film if by_index else film.counted()

    @property
    def name(self) -> str:
        return str(self.path)

    @property
    def source_size(self) -> int | None:
        return self.path.stat().st_size

    def scaler(self, size: Size | None) -> Scaler:
        return Scaler(size, self.name, self.aspect)

    def counted(self) -> Film:
        """The same film, known by decoding all of it.

        Raises:
            VideoError: no frame can be decoded; not all can be, and `allow_truncated` is not set.
        """
        stamps: list[int | None] = []
        damage = 0
        for frame in every_frame(self.path, self.number):
            # A recording that was begun in the middle lacks what its first frames refer to; it is whole.
            if (frame is None or frame.is_corrupt) and (stamps or not self.index.headless):
                damage += 1
            if frame is not None:
                stamps.append(frame.pts)
        if not stamps and not self.index.packets:
            raise VideoError(f"{self.path}: holds no frames")
        if not stamps:
            raise VideoError(f"{self.path}: is cut short or damaged, and none of its frames can be decoded")
        cut = is_cut(self.path) and not (self.declared and len(stamps) >= self.declared)
        if (damage or cut) and not self.allow_truncated:
            count = f"only {len(stamps)} of {self.whole} frames" if self.whole > len(stamps) else "not all frames"
            raise VideoError(
                f"{self.path}: is cut short or damaged: {count} can be decoded without an error; "
                "pass allow_truncated=True (--allow-truncated) to use what can be decoded"
            )
        times = _rising(stamps, self.time_base, self.rate)
        duration, fps = _duration(times, self.rate, None), _fps(times, self.rate)
        return replace(self, times=times, duration=duration, fps=fps, by_index=False)

    def parts(self, numbers: NDArray[np.int64]) -> list[NDArray[np.int64]]:
        """The same numbers in parts that are decoded apart: each begins at another keyframe.

        They do not depend on how many threads there are, so neither does what is read of a damaged file.
        """
        if not self.by_index or len(numbers) < _PARTS:
            return [numbers]
        key = np.searchsorted(self.index.keys, self.index.pts[numbers], side="right")
        borders = np.flatnonzero(np.diff(key)) + 1
        even = np.arange(1, _PARTS) * len(numbers) / _PARTS
        nearest = {int(borders[np.abs(borders - at).argmin()]) for at in even if len(borders)}
        return np.split(numbers, sorted(nearest))

    def pictures(self, numbers: NDArray[np.int64], scaler: Scaler) -> Iterator[Tensor]:
        """The frames with these numbers, rising, uint8 [3,H,W] each.

        Raises:
            Doubt: the file does not keep to its index.
            VideoError: a frame that is too large or cannot be converted.
        """
        return self._by_index(numbers, scaler) if self.by_index else self._by_count(numbers, scaler)

    def _by_count(self, numbers: NDArray[np.int64], scaler: Scaler) -> Iterator[Tensor]:
        """By decoding all frames up to the last one."""
        left = iter(numbers.tolist())
        target = next(left, None)
        good = (frame for frame in every_frame(self.path, self.number) if frame is not None)
        for n, frame in enumerate(good):
            if n == target:
                yield scaler.frame(frame)
                target = next(left, None)
            if target is None:
                return
        raise VideoError(f"{self.path}: is not what it was a moment ago; is it being written?")

    def _by_index(self, numbers: NDArray[np.int64], scaler: Scaler) -> Iterator[Tensor]:
        """By time stamp: seeks if a keyframe lies far enough ahead, and decodes on otherwise."""
        import av

        index = self.index
        wanted = index.pts[numbers]
        # The keyframe from which each wanted frame can be decoded, and its number in the order of showing.
        key = np.searchsorted(index.keys, wanted, side="right") - 1
        key_number = np.searchsorted(index.pts, index.keys[key])
        needed = set(wanted.tolist())
        with opened(self.path, self.number) as (container, stream, decoder):
            source: Iterator[Any] = iter(())
            at = -1  # number of the last frame that was decoded; -1 = nothing yet
            for target, n, k, from_number in zip(wanted, numbers, key, key_number, strict=True):
                try:
                    if at < 0 or from_number - at > _WORTH_A_SEEK:
                        packets = _from_keyframe(container, stream, index.keys, int(k))
                        decoder.flush_buffers()
                        source = _needed_first(packets, decoder, needed)
                    frame = next((frame for frame in source if frame.pts is None or frame.pts >= target), None)
                except (av.error.FFmpegError, OSError):
                    raise Doubt from None
                if frame is None or frame.pts != target or frame.is_corrupt:
                    raise Doubt
                at = int(n)
                yield scaler.frame(frame)


def _from_keyframe(container: Any, stream: Any, keys: NDArray[np.int64], k: int) -> Iterator[Any]:
    """Packets from keyframe number k, or from one before it: a seek that lands too late is tried again further back."""
    import av

    back = 0
    while True:
        at = max(k - back, 0)
        try:
            container.seek(int(keys[at]), stream=stream, backward=True)
        except (av.error.FFmpegError, OSError):
            at = 0
        packets = _at_keyframe(container, stream, int(keys[k]))
        if packets is not None:
            return packets
        if at == 0:
            break
        back = 2 * back + 1
    # To the first byte.
    container.seek(0, unsupported_byte_offset=True)
    packets = _at_keyframe(container, stream, int(keys[k]))
    if packets is None:
        raise Doubt
    return packets


def _at_keyframe(container: Any, stream: Any, latest: int) -> Iterator[Any] | None:
    """Packets from the next keyframe on; None where that comes after `latest`."""
    packets = container.demux(stream)
    first = next((packet for packet in packets if packet.is_keyframe or packet.size == 0), None)
    if first is None or first.pts is None or first.pts > latest:
        return None
    return chain([first], packets)


def _needed_first(packets: Iterator[Any], decoder: Any, needed: set[int]) -> Iterator[Any]:
    """Decodes on, sparing frames that are neither needed nor referred to by others."""
    for packet in packets:
        decoder.skip_frame = "DEFAULT" if packet.pts is None or packet.pts in needed else "NONREF"
        yield from decoder.decode(packet)


def every_frame(path: Path, number: int | None) -> Iterator[Any | None]:
    """Every frame in the order of showing, with None for each thing that cannot be decoded.

    What comes after such a thing is decoded again. A frame that `is_corrupt` is one in which errors are concealed.
    """
    import av

    with opened(path, number) as (container, stream, decoder):
        errors = 0
        while errors < _LAST_ERROR:
            try:
                for packet in container.demux(stream):
                    errors = 0
                    try:
                        frames = decoder.decode(packet)
                    except av.error.EOFError:  # nothing is left in the decoder
                        continue
                    except (av.error.FFmpegError, OSError):
                        yield None
                        continue
                    yield from frames
                return
            except (av.error.FFmpegError, OSError):
                errors += 1
                yield None


def _rising(stamps: list[int | None], time_base: float, rate: float | None) -> NDArray[np.float64]:
    """Seconds of all frames: their time stamps if there are any, otherwise their numbers over the frame rate.

    Where stamps fall or stand still, as in two files put together, the usual step goes on from there.
    """
    if any(pts is None for pts in stamps):
        return np.arange(len(stamps)) / (rate or USUAL_FPS)
    known = np.array(stamps, dtype=np.int64)
    steps = np.diff(known)
    if (steps > 0).all():
        return (known - known[0]) * time_base
    seconds = steps * time_base
    usual = float(np.median(seconds[steps > 0])) if (steps > 0).any() else 1 / (rate or USUAL_FPS)
    return np.concatenate([[0.0], np.cumsum(np.where(steps > 0, seconds, usual))])


def _fps(times: NDArray[np.float64], declared: float | None) -> float | None:
    """What the file declares if its frames bear it out, otherwise what they say."""
    if len(times) < 2:
        return declared
    measured = (len(times) - 1) / float(times[-1])
    return declared if declared and abs(measured / declared - 1) < 0.02 else measured


def _duration(times: NDArray[np.float64], rate: float | None, end: float | None) -> float | None:
    """Seconds until the last frame is no longer shown: `end`, or the usual step after it began."""
    if not len(times) or (end is not None and end > times[-1]):
        return end
    if len(times) > 1:
        return float(times[-1] + np.median(np.diff(times)))
    return 1 / rate if rate else None


def _aspect(stream: Any) -> float:
    """Width of a pixel over its height; 1 where the file says nothing, or nonsense."""
    ratio = float(stream.sample_aspect_ratio or 1)
    return ratio if 0.05 < ratio < 20 else 1.0
