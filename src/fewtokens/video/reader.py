"""`read` and `stream`: from files, folders and arrays to frames with times."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import chain, count, islice
from pathlib import Path
from threading import Event, Lock
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fewtokens.core.shapes import by_shape
from fewtokens.video.container import reason
from fewtokens.video.decode import USUAL_FPS, Doubt, Film
from fewtokens.video.images import Animation, Folder, is_image
from fewtokens.video.scale import Scaler
from fewtokens.video.select import Size, check_bytes, check_request, choose
from fewtokens.video.types import Video, VideoError

# From the seconds of all frames to the numbers of those wanted.
Picker = Callable[[NDArray[np.float64]], NDArray[np.int64]]
Progress = Callable[[int, int], None]


class Source(Protocol):
    """Where frames come from: the times of all, and the way to each."""

    @property
    def name(self) -> str: ...
    @property
    def times(self) -> NDArray[np.float64]: ...
    @property
    def duration(self) -> float | None: ...
    @property
    def fps(self) -> float | None: ...
    @property
    def source_size(self) -> int | None: ...
    def scaler(self, size: Size | None) -> Scaler: ...
    def parts(self, numbers: NDArray[np.int64]) -> list[NDArray[np.int64]]: ...
    def pictures(self, numbers: NDArray[np.int64], scaler: Scaler) -> Iterator[Tensor]: ...


def read(
    source: str | Path | NDArray[Any] | Tensor,
    *,
    frames: int | None = None,
    fps: float | None = None,
    size: Size | None = None,
    start: float = 0.0,
    end: float | None = None,
    pick: Picker | None = None,
    video_stream: int | None = None,
    allow_truncated: bool = False,
    progress: Progress | None = None,
) -> Video:
    """Reads frames of a video.

    The same file and arguments always give the same frames, and the frames are those that `stream` gives.

    Args:
        source: a video file; an image (one frame, or all of an animated WebP or PNG, or all pages of a TIFF, which
            come 25 a second); a folder of images (in natural order, 25 a second); or an array: [T,H,W,3] or
            [T,3,H,W] (or one frame without T), uint8 or float in 0..1, 25 a second.
        frames: that many, spread evenly from the first to the last (all, if there are fewer); or
        fps: frames each second, each time the last one shown by then. Neither: every frame.
        size: the short side in pixels (the aspect stays), or (height, width). Non-square pixels are made
            square, and rotation and mirroring are applied before. All sources are scaled alike: smaller by the mean
            of the area that each pixel covers, larger by a bicubic.
        start, end: seconds from the first frame; frames in [start, end).
        pick: instead of all these: given the seconds of all frames, float64 [n], the numbers of those wanted, in any
            order, repeats included.
        video_stream: which of several video streams, counted from 0; by default FFmpeg's best.
        allow_truncated: of a file that is cut or damaged, use all frames that the decoder gives, also those
            after the damage.
        progress: called with (frames done, frames in all).

    Returns:
        Frames with exact times from the file's time stamps. Transparency lies over black.

    Raises:
        VideoError: missing, empty, not a video, only sound, cut, too large: one line that says what to do.
        ValueError: values that fit no video.
    """
    check_request(frames, fps, size, start, end)
    if pick is not None and (frames is not None or fps is not None or start or end is not None):
        raise ValueError("pick= stands alone; leave out frames, fps, start and end")
    name = str(source) if isinstance(source, str | os.PathLike) else "array"

    def choice(times: NDArray[np.float64]) -> NDArray[np.int64]:
        return choose(times, frames, fps, start, end, name) if pick is None else _picked(pick, times)

    with _one_line(name):
        found = _source(source, video_stream, allow_truncated)
        try:
            return _gathered(found, choice(found.times), size, progress)
        except Doubt:
            assert isinstance(found, Film)
        if frames is None and pick is None:
            shown = _in_order(found, choice, found.scaler(size))
            return _piece(next(shown), shown, len(found.times))
        found = found.counted()
        return _gathered(found, choice(found.times), size, progress)


def stream(
    path: str | Path,
    *,
    chunk: int = 32,
    fps: float | None = None,
    size: Size | None = None,
    start: float = 0.0,
    end: float | None = None,
    video_stream: int | None = None,
    allow_truncated: bool = False,
) -> Iterator[Video]:
    """Reads a video in chunks, in memory that does not grow with its length, but for its times: 24 bytes a frame.

    Args:
        path: as in `read`, but no array.
        chunk: frames in each piece; the last one may have fewer.
        fps, size, start, end, allow_truncated: as in `read`.
        video_stream: which of several video streams, counted from 0.

    Yields:
        Videos whose times go on from one to the next; together they are what `read` gives.

    Raises:
        VideoError: as `read`. A file that is cut is refused before the first chunk; damage in the middle may show only
            when it is reached.
    """
    check_request(None, fps, size, start, end)
    if not isinstance(chunk, int) or chunk < 1:
        raise ValueError(f"chunk must be at least 1 frame, got {chunk!r}")
    name = str(path)
    with _one_line(name):
        found = _source(Path(path), video_stream, allow_truncated)
        shown = _in_order(found, lambda times: choose(times, None, fps, start, end, name), found.scaler(size))
        for first in shown:
            yield _piece(first, islice(shown, chunk - 1), chunk)


@dataclass(frozen=True)
class _Shown:
    """A frame, where it comes from, its number there, and how many there are with those that follow."""

    picture: Tensor
    source: Source
    number: int
    left: int

    __repr__ = by_shape


def _in_order(found: Source, choice: Picker, scaler: Scaler) -> Iterator[_Shown]:
    """Frame by frame; after a doubt it goes on, by counting, with the frames that come after the last one given."""
    given = -np.inf
    while True:
        numbers = choice(found.times)
        numbers = numbers[found.times[numbers] > given]
        pictures = chain.from_iterable(found.pictures(part, scaler) for part in found.parts(numbers))
        try:
            for at, picture in enumerate(pictures):
                given = float(found.times[numbers[at]])
                yield _Shown(picture, found, int(numbers[at]), len(numbers) - at)
            return
        except Doubt:
            assert isinstance(found, Film)
            found = found.counted()


def _piece(first: _Shown, others: Iterator[_Shown], most: int) -> Video:
    """The first frame and at most so many in all."""
    height, width = first.picture.shape[1:]
    check_bytes(min(most, first.left), height, width, first.source.name)
    shown = [first, *others]
    video = _video(shown[-1].source, torch.stack([one.picture for one in shown]), np.zeros(0, dtype=np.int64))
    times = torch.tensor([float(one.source.times[one.number]) for one in shown], dtype=torch.float64)
    return replace(video, times=times)


@contextmanager
def _one_line(name: str) -> Iterator[None]:
    """Makes a VideoError of what the system, FFmpeg or the memory says."""
    import av

    try:
        yield
    except VideoError:
        raise
    except (av.error.FFmpegError, OSError, UnicodeError) as error:
        raise VideoError(f"{name}: cannot be read ({reason(error)})") from None
    except MemoryError:
        raise VideoError(f"{name}: takes more memory than there is; say frames=, fps= or size=") from None


def _source(source: str | Path | NDArray[Any] | Tensor, number: int | None, allow_truncated: bool) -> Source:
    if not isinstance(source, str | os.PathLike):
        return _Array(source)
    path = Path(source)
    if "\0" in str(path) or not path.exists():
        raise VideoError(f"{path}: no such file")
    if path.is_dir():
        return Folder(path)
    return Animation(path) if is_image(path) else Film.open(path, number, allow_truncated)


def _picked(pick: Picker, times: NDArray[np.float64]) -> NDArray[np.int64]:
    numbers = np.asarray(pick(times), dtype=np.int64)
    if not len(numbers) or numbers.min() < 0 or numbers.max() >= len(times):
        raise ValueError(f"pick= must give numbers of frames, 0 to {len(times) - 1}, got {numbers.tolist()[:8]}")
    return numbers


def _gathered(found: Source, numbers: NDArray[np.int64], size: Size | None, progress: Progress | None) -> Video:
    """Decodes parts of a video at once, as many as PyTorch has threads."""
    once, place = np.unique(numbers, return_inverse=True)
    scaler = found.scaler(size)
    parts = found.parts(once)
    own = found.pictures(parts[0], scaler)
    first = next(own)
    frames = _room(len(once), first, found.name, among=len(numbers))
    lock, done, stop = Lock(), count(1), Event()

    def fill(begin: int, pictures: Iterator[Tensor]) -> None:
        for n, picture in enumerate(pictures, start=begin):
            frames[n] = picture
            if progress is not None:
                with lock:
                    progress(next(done), len(once))
            if stop.is_set():
                return

    begins = np.cumsum([0] + [len(part) for part in parts])
    ways = [chain([first], own), *(found.pictures(part, scaler.again()) for part in parts[1:])]
    with ThreadPoolExecutor(min(len(parts), torch.get_num_threads())) as pool:
        work = [pool.submit(fill, int(begin), way) for begin, way in zip(begins, ways, strict=False)]
        try:
            for one in work:
                one.result()
        except BaseException:  # an interrupt too
            stop.set()
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    if len(once) != len(numbers) or (place[1:] < place[:-1]).any():
        frames = frames[torch.from_numpy(place)]
    return _video(found, frames, numbers)


def _room(length: int, picture: Tensor, name: str, *, among: int = 0) -> Tensor:
    """Memory for so many pictures of the size of this one, uint8 [length,3,H,W]: taken once, and checked before.

    `among`: how many there will be with repeats.
    """
    height, width = picture.shape[1:]
    check_bytes(max(length, among), height, width, name)
    return torch.empty(length, *picture.shape, dtype=torch.uint8)


def _video(found: Source, frames: Tensor, numbers: NDArray[np.int64]) -> Video:
    path = None if isinstance(found, _Array) else found.name
    times = torch.from_numpy(found.times[numbers].astype(np.float64))
    return Video(frames, times, found.duration, found.fps, path, found.source_size)


class _Array:
    """Frames that are there already."""

    name = "array"
    source_size = None

    def __init__(self, array: NDArray[Any] | Tensor) -> None:
        try:
            pixels = torch.as_tensor(array)
        except (TypeError, ValueError, RuntimeError) as error:
            raise VideoError(f"an array of frames must hold numbers ({' '.join(str(error).split())})") from None
        shape = list(pixels.shape)
        pixels = pixels[None] if pixels.ndim == 3 else pixels
        if pixels.ndim != 4 or 0 in pixels.shape or 3 not in (pixels.shape[1], pixels.shape[3]):
            raise VideoError(f"an array of frames must be [T,H,W,3] or [T,3,H,W], got {shape}")
        if pixels.shape[3] == 3 and pixels.shape[1] != 3:
            pixels = pixels.permute(0, 3, 1, 2)
        if pixels.is_floating_point():
            if not bool(((pixels >= -1e-3) & (pixels <= 1.001)).all()):
                raise VideoError("an array of floats must lie in 0..1; divide by 255, or give uint8")
        elif pixels.dtype != torch.uint8:
            raise VideoError(f"an array of frames must be uint8, or float in 0..1, got {pixels.dtype}")
        self._pixels = pixels
        self.times: NDArray[np.float64] = np.arange(len(pixels)) / USUAL_FPS
        self.duration: float | None = len(pixels) / USUAL_FPS
        self.fps: float | None = USUAL_FPS

    def scaler(self, size: Size | None) -> Scaler:
        return Scaler(size, self.name)

    def parts(self, numbers: NDArray[np.int64]) -> list[NDArray[np.int64]]:
        return [numbers]

    def pictures(self, numbers: NDArray[np.int64], scaler: Scaler) -> Iterator[Tensor]:
        for n in numbers.tolist():
            picture = self._pixels[n].detach().cpu()
            if picture.is_floating_point():
                picture = (picture.clamp(0, 1) * 255).round().byte()
            yield scaler.array(picture.permute(1, 2, 0).numpy())
