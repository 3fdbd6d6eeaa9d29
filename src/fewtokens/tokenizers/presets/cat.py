"""CAT: a content-adaptive tokenizer, whose rate is chosen for each image."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fewtokens.core.grid import Grid
from fewtokens.core.plan import Plan
from fewtokens.core.tokens import Tokens
from fewtokens.tokenizers.blocks.rates import Policy, by_error, by_jpeg
from fewtokens.tokenizers.decoders.nested_conv2d import NestedConv2d as NestedDecoder
from fewtokens.tokenizers.encoders.nested_conv2d import NestedConv2d
from fewtokens.tokenizers.parts import to_signed
from fewtokens.tokenizers.preset import Preset
from fewtokens.tokenizers.tokenizer import Layout, Tokenizer

# Bits per pixel of a JPEG file of quality 75 that separate the three rates.
_JPEG = (0.7, 1.5)


class Cat(Tokenizer):
    """A tokenizer of several rates, with cells of 8, 16 and 32 pixels at the published size.

        tokenizer.policy = by_jpeg((0.7, 1.5))              # the default
        tokenizer.policy = by_score(scores, (4, 7))         # such as a language model gave captions
        tokenizer.policy = tokenizer.oracle(psnr=30)        # the fewest tokens that reach it

    In training rates are random, but one video of a batch has the largest, so that each step trains all layers.

    Attributes:
        policy: from frames to the rate of each video, see `fewtokens.tokenizers.blocks.rates`.
    """

    def __init__(self, *parts: Any, **options: Any) -> None:
        super().__init__(*parts, **options)
        if not isinstance(self.encoder, NestedConv2d) or not isinstance(self.decoder, NestedDecoder):
            raise ValueError(f"the encoder and decoder must be nested_conv2d, got {self.spec!r}")
        if self.encoder.inner != self.decoder.inner:
            raise ValueError(f"encoder and decoder must have as many inner levels, got {self.spec!r}")
        if self.encoder.inner > len(_JPEG):
            raise ValueError(f"inner must be 1 or {len(_JPEG)}, got {self.encoder.inner}")
        self.policy: Policy = by_jpeg(_JPEG[: self.encoder.inner])

    @property
    def nested(self) -> NestedConv2d:
        """The encoder."""
        assert isinstance(self.encoder, NestedConv2d)
        return self.encoder

    def oracle(self, psnr: float) -> Policy:
        """Returns the policy of the fewest tokens whose PSNR in dB is at least `psnr`, where any rate reaches it."""

        def reconstruct(frames: Tensor, rate: int) -> Tensor:
            rates = torch.full((len(frames),), rate, device=frames.device)
            return (self._decode(self._encode_at(frames, rates)) + 1).div(2).clamp(0, 1)

        return by_error(reconstruct, self.nested.inner + 1, 10 ** (-psnr / 10))

    def layout(self, frames: int, height: int, width: int) -> Layout:
        return replace(super().layout(frames, height, width), tokens=None, bits=None)

    def _encode(self, frames: Tensor, times: Tensor | None = None) -> Tokens:
        frames = (to_signed(frames.to(self.device)) + 1) / 2
        if self.training:
            rates = torch.randint(self.nested.inner + 1, (len(frames),), device=self.device)
            if len(frames) > 1:
                rates[torch.randint(len(frames), ())] = self.nested.inner
        else:
            rates = self.policy(frames)
        return self._encode_at(frames, rates, times)

    def _encode_at(self, frames: Tensor, rates: Tensor, times: Tensor | None = None) -> Tokens:
        """Encodes frames [B,T,3,H,W] in 0..1 at rates, int64 [B]."""
        encoder = self.nested
        grid = encoder.grid(frames.shape[1], frames.shape[3], frames.shape[4], times)
        x = (2 * frames - 1).to(encoder.dtype).transpose(1, 2)
        N = grid.cells // 4 ** int(rates.min())
        features = x.new_zeros(len(x), N, encoder.dim)
        for rate in rates.unique().tolist():
            index = (rates == rate).nonzero()[:, 0]
            latents = encoder.latents_at(x[index], rate).flatten(2).transpose(1, 2)
            features = features.index_copy(0, index, F.pad(latents, (0, 0, 0, N - latents.shape[1])))
        cells = Tokens.from_cells(x.new_zeros(len(x), grid.cells, 1), grid)
        assignment = torch.stack([_parents(grid, rate) for rate in range(encoder.inner + 1)]).to(x.device)[rates]
        tokens = cells.apply(Plan(grid.cells // 4**rates, N, assignment)).replace(features=features)
        for method in self.methods:
            tokens = method(tokens)
        return tokens


def _parents(grid: Grid, rate: int) -> Tensor:
    """The token of each cell, int64 [S], in blocks of 2^rate rows and columns."""
    H, W = grid.H // 2**rate, grid.W // 2**rate
    blocks = torch.arange(grid.T * H * W).view(grid.T, H, W)
    return blocks.repeat_interleave(2**rate, 1).repeat_interleave(2**rate, 2).flatten()


PRESET = Preset(
    spec="nested_conv2d(32) | gaussian(16) > nested_conv2d(16)",
    clip=(1, 256, 256),
    tiny=(
        "nested_conv2d(16, width=8, mult=(1, 2, 2), depth=1) | gaussian(8) "
        "> nested_conv2d(width=8, mult=(1, 2, 2), depth=1)"
    ),
    tiny_clip=(1, 32, 32),
    kind=Cat,
    paper="CAT: Content-Adaptive Image Tokenization, arXiv 2501.03120",
    license="no code found",
    figures={
        "rFID against fixed 16x16": "CelebA -12 %, GTSRB -17 %, SVHN -20 %, ChartQA -39 %; 18 % fewer tokens",
    },
    differs=(
        "1,024, 256 or 64 tokens for 256 x 256 pixels. The paper's policy is a score that a language model gives a "
        "caption, which by_score takes; the default is the size of a JPEG file, and its thresholds, the 16 channels, "
        "widths and blocks are ours, since the paper does not state them. A video has one rate. The tiny size has "
        "cells of 4, 8 and 16 pixels."
    ),
)
