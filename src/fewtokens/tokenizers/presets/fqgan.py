"""FQGAN: several codebooks, each with its branch of the encoder, kept apart by a penalty."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from fewtokens.core.tokens import Tokens
from fewtokens.tokenizers.blocks.repa import Repa
from fewtokens.tokenizers.encoders.branched_conv2d import BranchedConv2d
from fewtokens.tokenizers.preset import Preset
from fewtokens.tokenizers.tokenizer import Tokenizer

# Weight of the distance to the features of the teacher, as published.
_SEMANTIC = 0.5


class Fqgan(Tokenizer):
    """A tokenizer whose last branch of codes also predicts the features of a frozen image encoder."""

    def __init__(self, *parts: Any, **options: Any) -> None:
        super().__init__(*parts, **options)
        encoder = self.encoder
        assert isinstance(encoder, BranchedConv2d)
        self.channels = encoder.channels
        self.semantic = Repa(encoder.channels, encoder.teacher, hidden=2 * encoder.hidden, cell=encoder.stride[1])

    def extra_losses(self, frames: Tensor, tokens: Tokens, decoded: Tensor | None) -> dict[str, Tensor]:
        last = tokens.unmerge()[..., -self.channels :]
        return {"semantic": _SEMANTIC * (1 + self.semantic(last, frames))}


PRESET = Preset(
    spec=(
        "branched_conv2d(2, teacher='openai/clip-vit-large-patch14') "
        "| product_vq(16384, groups=2, code_dim=8, orthogonality=1.0) > conv2d()"
    ),
    clip=(1, 256, 256),
    tiny=(
        "branched_conv2d(2, channels=8, width=8, mult=(1, 1, 2, 2), depth=1, hidden=32, layers=1) "
        "| product_vq(64, groups=2, code_dim=8, orthogonality=1.0) > conv2d(width=8, mult=(1, 1, 2, 2), depth=1)"
    ),
    tiny_clip=(1, 32, 32),
    kind=Fqgan,
    paper="Factorized Visual Tokenization and Generation (FQGAN), arXiv 2411.16681",
    license="CC BY-NC 4.0 (code and weights)",
    tokens=256,
    figures={
        "ImageNet 256x256, 16x16, two books": "rFID 0.94, PSNR 22.02",
        "ImageNet 256x256, 16x16, three books": "rFID 0.76, PSNR 22.73",
        "ImageNet 256x256, 8x8, three books": "rFID 0.24, PSNR 27.58",
    },
    differs=(
        "Codebooks follow a moving mean, so the penalty on similar codes acts on the branches; its weight is 1. "
        "Positions in the branches are rotary. The features of the teacher are compared by cosine, on the grid of the "
        "tokens. Other numbers of branches: branched_conv2d(3) with groups=3. The tiny size has a random teacher."
    ),
)
