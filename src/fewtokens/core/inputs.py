"""Whatever a video is given as, brought to frames and times: a path, a `Video`, an array, a tensor, PIL images."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from fewtokens.video import Video, read

# How a file is read if nothing else is asked for: frames, and the short side in pixels.
FRAMES, SIZE = 16, 224

TAKES = (
    "a path, a Video, frames [T,3,H,W] or [B,T,3,H,W], an image [3,H,W], a NumPy array (channels first or last), PIL "
    "images, Tokens, or a list of these"
)


def frames_of(video: Any, times: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
    """Frames [B,T,3,H,W], uint8 or float in 0..1, and their seconds.

    Args:
        video: a path, of which 16 frames are read, spread evenly, with a short side of 224 pixels; a `Video`; a tensor
            [T,3,H,W], [B,T,3,H,W] or [3,H,W]; a NumPy array of these shapes, or with channels last; a PIL image, or a
            sequence of them of one size, the frames of a video.
        times: seconds of each frame, [T] or [B,T]; by default those that a path or a `Video` has.

    Raises:
        ValueError: anything else, in one line that says what is taken.
    """
    if isinstance(video, str | os.PathLike):
        video = read(os.fspath(video), frames=FRAMES, size=SIZE)
    if isinstance(video, Video):
        return video.frames[None], video.times if times is None else times
    if isinstance(video, Image.Image):
        video = [video]
    if isinstance(video, Sequence) and len(video) and all(isinstance(one, Image.Image) for one in video):
        video = _from_images(video)
    if isinstance(video, np.ndarray):
        video = _channels_first(video)
    if not isinstance(video, Tensor):
        raise ValueError(f"cannot read a video from {type(video).__name__}: give {TAKES}")
    return _checked(video), times


def is_list_of_videos(video: Any) -> bool:
    """Whether this is a list of things that are videos each: PIL images in a list are the frames of one."""
    return isinstance(video, list | tuple) and not (video and all(isinstance(one, Image.Image) for one in video))


def _from_images(images: Sequence[Image.Image]) -> Tensor:
    sizes = sorted({image.size for image in images})
    if len(sizes) > 1:
        raise ValueError(f"the frames of a video need one size, these images have {len(sizes)}, such as {sizes[:2]}")
    return torch.stack([torch.from_numpy(np.array(image.convert("RGB"))) for image in images]).movedim(-1, 1)


def _channels_first(array: np.ndarray[Any, Any]) -> Tensor:
    if array.dtype != np.uint8 and not np.issubdtype(array.dtype, np.floating):
        raise ValueError(f"frames are uint8, or float in 0..1, got {array.dtype}")
    tensor = torch.from_numpy(np.ascontiguousarray(array))
    last = array.ndim >= 3 and array.shape[-1] == 3 and array.shape[-3] != 3
    return tensor.movedim(-1, -3) if last else tensor


def _checked(frames: Tensor) -> Tensor:
    shape = list(frames.shape)
    if frames.ndim not in (3, 4, 5) or frames.shape[-3] != 3:
        hint = "; channels come first, so permute" if frames.ndim >= 3 and frames.shape[-1] == 3 else ""
        raise ValueError(f"frames must be [3,H,W], [T,3,H,W] or [B,T,3,H,W], got {shape}{hint}")
    if 0 in shape:
        raise ValueError(f"there is nothing in frames of {shape}")
    if frames.dtype != torch.uint8 and not frames.is_floating_point():
        raise ValueError(f"frames are uint8, or float in 0..1, got {frames.dtype}")
    if frames.ndim == 3:
        frames = frames[None]
    return frames[None] if frames.ndim == 4 else frames
