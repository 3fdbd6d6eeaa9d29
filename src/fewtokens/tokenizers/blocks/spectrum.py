"""Short-time Fourier transforms with one frame per hop, and mel spectra."""

from __future__ import annotations

from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor


def stft(x: Tensor, window: int, hop: int) -> Tensor:
    """The spectra of samples [B,S], complex [B,window/2+1,S/hop]; S is a multiple of hop. Frames begin every hop.

    The samples are padded with zeros, (window - hop) / 2 at each end ("same" padding).
    """
    side = (window - hop) // 2
    frames = F.pad(x, (side, window - hop - side)).unfold(-1, window, hop)
    return torch.fft.rfft(frames * _hann(window, x)).mT


def istft(spectra: Tensor, window: int, hop: int) -> Tensor:
    """The samples [B,S] of spectra [B,window/2+1,S/hop], the inverse of `stft`."""
    frames = torch.fft.irfft(spectra.mT, window)
    weight = _hann(window, frames)
    samples = _overlap((frames * weight).mT, hop)
    total = _overlap(weight.square()[:, None].expand(1, -1, frames.shape[1]), hop)
    side = (window - hop) // 2
    length = frames.shape[1] * hop
    return (samples / total.clamp(min=1e-11))[:, side : side + length]


def _overlap(frames: Tensor, hop: int) -> Tensor:
    """The sum [B,length] of frames [B,window,N] that begin every hop."""
    window, count = frames.shape[1:]
    length = (count - 1) * hop + window
    return F.fold(frames, (1, length), (1, window), stride=(1, hop))[:, 0, 0]


def _hann(window: int, like: Tensor) -> Tensor:
    return torch.hann_window(window, dtype=like.dtype, device=like.device)


def log_mel(x: Tensor, rate: int, *, window: int = 1024, hop: int = 256, bands: int = 100) -> Tensor:
    """The logarithm of mel spectra of samples [B,S], [B,bands,ceil(S/hop)].

    Args:
        x: samples [B,S].
        rate: samples per second.
        window, hop, bands: length of the window, its step, and number of bands from 0 to rate / 2.
    """
    padded = F.pad(x, (0, -x.shape[-1] % hop))
    filters = _filters(rate, window, bands).to(x)
    return (filters @ stft(padded, window, hop).abs()).clamp(min=1e-7).log()


@cache
def _filters(rate: int, window: int, bands: int) -> Tensor:
    """Triangular filters [bands,window/2+1], evenly spaced in mel = 2595 log10(1 + f / 700)."""
    top = 2595 * torch.log10(torch.tensor(1 + rate / 2 / 700, dtype=torch.float64))
    edges = 700 * (10 ** (torch.linspace(0, 1, bands + 2, dtype=torch.float64) * top / 2595) - 1)
    bins = torch.linspace(0, rate / 2, window // 2 + 1, dtype=torch.float64)
    low, middle, high = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    return torch.minimum((bins - low) / (middle - low), (high - bins) / (high - middle)).clamp(min=0).float()
