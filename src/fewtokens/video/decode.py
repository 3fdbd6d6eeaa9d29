"""Decoding: exactly the wanted frames, by seeking where the packet index says that it is worth it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fewtokens.video.container import Index, index_of, opened
from fewtokens.video.select import Size, check_pixels, target_size
from fewtokens.video.types import VideoError

# A seek empties the decoder; below this many frames to skip, decoding on is quicker.
_WORTH_A_SEEK = 12

Progress = Callable[[int, int], None]


class Broken(Exception):
    """Decoding came to data that cannot be decoded."""


def decode_at(
    path: Path,
    number: int | None,
    index: Index,
    wanted: NDArray[np.int64],
    convert: Converter,
    progress: Progress | None = None,
) -> list[Tensor] | None:
    """The frames with these time stamps, uint8 [3,H,W] each; None where the file does not keep to its index.

    Between two wanted frames it seeks if a keyframe lies far enough ahead, and decodes on otherwise.
    """
    import av

    assert index.pts is not None
    frames: list[Tensor] = []
    place = np.searchsorted(index.pts, wanted)
    # The keyframe from which each wanted frame can be decoded, and its number in the order of showing.
    key = index.keys[np.maximum(np.searchsorted(index.keys, wanted, side="right") - 1, 0)]
    key_place = np.searchsorted(index.pts, key)
    with opened(path, number) as (container, stream):
        source: Iterator[Any] = iter(())
        at = -1  # number of the last frame that was decoded; -1 = nothing yet
        try:
            for target, n, from_key, k in zip(wanted, place, key, key_place, strict=True):
                if at < 0 or k - at > _WORTH_A_SEEK:
                    container.seek(int(from_key), stream=stream, backward=True)
                    source = _wanted_first(container, stream, set(wanted.tolist()))
                for frame in source:
                    if frame.pts is None or frame.pts > target:
                        return None
                    if frame.pts == target:
                        if frame.is_corrupt:
                            return None
                        break
                else:
                    return None
                at = int(n)
                frames.append(convert(frame))
                if progress is not None:
                    progress(len(frames), len(wanted))
        except (av.error.FFmpegError, OSError):
            return None
    return frames


def _wanted_first(container: Any, stream: Any, wanted: set[int]) -> Iterator[Any]:
    """Decodes on from here, sparing frames that are neither wanted nor referred to by others."""
    context = stream.codec_context
    for packet in container.demux(stream):
        context.skip_frame = "DEFAULT" if packet.pts is None or packet.pts in wanted else "NONREF"
        yield from packet.decode()


def decode_all(
    path: Path, number: int | None, start: float = 0.0, *, broken: bool = False
) -> Iterator[tuple[Any, int | None]]:
    """Every frame in the order of showing, with its time stamp.

    Args:
        path: the file.
        number: which video stream.
        start: begins at the keyframe before this second, if the file lets it.
        broken: the file is known to be cut or damaged.

    Raises:
        Broken: at the first frame that cannot be decoded.
    """
    import av

    with opened(path, number, one_thread=broken) as (container, stream):
        if start > 0 and stream.time_base:
            first = stream.start_time or 0
            try:
                container.seek(first + int(start / stream.time_base), stream=stream, backward=True)
            except (av.error.FFmpegError, OSError):
                container.seek(0)
        try:
            for frame in container.decode(stream):
                # After a seek the first frames may lack what they refer to; they are before the start anyway.
                if frame.is_corrupt and start == 0:
                    raise Broken
                yield frame, frame.pts
        except (av.error.FFmpegError, OSError):
            raise Broken from None


def countable(path: Path, number: int | None, *, broken: bool = False) -> tuple[list[int | None], bool]:
    """The time stamps of all frames that can be decoded, and whether it came to the end unbroken."""
    stamps: list[int | None] = []
    try:
        # One by one, so that those before the break are kept.
        for _, pts in decode_all(path, number, broken=broken):
            stamps.append(pts)
    except Broken:
        return stamps, False
    return stamps, True


class Converter:
    """Decoded frames to RGB tensors of one size: scaling and colours in one pass of swscale.

    The first frame settles the size, so that all frames of a video are of one size. Non-square pixels are
    made square, rotation is applied, transparency lies over black.
    """

    def __init__(self, size: Size | None, aspect: float, name: str) -> None:
        from av.video.reformatter import VideoReformatter

        self.size, self.aspect, self.name = size, aspect, name
        self.shape: tuple[int, int] | None = None
        self.scaler = VideoReformatter()  # keeps its tables from frame to frame

    def __call__(self, frame: Any) -> Tensor:
        check_pixels(frame.width, frame.height, self.name)
        turns = round(frame.rotation / 90) % 4
        if self.shape is None:
            width, height = max(1, round(frame.width * self.aspect)), frame.height
            self.shape = target_size(*((height, width) if turns % 2 else (width, height)), self.size)
        height, width = self.shape[::-1] if turns % 2 else self.shape
        alpha = any(component.is_alpha for component in frame.format.components)
        shrinks = height * width < frame.height * frame.width
        image = self.scaler.reformat(
            frame, width, height, "rgba" if alpha else "rgb24", interpolation="AREA" if shrinks else "BICUBIC"
        ).to_ndarray()
        if alpha:
            image = (image[..., :3] * (image[..., 3:] / 255.0)).round().astype(np.uint8)
        # FFmpeg's angle turns the stored picture counter-clockwise to what is shown.
        return torch.from_numpy(np.rot90(image, turns).copy() if turns else image).permute(2, 0, 1)


def sound_index(path: Path, number: int | None, allow_truncated: bool) -> tuple[Index, dict[str, Any]]:
    """The packet index of a whole file, or of what can be decoded of a cut one; and facts of the stream.

    Raises:
        VideoError: no frames; cut, and `allow_truncated` is not set.
    """
    with opened(path, number) as (container, stream):
        facts = {
            "time_base": float(stream.time_base or 1 / 90000),
            "fps": float(stream.average_rate) if stream.average_rate else None,
            "duration": _duration(container, stream),
            "width": stream.width,
            "height": stream.height,
            "aspect": _aspect(stream),
        }
        index = index_of(path, container, stream)
    if index.packets == 0 and not index.cut:
        raise VideoError(f"{path}: holds no frames")
    if index.cut:
        return cut_index(path, number, index, allow_truncated), facts
    return index, facts


def cut_index(path: Path, number: int | None, index: Index, allow_truncated: bool) -> Index:
    """The index of the frames that can be decoded of a broken file.

    Raises:
        VideoError: none can, or `allow_truncated` is not set; says how many there are.
    """
    stamps, _ = countable(path, number, broken=True)
    declared = index.declared or index.packets
    whole = f" of {declared}" if declared >= len(stamps) and declared else ""
    if not stamps:
        raise VideoError(f"{path}: is cut short or damaged, and none{whole} of its frames can be decoded")
    if not allow_truncated:
        raise VideoError(
            f"{path}: is cut short or damaged: only {len(stamps)}{whole} frames can be decoded; "
            "pass allow_truncated=True (--allow-truncated) to use them"
        )
    known = np.unique(np.array([pts for pts in stamps if pts is not None], dtype=np.int64))
    return Index(known if len(known) == len(stamps) else None, index.keys, len(stamps), declared, True)


def _duration(container: Any, stream: Any) -> float | None:
    if stream.duration and stream.time_base:
        return float(stream.duration * stream.time_base)
    return container.duration / 1e6 if container.duration else None


def _aspect(stream: Any) -> float:
    """Width of a pixel over its height; 1 where the file says nothing, or nonsense."""
    ratio = float(stream.sample_aspect_ratio or 1)
    return ratio if 0.05 < ratio < 20 else 1.0
