"""Policies: which of several rates encodes a video. A larger rate has fewer tokens."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence

import torch
from PIL import Image
from torch import Tensor

# From frames [B,T,3,H,W] in 0..1 to the rate of each video, int64 [B].
Policy = Callable[[Tensor], Tensor]


def constant(rate: int) -> Policy:
    """The same rate for all videos."""
    return lambda frames: torch.full((len(frames),), rate, device=frames.device)


def by_score(scores: Tensor, thresholds: Sequence[float]) -> Policy:
    """The rates of scores given by the user, such as those of captions in CAT (1 to 9, larger for more detail).

    Args:
        scores: [B], of the videos of the batch, in order.
        thresholds: scores from which on a video has one rate less, ascending; as many as rates, less one.
    """
    rates = _rates(scores, thresholds)
    return lambda frames: rates.to(frames.device)


def by_jpeg(thresholds: Sequence[float], quality: int = 75) -> Policy:
    """Rates by the bits per pixel of a JPEG file of the middle frame, less those of a black frame.

    Args:
        thresholds: bits per pixel from which on a video has one rate less, ascending; as many as rates, less one.
        quality: of the file, 1 to 95.
    """

    def policy(frames: Tensor) -> Tensor:
        empty = jpeg_bits(torch.zeros_like(frames[0, 0]), quality)
        sizes = torch.tensor([jpeg_bits(video[len(video) // 2], quality) - empty for video in frames])
        return _rates(sizes / (frames.shape[-2] * frames.shape[-1]), thresholds).to(frames.device)

    return policy


def by_error(reconstruct: Callable[[Tensor, int], Tensor], rates: int, target: float) -> Policy:
    """The largest rate whose mean squared error is at most the target, or 0 if none is: the oracle of the decoder.

    It searches by bisection, so it assumes that the error grows with the rate.

    Args:
        reconstruct: from frames and a rate to decoded frames in 0..1.
        rates: number of rates.
        target: mean squared error of pixels in 0..1.
    """

    def policy(frames: Tensor) -> Tensor:
        low = torch.zeros(len(frames), dtype=torch.int64, device=frames.device)
        high = torch.full_like(low, rates - 1)
        while bool((low < high).any()):
            middle = (low + high + 1) // 2
            errors = torch.zeros(len(frames), device=frames.device)
            for rate in middle.unique().tolist():
                index = middle == rate
                errors[index] = (reconstruct(frames[index], rate) - frames[index]).square().mean((1, 2, 3, 4)).float()
            reached = errors <= target
            low, high = torch.where(reached, middle, low), torch.where(reached, high, middle - 1)
        return low

    return policy


def jpeg_bits(frame: Tensor, quality: int = 75) -> int:
    """Returns the bits of a frame [3,H,W] in 0..1 as a JPEG file."""
    pixels = frame.float().clamp(0, 1).mul(255).round().byte().movedim(0, -1).cpu().numpy()
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "jpeg", quality=quality)
    return 8 * file.tell()


def _rates(scores: Tensor, thresholds: Sequence[float]) -> Tensor:
    """The number of thresholds above each score."""
    if list(thresholds) != sorted(thresholds):
        raise ValueError(f"thresholds must be ascending, got {tuple(thresholds)}")
    limits = torch.tensor(list(thresholds), dtype=scores.dtype if scores.is_floating_point() else torch.float32)
    return (scores.cpu()[:, None] < limits).sum(1)
