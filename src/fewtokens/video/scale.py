"""Pictures of one size out of frames of any size, turned as they are meant to be shown. One scaler for all sources."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fewtokens.video.select import Size, check_pixels, target_size
from fewtokens.video.types import VideoError

# Flags of swscale. Without accurate rounding and full chroma its results are 1 to 2 of 255 too dark.
_BICUBIC, _AREA = 0x4, 0x20
_ACCURATE = 0x2000 | 0x4000 | 0x40000  # FULL_CHR_H_INT | FULL_CHR_H_INP | ACCURATE_RND


class Scaler:
    """Decoded frames and arrays to RGB tensors of one size: scaling and colors in one pass of swscale.

    The first picture settles the size, so that all pictures of a video are of one size. Non-square pixels are made
    square, rotation and mirroring are applied, transparency lies over black. Pictures shrink by the mean of the area
    that each pixel covers and grow by a bicubic; one that keeps its size keeps the pixels that ffmpeg gives.

    Args:
        size: as in `read`.
        name: of the video, for errors.
        aspect: width of a pixel over its height.
    """

    def __init__(self, size: Size | None, name: str, aspect: float = 1.0) -> None:
        self.size, self.name, self.aspect = size, name, aspect
        self.shape: tuple[int, int] | None = None
        self._convert: Any = None
        self._turns: list[tuple[Any, tuple[bool, bool, bool]]] = []  # frames that turned, and how

    def again(self) -> Scaler:
        """Another one for pictures of the same video, for another thread."""
        other = Scaler(self.size, self.name, self.aspect)
        other.shape = self.shape
        return other

    def frame(self, frame: Any) -> Tensor:
        """uint8 [3,H,W] of a decoded `av.VideoFrame`.

        Raises:
            VideoError: too large, before or after, or of a pixel format that cannot be converted.
        """
        check_pixels(frame.width, frame.height, self.name)
        turned, down, across = self._orientation(frame)
        shape = self._settled(max(1, round(frame.width * self.aspect)), frame.height, turned)
        alpha = any(component.is_alpha for component in frame.format.components)
        if alpha:
            # Laid over black before it is scaled: what is hidden must not bleed into its neighbors.
            whole = self._converted(frame, frame.height, frame.width, "rgba")
            whole = (whole[..., :3] * (whole[..., 3:] / 255.0)).round().astype(np.uint8)
            image = self._resized(whole, *shape)
        else:
            image = self._converted(frame, *shape, "rgb24")
        if turned:
            image = image.transpose(1, 0, 2)
        image = image[:: -1 if down else 1, :: -1 if across else 1]
        return torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)

    def _orientation(self, frame: Any) -> tuple[bool, bool, bool]:
        """That of the first frame, until one says another rotation.

        A frame whose side data were looked at is part of a cycle, which the garbage collector breaks at some time
        later. Its memory then goes to another frame each time (see `_without_threads`), so few are looked at, and
        they are kept.
        """
        if not self._turns or self._turns[-1][0].rotation != frame.rotation:
            self._turns.append((frame, orientation(frame)))
        return self._turns[-1][1]

    def array(self, pixels: NDArray[np.uint8]) -> Tensor:
        """uint8 [3,H,W] of uint8 [H,W,3]."""
        height, width = pixels.shape[:2]
        return torch.from_numpy(self._resized(pixels, *self._settled(width, height, False))).permute(2, 0, 1)

    def _settled(self, width: int, height: int, turned: bool) -> tuple[int, int]:
        """Height and width, as stored, of all pictures."""
        if self.shape is None:
            self.shape = target_size(*((height, width) if turned else (width, height)), self.size, self.name)
        return self.shape[::-1] if turned else self.shape

    def _resized(self, pixels: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
        import av

        if pixels.shape[:2] == (height, width):
            return pixels
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
        return self._converted(frame, height, width, "rgb24")

    def _converted(self, frame: Any, height: int, width: int, form: str) -> NDArray[np.uint8]:
        import av
        from av.video.reformatter import VideoReformatter

        if self._convert is None:
            self._convert = _without_threads(VideoReformatter().reformat)  # keeps its tables from frame to frame
        how = _BICUBIC
        if (height, width) != (frame.height, frame.width):
            how = _ACCURATE | (_AREA if height * width < frame.height * frame.width else _BICUBIC)
        try:
            return self._convert(frame, width, height, form, interpolation=how).to_ndarray()
        except (av.error.FFmpegError, ValueError) as error:
            raise VideoError(
                f"{self.name}: its frames ({frame.format.name}, {frame.width}x{frame.height}) cannot be made RGB of "
                f"{width}x{height} ({' '.join(str(error).split())})"
            ) from None


def _without_threads(reformat: Callable[..., Any]) -> Callable[..., Any]:
    """swscale without threads of its own.

    They let go of a frame at some time later. Its memory then goes to another frame each time, and where a decoder
    leaves holes in damaged frames, what shows through them would be another picture each time.
    """

    def convert(*arguments: Any, interpolation: int) -> Any:
        try:
            return reformat(*arguments, interpolation=interpolation, threads=1)
        except TypeError:  # older versions of PyAV have no threads here
            return reformat(*arguments, interpolation=interpolation)

    return convert


def orientation(frame: Any) -> tuple[bool, bool, bool]:
    """How a stored frame becomes what is shown: rows and columns swapped, then upside down, then left to right.

    The display matrix maps a stored point (x, y) to (a x + c y, b x + d y). All eight turns and mirrorings are
    exact; any other matrix is taken as the nearest one.
    """
    data = frame.side_data.get("DISPLAYMATRIX") if len(frame.side_data) else None
    if data is None:
        return False, False, False
    a, b, _, c, d = (int(value) for value in np.frombuffer(bytes(data), dtype=np.int32)[:5])
    if abs(b) + abs(c) > abs(a) + abs(d):
        return True, b < 0, c < 0
    return False, d < 0, a < 0
