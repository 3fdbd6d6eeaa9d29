"""Converts the inputs that a pipeline accepts (paths, `Video`, arrays, tensors, PIL images) to frames and times."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from fewtokens.video import Video, read

# Defaults for reading a file: number of frames, and the short side in pixels.
DEFAULT_FRAMES, DEFAULT_SIZE = 16, 224

ACCEPTED = (
    "a path, a Video, frames [T,3,H,W] or [B,T,3,H,W], an image [3,H,W], a NumPy array (channels first or last), PIL "
    "images, Tokens, or a list of these"
)


def to_frames(video: Any, times: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
    """Converts a video to a batch of frames.

    Args:
        video: a path, of which 16 evenly spaced frames are read with a short side of 224 pixels; a `Video`; a tensor
            [T,3,H,W], [B,T,3,H,W] or [3,H,W]; a NumPy array of these shapes or with channels last; a PIL image, or a
            sequence of PIL images of equal size, which are the frames of one video.
        times: seconds of each frame, [T] or [B,T]. Defaults to those of the path or `Video`, if any.

    Returns:
        Frames [B,T,3,H,W], uint8 or float in 0..1, and their times, or None if unknown.

    Raises:
        ValueError: any other input; the message lists the accepted ones.
    """
    if isinstance(video, str | os.PathLike):
        video = read_video(video)
    if isinstance(video, Video):
        return video.frames[None], video.times if times is None else times
    if isinstance(video, Image.Image):
        video = [video]
    if isinstance(video, Sequence) and len(video) and all(isinstance(image, Image.Image) for image in video):
        video = _from_images(video)
    if isinstance(video, np.ndarray):
        video = _channels_first(video)
    if not isinstance(video, Tensor):
        raise ValueError(f"a video must be {ACCEPTED}, got {type(video).__name__}")
    return _check_frames(video), times


def read_video(path: str | os.PathLike[str]) -> Video:
    """Reads 16 evenly spaced frames with a short side of 224 pixels."""
    return read(os.fspath(path), frames=DEFAULT_FRAMES, size=DEFAULT_SIZE)


def is_list_of_videos(video: Any) -> bool:
    """Whether `video` is a list of videos; a list of PIL images is not, since these are the frames of one video."""
    return isinstance(video, list | tuple) and not (video and all(isinstance(item, Image.Image) for item in video))


def _from_images(images: Sequence[Image.Image]) -> Tensor:
    sizes = sorted({image.size for image in images})
    if len(sizes) > 1:
        raise ValueError(f"all frames of a video must have the same size, got {len(sizes)} sizes, such as {sizes[:2]}")
    return torch.stack([torch.from_numpy(np.array(image.convert("RGB"))) for image in images]).movedim(-1, 1)


def _channels_first(array: np.ndarray[Any, Any]) -> Tensor:
    if array.dtype != np.uint8 and not np.issubdtype(array.dtype, np.floating):
        raise ValueError(f"frames must be uint8, or float in 0..1, got {array.dtype}")
    tensor = torch.from_numpy(np.ascontiguousarray(array))
    channels_last = array.ndim >= 3 and array.shape[-1] == 3 and array.shape[-3] != 3
    return tensor.movedim(-1, -3) if channels_last else tensor


def _check_frames(frames: Tensor) -> Tensor:
    shape = list(frames.shape)
    if frames.ndim not in (3, 4, 5) or frames.shape[-3] != 3:
        hint = "; permute them so that channels come first" if frames.ndim >= 3 and frames.shape[-1] == 3 else ""
        raise ValueError(f"frames must be [3,H,W], [T,3,H,W] or [B,T,3,H,W], got {shape}{hint}")
    if 0 in shape:
        raise ValueError(f"frames must not be empty, got {shape}")
    if frames.dtype != torch.uint8 and not frames.is_floating_point():
        raise ValueError(f"frames must be uint8, or float in 0..1, got {frames.dtype}")
    if frames.ndim == 3:
        frames = frames[None]
    return frames[None] if frames.ndim == 4 else frames
