"""WavTokenizer: sounds of 24 kHz with 75 or 40 tokens per second of one codebook."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor

from fewtokens.core.tokens import Tokens
from fewtokens.tokenizers.blocks.spectrum import log_mel
from fewtokens.tokenizers.preset import Preset
from fewtokens.tokenizers.signals import SignalTokenizer

# Samples per second, and the weight of the distance of mel spectra.
RATE, _MEL = 24_000, 45.0


class WavTokenizer(SignalTokenizer):
    """Encodes sounds: mono samples of 24 kHz, float [B,S] or [S] in -1..1."""

    source = "audio"

    def read(self, signal: Any) -> Tensor:
        samples = signal[None] if isinstance(signal, Tensor) and signal.ndim == 1 else signal
        if not isinstance(samples, Tensor) or samples.ndim != 2 or not samples.is_floating_point():
            shape = list(samples.shape) if isinstance(samples, Tensor) else type(samples).__name__
            raise ValueError(f"audio must be mono samples of {RATE} Hz, float [B,S] in -1..1, got {shape}")
        if samples.shape[1] < 1 or float(samples.abs().max()) > 1.001:
            raise ValueError("audio must have at least one sample, and samples in -1..1")
        return samples.to(self.device).float()

    def size(self, signal: Tensor) -> tuple[int, int, int]:
        return signal.shape[1], 1, 1

    def pad(self, signal: Tensor, size: tuple[int, int, int]) -> Tensor:
        return F.pad(signal, (0, size[0] - signal.shape[1]))

    def finish(self, decoded: Tensor, size: tuple[int, int, int]) -> Tensor:
        """Samples [B,S] in -1..1."""
        return decoded[:, : size[0]].clamp(-1, 1)

    def signal_losses(self, signal: Tensor, tokens: Tokens) -> dict[str, Tensor]:
        return {"mel": _MEL * (log_mel(self._decode(tokens), RATE) - log_mel(signal, RATE)).abs().mean()}


PRESET = Preset(
    spec=("seanet | vq(4096, code_dim=512, cosine=False, restart=2.0, commitment=1000.0) > istft_head"),
    clip=(72_000, 1, 1),
    tiny=(
        "seanet(32, strides=(4, 5, 8), channels=4, lstm=1) | vq(64, code_dim=32, cosine=False) "
        "> istft_head(width=48, hidden=96, depth=2, hop=160)"
    ),
    tiny_clip=(1600, 1, 1),
    kind=WavTokenizer,
    paper="WavTokenizer: an Efficient Acoustic Discrete Codec Tokenizer for Audio Language Modeling, arXiv 2408.16532",
    license="MIT",
    tokens=225,
    figures={"bits": "900 per second; 480 with strides (2, 5, 6, 10) and hop 600"},
    differs=(
        "No discriminators and no k-means initialization of the codebook: training has the distance of mel spectra and "
        "the commitment only. One attention block without convolutions around it stands before the ConvNeXt blocks. "
        "Sounds are padded with zeros at the end."
    ),
)
