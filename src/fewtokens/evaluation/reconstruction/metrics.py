"""What a reconstruction keeps of a video: PSNR, SSIM, MS-SSIM, errors over time, and the use of the codes.

Videos are float [B,T,3,H,W] in 0..1, values outside are clamped. Every measure of frames has one value per video,
float64 [B], and needs no weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from fewtokens.evaluation.reconstruction.lpips import Lpips, lpips
from fewtokens.methods.ops.codes import usage

MAX_PSNR = 60.0
"""The PSNR of equal frames in dB, as in libvmaf for 8 bits: one exact frame leaves the mean over frames finite."""

# Gaussian window of Wang et al. 2004.
_WINDOW, _SIGMA = 11, 1.5
_C1, _C2 = 0.01**2, 0.03**2
# Exponents of the scales, from fine to coarse (Wang, Simoncelli, Bovik 2003).
_SCALES = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)


def evaluate(
    original: Tensor,
    reconstruction: Tensor,
    codes: Tensor | None = None,
    *,
    codebook: int | Sequence[int] | None = None,
    chunk: int | None = None,
    first_chunk: int | None = None,
    perceptual: Lpips | None = None,
) -> dict[str, float]:
    """Returns the measures of videos, as means over the videos.

    Args:
        original, reconstruction: [B,T,3,H,W] or, for one video, [T,3,H,W], in 0..1.
        codes: int [...,Q]; -1 marks codes that do not exist. Without it the keys of codes are absent.
        codebook: number of entries, one for all Q codes of a token or Q of them. Required with `codes`.
        chunk, first_chunk: frames per chunk if the video was decoded in chunks, as for `seam_flicker`.
        perceptual: for LPIPS, which needs weights.

    Returns:
        "psnr" (dB, mean of the PSNR of each frame), "psnr_clip" (dB, PSNR of the error pooled over the video),
        "ssim", "ms_ssim" (0 to 1), "ms_ssim_scales" (the number of scales that the frames have room for),
        "temporal_error" (mean absolute error of frame differences, 0..1; absent for one frame), "flicker" (as
        `seam_flicker`; absent without `chunk`, or if there is only one chunk or every frame is one), "lpips" (absent
        without `perceptual`), and those of `code_health`. SSIM is absent for frames below 11 pixels.

    Raises:
        ValueError: shapes differ, values are not float, or `codes` come without `codebook`.
    """
    if original.ndim == 4 and reconstruction.ndim == 4:
        original, reconstruction = original[None], reconstruction[None]
    x, y = _pair(original, reconstruction)
    values = {"psnr": psnr(x, y), "psnr_clip": psnr(x, y, average="clip")}
    scales = num_scales(*x.shape[-2:])
    if scales:
        values |= {"ssim": ssim(x, y), "ms_ssim": ms_ssim(x, y)}
        values["ms_ssim_scales"] = torch.tensor(scales, dtype=torch.float64)
    if x.shape[1] > 1:
        values["temporal_error"] = temporal_difference_error(x, y)
    if chunk and 0 < int(_seams(x.shape[1], chunk, first_chunk or chunk).sum()) < x.shape[1] - 1:
        values["flicker"] = seam_flicker(x, y, chunk, first=first_chunk)
    if perceptual is not None:
        values["lpips"] = lpips(x, y, perceptual)
    report = {name: float(value.mean()) for name, value in values.items()}
    if codes is not None:
        if codebook is None:
            raise ValueError("codes need the number of entries of their codebook: pass codebook=")
        report |= code_health(codes, codebook)
    return report


def psnr(original: Tensor, reconstruction: Tensor, average: Literal["frames", "clip"] = "frames") -> Tensor:
    """Peak signal-to-noise ratio in dB, at most `MAX_PSNR`; [B].

    Args:
        original, reconstruction: [B,T,3,H,W] in 0..1.
        average: "frames" is the mean of the PSNR of each frame; "clip" is the PSNR of the squared error pooled over the
            video, which is never higher. They can differ by several dB.

    Raises:
        ValueError: shapes differ, values are not float, or another average.
    """
    if average not in ("frames", "clip"):
        raise ValueError(f"average must be 'frames' or 'clip', got {average!r}")
    x, y = _pair(original, reconstruction)
    error = (x - y).square().mean((2, 3, 4), dtype=torch.float64)
    if average == "clip":
        error = error.mean(1, keepdim=True)
    return (-10 * error.clamp(min=10 ** (-MAX_PSNR / 10)).log10()).mean(1)


def ssim(original: Tensor, reconstruction: Tensor) -> Tensor:
    """Structural similarity, the mean over frames, color channels and windows inside the frame; [B], at most 1.

    Wang et al., "Image quality assessment: from error visibility to structural similarity", 2004: Gaussian window of
    11x11 pixels with sigma 1.5. Equals scikit-image with `gaussian_weights=True, sigma=1.5,
    use_sample_covariance=False, data_range=1`; torchmetrics adds windows over the reflected border.

    Raises:
        ValueError: shapes differ, values are not float, or frames are below 11 pixels.
    """
    x, y = _pair(original, reconstruction)
    _check_scales(1, x)
    similarity, _ = _similarity(x.flatten(0, 1), y.flatten(0, 1))
    return similarity.reshape(*x.shape[:2], -1).double().mean((1, 2))


def ms_ssim(original: Tensor, reconstruction: Tensor, *, scales: int | None = None) -> Tensor:
    """Structural similarity over several scales, the mean over frames and color channels; [B], 0 to 1.

    Wang, Simoncelli, Bovik, "Multiscale structural similarity for image quality assessment", 2003: the product of the
    contrast of the finer scales and the similarity of the coarsest, each to its exponent; negative factors count as 0.
    Scales are halved by averaging 2x2 pixels; an odd last row or column is dropped.

    Args:
        original, reconstruction: [B,T,3,H,W] in 0..1.
        scales: 1 to 5; the exponents of the first `scales` are normalized to sum 1. The published measure has 5, which
            need frames of at least 176 pixels. Default: as many as the frames have room for, see `num_scales`. Values
            of different numbers of scales are not comparable.

    Raises:
        ValueError: shapes differ, values are not float, or frames are too small for `scales`.
    """
    x, y = _pair(original, reconstruction)
    scales = max(1, num_scales(*x.shape[-2:])) if scales is None else scales
    _check_scales(scales, x)
    weights = [weight / sum(_SCALES[:scales]) for weight in _SCALES[:scales]]
    shape, x, y = x.shape[:2], x.flatten(0, 1), y.flatten(0, 1)
    product = torch.ones(x.shape[:2], device=x.device)
    for scale, weight in enumerate(weights):
        similarity, contrast = _similarity(x, y)
        product = product * (similarity if scale == scales - 1 else contrast).clamp(min=0) ** weight
        x, y = F.avg_pool2d(x, 2), F.avg_pool2d(y, 2)
    return product.reshape(*shape, -1).double().mean((1, 2))


def num_scales(height: int, width: int) -> int:
    """The number of scales of MS-SSIM, at most 5, whose coarsest frame still has 11 pixels; 0 below 11 pixels."""
    return sum(min(height, width) >> scale >= _WINDOW for scale in range(len(_SCALES)))


def temporal_difference_error(original: Tensor, reconstruction: Tensor) -> Tensor:
    """Mean absolute error of the differences between consecutive frames, 0 (equal motion) to 1 per unit; [B].

    A constant error, such as blur of a still scene, does not count; flicker does.

    Raises:
        ValueError: shapes differ, values are not float, or there are fewer than two frames.
    """
    return _temporal_errors(original, reconstruction).mean(1)


def seam_flicker(original: Tensor, reconstruction: Tensor, every: int, *, first: int | None = None) -> Tensor:
    """Temporal error at the seams of chunks minus the temporal error elsewhere; [B], 0 if seams do not show.

    Args:
        original, reconstruction: [B,T,3,H,W] in 0..1.
        every: frames per chunk.
        first: frames of the first chunk, such as 1 + every for causal tokenizers. Default: `every`.

    Raises:
        ValueError: shapes differ, values are not float, or no seam or nothing but seams is in the video.
    """
    first = every if first is None else first
    if every < 1 or first < 1:
        raise ValueError(f"chunks must have at least 1 frame, got every={every}, first={first}")
    errors = _temporal_errors(original, reconstruction)
    seam = _seams(original.shape[1], every, first).to(errors.device)
    if not seam.any() or seam.all():
        raise ValueError(
            f"flicker compares seams with other frames: chunks of {first}, {every}, ... frames have "
            f"{int(seam.sum())} seams in a video of {errors.shape[1] + 1} frames"
        )
    return errors[:, seam].mean(1) - errors[:, ~seam].mean(1)


def _seams(frames: int, every: int, first: int) -> Tensor:
    """Which steps from a frame to the next one are at a seam of chunks, bool [frames-1]."""
    step = torch.arange(1, frames)
    return (step >= first) & ((step - first) % every == 0)


def code_health(codes: Tensor, codebook: int | Sequence[int]) -> dict[str, float]:
    """How codes use their codebooks, and the bits of a token by formula and by entropy.

    Args:
        codes: int [...,Q], Q codes per token, such as residual levels. -1 marks a code that does not exist, such as
            that of a dropped level, of padding, or of a codebook for other tokens (`Tokenizer.codes_by_book`).
        codebook: number of entries K, one for all Q codes or Q of them.

    Returns:
        "usage": fraction of entries that occur; "perplexity": 2 to the entropy in bits, the number of entries that an
        equal use would have; both means over the Q codes. "bits_per_token": the sum of log2 K; "entropy_bits": the sum
        of the entropies of the Q codes, each as if independent of position and of the others, which an arithmetic
        coder reaches with the frequencies known. Both count a code by the fraction of tokens that have it. From few
        tokens the entropy is too low: n tokens have at most log2 n bits.

    Raises:
        ValueError: a code is outside its codebook, the number of codebooks is wrong, or there are no codes.
    """
    if codes.ndim < 1 or codes.numel() == 0 or codes.is_floating_point():
        raise ValueError(f"codes must be integers [...,Q], got {codes.dtype} {list(codes.shape)}")
    columns = codes.reshape(-1, codes.shape[-1]).T
    sizes = [codebook] * len(columns) if isinstance(codebook, int) else list(codebook)
    if len(sizes) != len(columns):
        raise ValueError(f"a token has {len(columns)} codes, got {len(sizes)} codebooks")
    for column, size in zip(columns, sizes, strict=True):
        if int(column.max()) >= size or int(column.min()) < -1:
            raise ValueError(
                f"codes must be in 0..{size - 1} or -1, got {int(column.min())}..{int(column.max())}; is it another "
                "tokenizer's file?"
            )
    share, perplexity = usage(columns.T[None], sizes)
    present = (columns >= 0).double().mean(1).cpu()
    return {
        "usage": float(share.mean()),
        "perplexity": float(perplexity.mean()),
        "bits_per_token": float((present * torch.tensor(sizes, dtype=torch.float64).log2()).sum()),
        "entropy_bits": float((present * perplexity.cpu().clamp(min=1).log2()).sum()),
    }


def _pair(original: Tensor, reconstruction: Tensor) -> tuple[Tensor, Tensor]:
    """Both videos as float32 in 0..1."""
    if original.shape != reconstruction.shape:
        raise ValueError(
            f"original and reconstruction must have the same shape, got {list(original.shape)} and "
            f"{list(reconstruction.shape)}"
        )
    if original.ndim != 5 or original.shape[2] != 3 or original.numel() == 0:
        raise ValueError(f"videos must be [B,T,3,H,W], got {list(original.shape)}")
    if not (original.is_floating_point() and reconstruction.is_floating_point()):
        raise ValueError(f"videos must be float in 0..1, got {original.dtype} and {reconstruction.dtype}")
    for name, video in (("original", original), ("reconstruction", reconstruction)):
        if not video.isfinite().all():
            raise ValueError(f"the {name} has values that are not finite")
    if original.min() < -0.01 or original.max() > 1.01:
        raise ValueError(
            f"the original must be in 0..1, got {float(original.min()):g}..{float(original.max()):g}; divide bytes by "
            "255, and map -1..1 by (x + 1) / 2"
        )
    return original.float().clamp(0, 1), reconstruction.float().clamp(0, 1)


def _temporal_errors(original: Tensor, reconstruction: Tensor) -> Tensor:
    """Mean absolute error of each frame difference, float64 [B,T-1]."""
    x, y = _pair(original, reconstruction)
    if x.shape[1] < 2:
        raise ValueError("a temporal error needs at least 2 frames, got 1")
    return (y.diff(dim=1) - x.diff(dim=1)).abs().mean((2, 3, 4), dtype=torch.float64)


def _check_scales(scales: int, x: Tensor) -> None:
    if not 1 <= scales <= len(_SCALES):
        raise ValueError(f"scales must be in 1..{len(_SCALES)}, got {scales}")
    H, W = x.shape[-2:]
    if num_scales(H, W) < scales:
        raise ValueError(
            f"SSIM with {scales} scale{'s' if scales > 1 else ''} requires frames of at least "
            f"{_WINDOW << (scales - 1)} pixels, got {W}x{H}"
        )


def _similarity(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Similarity, and its part without the brightness, of frames [n,3,H,W]: means over windows, each [n,3]."""
    mean_x, mean_y, xx, yy, xy = _blur(torch.stack((x, y, x * x, y * y, x * y))).unbind()
    # Rounding makes the variance of flat windows slightly negative.
    var_x, var_y = (xx - mean_x**2).clamp(min=0), (yy - mean_y**2).clamp(min=0)
    contrast = (2 * (xy - mean_x * mean_y) + _C2) / (var_x + var_y + _C2)
    similarity = contrast * (2 * mean_x * mean_y + _C1) / (mean_x**2 + mean_y**2 + _C1)
    return similarity.mean((-2, -1)), contrast.mean((-2, -1))


def _blur(x: Tensor) -> Tensor:
    """Weighted means of all windows that lie inside the frames, [...,H-10,W-10]."""
    position = torch.arange(_WINDOW, device=x.device) - _WINDOW // 2
    kernel = torch.exp(-(position**2) / (2 * _SIGMA**2))
    kernel = kernel / kernel.sum()
    flat = x.reshape(-1, 1, *x.shape[-2:])
    flat = F.conv2d(F.conv2d(flat, kernel[None, None, :, None]), kernel[None, None, None, :])
    return flat.reshape(*x.shape[:-2], *flat.shape[-2:])
