"""VAT: shapes as tokens by scale, whose number grows from scale to scale."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fewtokens.core.tokens import Tokens
from fewtokens.methods.learned.gaussian import Gaussian
from fewtokens.tokenizers.decoders.triplane import Triplane
from fewtokens.tokenizers.preset import Preset
from fewtokens.tokenizers.signals import SignalTokenizer
from fewtokens.tokenizers.tokenizer import Reconstruction

# Logarithm of the variance of the distributions of tokens before training.
_LOG_VARIANCE = -6.0


class Vat(SignalTokenizer):
    """Encodes the points of a surface, float [B,N,3] or [N,3] in -1..1; decodes the occupancy of space.

    The loss needs points whose occupancy is known: `forward(points, places, occupied)`.
    """

    source = "points"

    def __init__(self, *parts: Any, **options: Any) -> None:
        super().__init__(*parts, **options)
        for method in self.methods:
            if isinstance(method, Gaussian) and isinstance(method.project, nn.Linear):
                # Narrow distributions at first, whose samples still differ from shape to shape.
                nn.init.constant_(method.project.bias[method.out_dim :], _LOG_VARIANCE)

    def read(self, signal: Any) -> Tensor:
        points = signal[None] if isinstance(signal, Tensor) and signal.ndim == 2 else signal
        fits = isinstance(points, Tensor) and points.ndim == 3 and points.shape[-1] == 3 and points.shape[1] > 0
        if not fits or not points.is_floating_point():
            shape = list(points.shape) if isinstance(points, Tensor) else type(points).__name__
            raise ValueError(f"points must be float [B,N,3] in -1..1, got {shape}")
        if float(points.abs().max()) > 1.001:
            raise ValueError("points must be in -1..1")
        return points.to(self.device).float()

    def size(self, signal: Tensor) -> tuple[int, int, int]:
        return 1, 1, signal.shape[1]

    def pad(self, signal: Tensor, size: tuple[int, int, int]) -> Tensor:
        return signal

    def finish(self, decoded: Tensor, size: tuple[int, int, int]) -> Tensor:
        """Probabilities of occupancy [B,X,Y,Z] at the centers of a grid of voxels in -1..1."""
        return decoded.float().sigmoid()

    def forward(self, frames: Tensor, places: Tensor | None = None, occupied: Tensor | None = None) -> Reconstruction:
        """Encodes points and decodes places for training.

        Args:
            frames: points [B,N,3].
            places: [B,P,3] in -1..1. Default: the points, as occupied, and as many uniformly random places, as empty,
                which makes a thin shell.
            occupied: bool [B,P], whether the places are inside.
        """
        signal = self.read(frames)
        if places is None or occupied is None:
            empty = 2 * torch.rand_like(signal) - 1
            places, occupied = torch.cat([signal, empty], 1), torch.ones_like(signal[..., 0], dtype=torch.bool)
            occupied = torch.cat([occupied, ~occupied], 1)
        tokens = self._encode(signal)
        decoder = self.decoder
        assert isinstance(decoder, Triplane)
        logits = decoder.field(decoder.planes(tokens), places.to(signal))
        occupancy = F.binary_cross_entropy_with_logits(logits, occupied.to(logits))
        return Reconstruction(None, tokens, {**tokens.aux, "occupancy": occupancy})

    def signal_losses(self, signal: Tensor, tokens: Tokens) -> dict[str, Tensor]:
        """None: the losses are those of `forward`."""
        return {}


PRESET = Preset(
    spec=(
        "points | gaussian(32, kl=1e-3) "
        "| multi_scale_vq(((1, 1), (1, 4), (1, 16), (1, 64), (1, 256)), size=4096, code_dim=32, book='cosine') "
        "> triplane"
    ),
    clip=(1, 1, 8192),
    tiny=(
        "points(48, tokens=16, depth=2, heads=2, frequencies=3) | gaussian(16, kl=1e-6) "
        "| multi_scale_vq(((1, 1), (1, 4), (1, 16)), size=64, code_dim=16, convolutions=0, book='cosine') "
        "> triplane(width=32, depth=1, heads=2, plane=4, features=16, resolution=16)"
    ),
    tiny_clip=(1, 1, 64),
    kind=Vat,
    paper=(
        "3D representation in 512-Byte: Variational Tokenizer Is the Key for Autoregressive 3D Generation, "
        "arXiv 2412.02202"
    ),
    license="no code found",
    figures={"size": "a mesh of 1 MB in 3.9 kB at an F-score of 96 %"},
    differs=(
        "Written from the abstract and the text. Sizes that the paper leaves open are ours: 256 tokens of 32 channels, "
        "five scales from 1 to 256 codes of one codebook of 4096 entries, a triplane of 3 x 128 x 128, points without "
        "normals or features of images. The scales quantize the sample of the distribution in training and its mean "
        "otherwise; the distributions are narrow at first. Entries are compared by cosine. The field is "
        "occupancy. The model that generates tokens is not here."
    ),
)
