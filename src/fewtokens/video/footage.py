"""`Footage`: a video of which only the index has been read, and `SmallFrames`, which decodes thumbnails on demand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

# Reads the frames at ascending indices, with this short side, uint8 [n,3,h,w].
ReadSmall = Callable[[NDArray[np.int64], int], Tensor]


class SmallFrames:
    """A sequence of thumbnails, decoded when they are read: `thumbnails[8:16]` is uint8 [8,3,h,w].

    Nothing is kept, so a second access decodes again.

    Attributes:
        times: float64 [T], seconds of each frame.
        index: int64 [T], index of each frame in the source, ascending; a frame may occur several times.
        decoded: number of thumbnails decoded so far.
        at_once: number of frames to read at a time, about 64 MiB of a wide video.
    """

    def __init__(self, times: Tensor, index: NDArray[np.int64], size: int, read: ReadSmall) -> None:
        self.times, self.decoded = times, 0
        self.index, self._size, self._read = index, size, read
        self.at_once = max(16, (1 << 26) // (6 * size * size))

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, part: slice) -> Tensor:
        index = self.index[part]
        if not len(index):
            raise IndexError(f"no thumbnail in {part} of {len(self)}")
        self.decoded += len(np.unique(index))
        return self._read(index, self._size)

    def distinct(self) -> tuple[SmallFrames, Tensor]:
        """Returns the different frames among them, and which of these each one is, int64 [T]."""
        index, first, which = np.unique(self.index, return_index=True, return_inverse=True)
        if len(index) == len(self.index):
            return self, torch.arange(len(index))
        return SmallFrames(self.times[first], index, self._size, self._read), torch.from_numpy(which)


class Footage:
    """A video of which nothing has been decoded: its times, its keyframes and, on demand, its thumbnails.

    Attributes:
        name: path of the source, or "array".
        times: float64 [n], seconds of all frames from the start to the end that are read.
        keyframes: int64 [m], indices of the keyframes among them; None if the source has no reliable index of them.
        stream: index of the requested video stream, or None.
    """

    def __init__(
        self,
        name: str,
        times: NDArray[np.float64],
        keyframes: NDArray[np.int64] | None,
        span: NDArray[np.int64],
        read: ReadSmall,
        stream: int | None = None,
    ) -> None:
        self.name, self.stream = name, stream
        self.times = torch.from_numpy(times[span])
        self.keyframes: Tensor | None = None
        if keyframes is not None:
            within = keyframes[(keyframes >= span[0]) & (keyframes <= span[-1])] - span[0]
            # A part that starts between two keyframes may contain none.
            self.keyframes = torch.from_numpy(within) if len(within) else None
        self._span, self._read = span, read

    def thumbnails(self, index: Tensor, size: int, near: float = 0.0) -> SmallFrames:
        """Returns the frames at ascending indices, int64 [T], with a short side of `size` pixels, not yet decoded.

        The nearest keyframe stands for a frame that is at most `near` seconds from it.
        """
        if near and self.keyframes is not None:
            index = self._nearest_keyframes(index, self.keyframes, near)
        return SmallFrames(self.times[index], self._span[index.numpy()], size, self._read)

    def _nearest_keyframes(self, index: Tensor, keyframes: Tensor, near: float) -> Tensor:
        """The indices with those of the nearest keyframes in place of frames within `near` seconds of them."""
        seconds, of_keys = self.times[index], self.times[keyframes]
        after = torch.searchsorted(of_keys, seconds).clamp(max=len(keyframes) - 1)
        before = (after - 1).clamp(min=0)
        distance = (of_keys[torch.stack([before, after])] - seconds).abs()
        nearest = torch.where(distance[0] <= distance[1], before, after)
        # Times are sums of rounded intervals.
        return torch.where(distance.amin(0) <= near + 1e-6, keyframes[nearest], index)


class Choice:
    """The result of selecting frames of a `Footage`.

    Attributes:
        index: int64 [K], indices of the frames to read, among `Footage.times`, ascending.
        selection: what the selector returned.
        arguments: the arguments of `read` that select these frames, as plain values.
    """

    def __init__(self, index: Tensor, selection: Any, arguments: dict[str, Any]) -> None:
        self.index, self.selection, self.arguments = index, selection, arguments


# Builds the function that selects frames of a `Footage`, from `select`, `question`, `scorer` and `near` of `read`.
Maker = Callable[[Any, str | None, Any, float], Callable[[Footage], Choice]]
_make: Maker | None = None


def set_selection(make: Maker) -> None:
    """Sets what `read(select=)` calls; `fewtokens.selection` registers it, since this package imports no methods."""
    global _make
    _make = make


def chooser(select: Any, question: str | None, scorer: Any, near: float) -> Callable[[Footage], Choice]:
    """Returns the function that selects frames, see `read`.

    Raises:
        ValueError: an argument is invalid, or `fewtokens.selection` has not been imported.
    """
    if _make is None:
        raise ValueError("no frame selectors are registered; import fewtokens.selection, or call fewtokens.read")
    return _make(select, question, scorer, near)
