"""Resizes decoded frames and images to one size, and applies their rotation and mirroring."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fewtokens.video.select import Size, check_pixels, target_size
from fewtokens.video.types import VideoError

# swscale flags. Without accurate rounding and full chroma, results are too dark by 1 to 2 of 255.
_BICUBIC, _AREA = 0x4, 0x20
_ACCURATE = 0x2000 | 0x4000 | 0x40000  # FULL_CHR_H_INT | FULL_CHR_H_INP | ACCURATE_RND
# Formats that swscale converts to planar RGB 2 to 3 times faster than to packed RGB; see `_has_equal_planes`.
_PLANAR = frozenset(["yuv420p", "yuvj420p", "yuv422p", "yuvj422p", "yuv444p", "yuvj444p"])


class Scaler:
    """Converts decoded frames and images to RGB of one size; resizes and converts colors in one swscale pass.

    The first image determines the size of all images. Non-square pixels are made square, rotation and mirroring are
    applied, and transparency is composited over black. Images are reduced by area averaging and enlarged by bicubic
    interpolation; an image that is not resized keeps exactly the pixels that FFmpeg decodes.

    Args:
        size: see `read`.
        name: name of the video, for error messages.
        aspect: pixel aspect ratio, width over height.
    """

    def __init__(self, size: Size | None, name: str, aspect: float = 1.0) -> None:
        self.size, self.name, self.aspect = size, name, aspect
        self.shape: tuple[int, int] | None = None
        self._convert: Any = None
        self._rotations: list[tuple[Any, tuple[bool, bool, bool]]] = []  # frames at which the rotation changes

    def copy(self) -> Scaler:
        """Returns a scaler for the same video, for use in another thread."""
        other = Scaler(self.size, self.name, self.aspect)
        other.shape = self.shape
        return other

    def shape_of(self, frame: Any) -> tuple[int, int]:
        """Returns the height and width of the results; determined by this frame if it is the first one.

        Raises:
            VideoError: the frame is too large, before or after resizing.
        """
        (height, width), (transposed, _, _) = self._plan(frame)
        return (width, height) if transposed else (height, width)

    def frame(self, frame: Any, out: NDArray[np.uint8] | None = None) -> NDArray[np.uint8]:
        """Converts a decoded `av.VideoFrame`, or an image, uint8 [H,W,3], to uint8 [3,H,W].

        Args:
            frame: frame or image.
            out: memory for the result, of the same shape.

        Raises:
            VideoError: the frame is too large, before or after resizing, or its pixel format cannot be converted.
        """
        shape, (transposed, flip_rows, flip_columns) = self._plan(frame)
        planes: Iterable[NDArray[np.uint8]]
        if isinstance(frame, np.ndarray):
            planes = self._resize(frame, *shape).transpose(2, 0, 1)
        elif any(component.is_alpha for component in frame.format.components):
            # Composited before resizing, so that the color of transparent pixels does not bleed into their neighbors.
            full = self._convert_frame(frame, frame.height, frame.width, "rgba").to_ndarray()
            full = (full[..., :3] * (full[..., 3:] / 255.0)).round().astype(np.uint8)
            planes = self._resize(full, *shape).transpose(2, 0, 1)
        elif _has_equal_planes(frame, *shape):
            planes = _planes(self._convert_frame(frame, *shape, "gbrp"))
        else:
            planes = self._convert_frame(frame, *shape, "rgb24").to_ndarray().transpose(2, 0, 1)
        if out is None:
            out = np.empty((3, *(shape[::-1] if transposed else shape)), dtype=np.uint8)
        for channel, plane in zip(out, planes, strict=True):
            plane = plane.T if transposed else plane
            channel[...] = plane[:: -1 if flip_rows else 1, :: -1 if flip_columns else 1]
        return out

    def _plan(self, frame: Any) -> tuple[tuple[int, int], tuple[bool, bool, bool]]:
        """Returns the height and width to resize a frame to, and its orientation, which is applied after that.

        The first call determines the size of all results.
        """
        if isinstance(frame, np.ndarray):
            height, width, steps = frame.shape[0], frame.shape[1], (False, False, False)
        else:
            check_pixels(frame.width, frame.height, self.name)
            height, width, steps = frame.height, max(1, round(frame.width * self.aspect)), self._orientation(frame)
        transposed = steps[0]
        if self.shape is None:
            self.shape = target_size(*((height, width) if transposed else (width, height)), self.size, self.name)
        return self.shape[::-1] if transposed else self.shape, steps

    def _orientation(self, frame: Any) -> tuple[bool, bool, bool]:
        """Returns the orientation of a frame, see `orientation`; computed only if the rotation changes.

        Reading the side data of a frame creates a reference cycle, so its memory is freed only when the garbage
        collector runs, and reused in varying order (see `_without_threads`). The side data of as few frames as
        possible are therefore read, and those frames are kept alive.
        """
        if not self._rotations or self._rotations[-1][0].rotation != frame.rotation:
            self._rotations.append((frame, orientation(frame)))
        return self._rotations[-1][1]

    def _resize(self, pixels: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
        import av

        if pixels.shape[:2] == (height, width):
            return pixels
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
        return self._convert_frame(frame, height, width, "rgb24").to_ndarray()

    def _convert_frame(self, frame: Any, height: int, width: int, pixel_format: str) -> Any:
        import av
        from av.video.reformatter import VideoReformatter

        if self._convert is None:
            self._convert = _without_threads(VideoReformatter().reformat)  # caches its tables between frames
        flags = _BICUBIC
        if (height, width) != (frame.height, frame.width):
            flags = _ACCURATE | (_AREA if height * width < frame.height * frame.width else _BICUBIC)
        try:
            return self._convert(frame, width, height, pixel_format, interpolation=flags)
        except (av.error.FFmpegError, ValueError) as error:
            raise VideoError(
                f"{self.name}: cannot convert frames ({frame.format.name}, {frame.width}x{frame.height}) to RGB of "
                f"{width}x{height} ({' '.join(str(error).split())})"
            ) from None


def _has_equal_planes(frame: Any, height: int, width: int) -> bool:
    """Whether conversion of a frame to planar RGB of this size equals conversion to packed RGB.

    For packed RGB, swscale has variants that round in another way: for one or two lines, and for incomplete blocks.
    """
    if frame.format.name not in _PLANAR:
        return False
    if (height, width) == (frame.height, frame.width):
        return height % 2 == 0 and width % 16 == 0
    return height * width < frame.height * frame.width and 2 * height < frame.height


def _planes(frame: Any) -> list[NDArray[np.uint8]]:
    """Returns the red, green and blue plane of a planar RGB frame, [H,W] each, without copying."""
    green, blue, red = (
        np.frombuffer(plane, np.uint8).reshape(-1, plane.line_size)[: frame.height, : frame.width]
        for plane in frame.planes
    )
    return [red, green, blue]


def _without_threads(reformat: Callable[..., Any]) -> Callable[..., Any]:
    """Wraps a swscale function so that it uses one thread.

    Its threads release frames after a variable delay, so that the memory of a frame is reused in varying order. Holes
    that a decoder leaves in damaged frames would then show different content each time.
    """

    def convert(*arguments: Any, interpolation: int) -> Any:
        try:
            return reformat(*arguments, interpolation=interpolation, threads=1)
        except TypeError:  # older versions of PyAV have no such argument
            return reformat(*arguments, interpolation=interpolation)

    return convert


def orientation(frame: Any) -> tuple[bool, bool, bool]:
    """Returns which steps display a stored frame, in this order: transpose, flip rows, flip columns.

    The display matrix maps a stored point (x, y) to (a x + c y, b x + d y). All eight rotations and reflections are
    exact; any other matrix is replaced by the nearest of them.
    """
    data = frame.side_data.get("DISPLAYMATRIX") if len(frame.side_data) else None
    if data is None:
        return False, False, False
    a, b, _, c, d = (int(value) for value in np.frombuffer(bytes(data), dtype=np.int32)[:5])
    if abs(b) + abs(c) > abs(a) + abs(d):
        return True, b < 0, c < 0
    return False, d < 0, a < 0
