"""`read` and `stream`: read frames and their times from files, folders and arrays."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import chain, count, islice, takewhile
from pathlib import Path
from threading import Event, Lock
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fewtokens.core.shapes import shape_repr
from fewtokens.video.container import reason
from fewtokens.video.decode import DEFAULT_FPS, IndexMismatch, Progress, VideoFile
from fewtokens.video.footage import Choice, Footage, chooser
from fewtokens.video.images import Animation, Folder, is_image
from fewtokens.video.scale import Scaler
from fewtokens.video.select import Size, check_bytes, check_request, select_frames
from fewtokens.video.types import Video, VideoError

# Maps the seconds of all frames to the indices of the frames to read.
Picker = Callable[[NDArray[np.float64]], NDArray[np.int64]]
# Maps a source to the indices of the frames to read.
Select = Callable[["Source"], NDArray[np.int64]]
T = TypeVar("T")


class Source(Protocol):
    """A source of frames: the times of all frames, and access to each."""

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
    def parts(self, indices: NDArray[np.int64]) -> list[NDArray[np.int64]]: ...
    def frames(self, indices: NDArray[np.int64]) -> Iterator[Any]: ...


def read(
    source: str | Path | NDArray[Any] | Tensor,
    *,
    frames: int | None = None,
    fps: float | None = None,
    size: Size | None = None,
    start: float = 0.0,
    end: float | None = None,
    pick: Picker | None = None,
    select: Any = None,
    question: str | None = None,
    scorer: Any = None,
    near: float = 0.0,
    video_stream: int | None = None,
    allow_truncated: bool = False,
    progress: Progress | None = None,
) -> Video:
    """Reads frames of a video.

        video = fewtokens.read("clip.mp4", frames=16, size=224)
        video.frames.shape  # [16, 3, 224, 398] for a video of 1280 x 720 pixels

    Results are deterministic, and equal to those of `stream`. At most one of `frames`, `fps`, `pick` and `select` may
    be given; without them all frames are read.

        video = fewtokens.read("film.mp4", select="aks(keep=32)", question="Who opens it?", scorer="clip:clip-vit-b32")

    Args:
        source: a video file; an image (one frame, all frames of an animated WebP or PNG, or all pages of a TIFF); a
            folder of images, in natural order; or an array [T,H,W,3] or [T,3,H,W] (or one frame without T), uint8 or
            float in 0..1. Folders, arrays and TIFF pages are given 25 frames per second.
        frames: number of frames, evenly spaced from the first to the last; all frames if there are fewer.
        fps: sampling rate in frames per second. Selects the frame shown at each sampling time; no frame is repeated.
        size: short side in pixels, which preserves the aspect ratio, or (height, width). Default: the original size.
            Non-square pixels are made square, and rotation and mirroring are applied, before resizing. Images are
            reduced by area averaging and enlarged by bicubic interpolation.
        start: time of the first frame to read, in seconds after the first frame of the video. Default: 0.
        end: only frames before this time, in seconds, are read. Default: the end of the video.
        pick: a function that maps the seconds of all frames, float64 [n], to the indices of the frames to read, in any
            order, with or without repeats. Excludes `frames`, `fps`, `start` and `end`.
        select: a frame selector or its spec, such as "aks(keep=32)", see `fewtokens.core.selection`. Thumbnails of its
            candidates are decoded first, if it needs them, and then only the selected frames in full. All frames are
            read at one size; `Video.selection` has the sizes that the selector chose.
        question: the question, for selectors by relevance.
        scorer: what scores the relevance of frames, see `fewtokens.selection.load_scorer`. Default: none.
        near: the thumbnail of the nearest keyframe stands for a candidate that is at most this many seconds from it,
            which decodes a long video several times faster. Default: 0, each candidate's own thumbnail.
        video_stream: index of the video stream if the file has several. Default: the one that FFmpeg ranks best.
        allow_truncated: whether to read all frames of a damaged file that can be decoded, including those after the
            damage, instead of raising an error.
        progress: callback that receives the number of frames read and the total; 0 of an estimate while a damaged file
            is checked.

    Returns:
        A `Video` with the exact times of its frames. Transparency is composited over black.

    Raises:
        VideoError: the source does not exist, is empty, is not a video, has no video stream, is damaged or too large.
        ValueError: an argument is invalid.
    """
    check_request(frames, fps, size, start, end)
    if pick is not None and (frames is not None or fps is not None or start or end is not None):
        raise ValueError("pick= cannot be combined with frames, fps, start and end")
    if select is None and (question is not None or scorer is not None):
        raise ValueError("question= and scorer= require select=")
    if select is None and near:
        raise ValueError("near= requires select=")
    if select is not None and (frames is not None or fps is not None or pick is not None):
        raise ValueError("select= cannot be combined with frames, fps and pick; set keep and rate of the selector")
    choose = None if select is None else chooser(select, question, scorer, near)
    choice: Choice | None = None
    name = str(source) if isinstance(source, str | os.PathLike) else "array"

    def indices(source: Source) -> NDArray[np.int64]:
        nonlocal choice
        if pick is not None:
            return _call_picker(pick, source.times)
        span = select_frames(source.times, frames, fps, start, end, name)
        if choose is None:
            return span
        choice = choose(_footage(source, span))
        selected = span[choice.index.numpy()]
        choice.selection = replace(choice.selection, index=torch.from_numpy(selected))
        return selected

    with _as_video_error(name):
        video = _read(
            _open(source, video_stream, allow_truncated, progress),
            indices,
            size,
            frames is None and pick is None and select is None,
            progress,
        )
    if choice is not None:
        video = replace(video, selection=choice.selection)
    if video.path is None or pick is not None:
        return video
    reading = {
        "frames": len(video) if frames is None and fps is None and choice is None else frames,
        "fps": fps,
        "size": min(video.size) if size is None else size,
        "start": start,
        "end": end,
        "video_stream": video_stream,
        "allow_truncated": allow_truncated,
        **({} if choice is None else choice.arguments),
    }
    return replace(video, reading=reading)


def _footage(source: Source, span: NDArray[np.int64]) -> Footage:
    """The frames of a source at these indices, before decoding."""
    keyframes = source.keyframes if isinstance(source, VideoFile) else None

    def read_small(indices: NDArray[np.int64], size: int) -> Tensor:
        small = source.as_draft(size) if isinstance(source, VideoFile) else source
        return _read_parallel(small, indices, size, None).frames

    stream = source.video_stream if isinstance(source, VideoFile) else None
    return Footage(source.name, source.times, keyframes, span, read_small, stream)


def _read(video: Source, select: Select, size: Size | None, sequential: bool, progress: Progress | None) -> Video:
    """Reads the selected frames; `sequential`: whether a file with a wrong index may be read from start to end."""
    try:
        return _read_parallel(video, select(video), size, progress)
    except IndexMismatch:
        assert isinstance(video, VideoFile)
    if sequential:
        sequence = _read_sequential(video, select, video.scaler(size))
        return _make_chunk(next(sequence), sequence, len(video.times))
    video = video.counted(progress)
    return _read_parallel(video, select(video), size, progress)


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
    """Reads a video in chunks, in constant memory except for the times of all frames (24 bytes per frame).

        for video in fewtokens.stream("clip.mp4", chunk=32, size=224):
            print(video.times, video.frames.shape)

    Args:
        path: a video file, an image, or a folder of images.
        chunk: number of frames per chunk; the last chunk may have fewer. Default: 32.
        fps: sampling rate in frames per second. Default: every frame.
        size: short side in pixels, which preserves the aspect ratio, or (height, width). Default: the original size.
        start: time of the first frame to read, in seconds after the first frame of the video. Default: 0.
        end: only frames before this time, in seconds, are read. Default: the end of the video.
        video_stream: index of the video stream if the file has several. Default: the one that FFmpeg ranks best.
        allow_truncated: whether to read all frames of a damaged file that can be decoded, instead of raising an error.

    Yields:
        A `Video` for each chunk, with times relative to the first frame of the file. Concatenated, the chunks equal the
        result of `read`.

    Raises:
        VideoError: see `read`. A truncated file is rejected before the first chunk; damage in the middle may be
            detected only when it is reached.
        ValueError: an argument is invalid.
    """
    check_request(None, fps, size, start, end)
    if not isinstance(chunk, int) or chunk < 1:
        raise ValueError(f"chunk must be at least 1 frame, got {chunk!r}")
    name = str(path)
    with _as_video_error(name):
        source = _open(Path(path), video_stream, allow_truncated, None)
        sequence = _read_sequential(
            source, lambda source: select_frames(source.times, None, fps, start, end, name), source.scaler(size)
        )
        for first in sequence:
            yield _make_chunk(first, islice(sequence, chunk - 1), chunk)


@dataclass(frozen=True)
class _Frame:
    """A frame, its source and index, and the number of frames from it to the last one."""

    image: Tensor
    source: Source
    index: int
    remaining: int

    __repr__ = shape_repr


def _read_sequential(source: Source, select: Select, scaler: Scaler) -> Iterator[_Frame]:
    """Yields frames; after an index mismatch, continues after the last yielded frame and locates frames by counting."""
    latest = -np.inf
    while True:
        indices = select(source)
        indices = indices[source.times[indices] > latest]
        decoded = chain.from_iterable(source.frames(part) for part in source.parts(indices))
        try:
            for n, frame in enumerate(decoded):
                image = torch.from_numpy(scaler.frame(frame))
                latest = float(source.times[indices[n]])
                yield _Frame(image, source, int(indices[n]), len(indices) - n)
            return
        except IndexMismatch:
            assert isinstance(source, VideoFile)
            source = source.counted()


def _make_chunk(first: _Frame, others: Iterator[_Frame], length: int) -> Video:
    """Stacks the first frame and the others into a video of at most `length` frames."""
    height, width = first.image.shape[1:]
    check_bytes(min(length, first.remaining), height, width, first.source.name)
    frames = [first, *others]
    video = _make_video(frames[-1].source, torch.stack([frame.image for frame in frames]), np.zeros(0, dtype=np.int64))
    times = torch.tensor([float(frame.source.times[frame.index]) for frame in frames], dtype=torch.float64)
    return replace(video, times=times)


@contextmanager
def _as_video_error(name: str) -> Iterator[None]:
    """Converts errors of the operating system, of FFmpeg and of memory allocation to `VideoError`."""
    import av

    try:
        yield
    except VideoError:
        raise
    except (av.error.FFmpegError, OSError, UnicodeError) as error:
        raise VideoError(f"{name}: cannot be read ({reason(error)})") from None
    except MemoryError:
        raise VideoError(f"{name}: does not fit in memory; pass frames=, fps= or size=") from None


def _open(
    source: str | Path | NDArray[Any] | Tensor, video_stream: int | None, allow_truncated: bool,
    progress: Progress | None,
) -> Source:  # fmt: skip
    if not isinstance(source, str | os.PathLike):
        return _Array(source)
    path = Path(source)
    if "\0" in str(path) or not path.exists():
        raise VideoError(f"{path}: no such file")
    if path.is_dir():
        return Folder(path)
    return Animation(path) if is_image(path) else VideoFile.open(path, video_stream, allow_truncated, progress)


def _call_picker(pick: Picker, times: NDArray[np.float64]) -> NDArray[np.int64]:
    indices = np.asarray(pick(times), dtype=np.int64)
    if not len(indices) or indices.min() < 0 or indices.max() >= len(times):
        raise ValueError(f"pick= must return frame indices in 0..{len(times) - 1}, got {indices.tolist()[:8]}")
    return indices


def _read_parallel(source: Source, indices: NDArray[np.int64], size: Size | None, progress: Progress | None) -> Video:
    """Reads the frames at these indices, with as many threads as PyTorch has.

    Each part is decoded by one thread. Threads without a part convert the frames that others have decoded.
    """
    unique, inverse = np.unique(indices, return_inverse=True)
    scaler = source.scaler(size)
    parts = source.parts(unique)
    decoded = source.frames(parts[0])
    first = next(decoded)
    height, width = scaler.shape_of(first)
    check_bytes(len(indices), height, width, source.name)
    with torch.inference_mode(False):
        video = torch.empty(len(unique), 3, height, width, dtype=torch.uint8)
    frames = video.numpy()
    lock, done, stop = Lock(), count(1), Event()

    def fill(start: int, decoded: Iterator[Any], scaler: Scaler) -> None:
        def convert(n: int, frame: Any) -> None:
            scaler.frame(frame, frames[n])
            if progress is not None:
                with lock:
                    progress(next(done), len(unique))

        _call_behind(pool, convert, takewhile(lambda _: not stop.is_set(), decoded), start)

    starts = np.cumsum([0] + [len(part) for part in parts])
    iterators = [chain([first], decoded), *(source.frames(part) for part in parts[1:])]
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        futures = [
            pool.submit(fill, int(start), part, scaler.copy()) for start, part in zip(starts, iterators, strict=False)
        ]
        try:
            for future in futures:
                future.result()
        except BaseException:  # including KeyboardInterrupt
            stop.set()
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    if len(unique) != len(indices) or (inverse[1:] < inverse[:-1]).any():
        video = video[torch.from_numpy(inverse)]
    return _make_video(source, video, indices)


def _call_behind(pool: ThreadPoolExecutor, function: Callable[[int, T], None], items: Iterable[T], start: int) -> None:
    """Calls a function with the number of each item, from `start`, and the item, while the next item is made.

    Another thread of the pool makes the call if one is free, otherwise this thread does after the next item is made.
    The calls are made sequentially. This thread releases each item before it makes the next but one.
    """
    waiting: tuple[Future[None], int, list[T]] | None = None

    def call(n: int, box: list[T]) -> None:
        function(n, box[0])

    def finish() -> None:
        if waiting is not None:
            future, n, box = waiting
            if future.cancel():
                call(n, box)
            else:
                future.result()
            box.clear()  # the pool may keep the arguments of a call for longer

    for n, item in enumerate(items, start):
        finish()
        box = [item]
        waiting = pool.submit(call, n, box), n, box
    finish()


def _make_video(source: Source, frames: Tensor, indices: NDArray[np.int64]) -> Video:
    path = None if isinstance(source, _Array) else source.name
    times = torch.from_numpy(source.times[indices].astype(np.float64))
    return Video(frames, times, source.duration, source.fps, path, source.source_size)


class _Array:
    """Frames in memory as a source."""

    name = "array"
    source_size = None

    def __init__(self, array: NDArray[Any] | Tensor) -> None:
        try:
            pixels = torch.as_tensor(array)
        except (TypeError, ValueError, RuntimeError) as error:
            raise VideoError(f"an array of frames must contain numbers ({' '.join(str(error).split())})") from None
        shape = list(pixels.shape)
        pixels = pixels[None] if pixels.ndim == 3 else pixels
        if pixels.ndim != 4 or 0 in pixels.shape or 3 not in (pixels.shape[1], pixels.shape[3]):
            raise VideoError(f"an array of frames must be [T,H,W,3] or [T,3,H,W], got {shape}")
        if pixels.shape[3] == 3 and pixels.shape[1] != 3:
            pixels = pixels.permute(0, 3, 1, 2)
        if pixels.is_floating_point():
            if not bool(((pixels >= -1e-3) & (pixels <= 1.001)).all()):
                raise VideoError("an array of floats must be in 0..1; divide by 255, or pass uint8")
        elif pixels.dtype != torch.uint8:
            raise VideoError(f"an array of frames must be uint8, or float in 0..1, got {pixels.dtype}")
        self._pixels = pixels
        self.times: NDArray[np.float64] = np.arange(len(pixels)) / DEFAULT_FPS
        self.duration: float | None = len(pixels) / DEFAULT_FPS
        self.fps: float | None = DEFAULT_FPS

    def scaler(self, size: Size | None) -> Scaler:
        return Scaler(size, self.name)

    def parts(self, indices: NDArray[np.int64]) -> list[NDArray[np.int64]]:
        return [indices]

    def frames(self, indices: NDArray[np.int64]) -> Iterator[NDArray[np.uint8]]:
        """Yields the frames at these indices, uint8 [H,W,3] each."""
        for n in indices.tolist():
            image = self._pixels[n].detach().cpu()
            if image.is_floating_point():
                image = (image.clamp(0, 1) * 255).round().byte()
            yield image.permute(1, 2, 0).numpy()
