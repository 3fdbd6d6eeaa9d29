"""ImageFolder: two sets of queries, each quantized by scale, one of which is close to semantic features."""

from __future__ import annotations

import copy
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fewtokens.core.grid import Grid
from fewtokens.core.method import Method, Quantized, Quantizer
from fewtokens.core.tokens import Tokens
from fewtokens.methods.quantizers.multi_scale_vq import MultiScaleVq
from fewtokens.tokenizers.blocks.fixed import Fixed
from fewtokens.tokenizers.encoders.frozen import Frozen
from fewtokens.tokenizers.parts import Decoder, VideoEncoder
from fewtokens.tokenizers.preset import Preset
from fewtokens.tokenizers.tokenizer import Tokenizer

# Weight of the contrastive loss, and the temperature at the start.
_WEIGHT, _TEMPERATURE = 0.1, 0.07


class Branches(Quantizer):
    """Quantizes the two halves of the tokens by scale, each with its codebook, as the sites of a square.

    Args:
        first: the quantizer of the first half; the second one has the same arguments.
    """

    learned = True
    paper = "ImageFolder: Autoregressive Image Generation with Folded Tokens, arXiv 2410.01756"
    license = "written from the paper"
    cost = "that of two quantizers by scale"

    def __init__(self, first: MultiScaleVq) -> None:
        super().__init__()
        self.first, self.second = first, MultiScaleVq(**first.arguments)

    @property
    def spec(self) -> str:
        return self.first.spec

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        return self.first.codebook_sizes

    def planned_bits(self, grid: Grid, tokens: int) -> float:
        return 2 * self.first.planned_bits(self._sites(tokens), tokens // 2)

    def quantize(self, features: Tensor, mask: Tensor | None = None) -> Quantized:
        sites = self._sites(features.shape[1])
        halves = features.chunk(2, 1)
        first, second = self.first.quantize(halves[0], None, sites), self.second.quantize(halves[1], None, sites)
        losses = {name: loss + second.losses[name] for name, loss in first.losses.items()}
        features, codes = torch.cat([first.features, second.features], 1), torch.cat([first.codes, second.codes], 1)
        return Quantized(features, codes, losses)

    def lookup(self, codes: Tensor) -> Tensor:
        sites = self._sites(codes.shape[1])
        first, second = codes.chunk(2, 1)
        return torch.cat([self.first.lookup(first, sites), self.second.lookup(second, sites)], 1)

    def codes_by_book(self, tokens: Tokens) -> tuple[Tensor, tuple[int, ...]]:
        codes, sizes = super().codes_by_book(tokens)
        second = torch.arange(codes.shape[1], device=codes.device)[:, None] >= codes.shape[1] // 2
        return torch.cat([codes.masked_fill(second, -1), codes.masked_fill(~second, -1)], -1), sizes * 2

    @staticmethod
    def _sites(tokens: int) -> Grid:
        """The square of the sites of one branch."""
        side = math.isqrt(tokens // 2)
        if 2 * side * side != tokens:
            raise ValueError(f"imagefolder requires two squares of tokens such as 242, got {tokens}")
        return Grid(1, side, side)


# No spec has this name, but losses are listed under it.
Branches.name = "branches"


class ImageFolder(Tokenizer):
    """A tokenizer with two branches of tokens, and a contrastive loss on the first.

    The mean of the first branch is compared with the mean of the patches in the encoder before training, its frozen
    teacher, over the batch, as in CLIP (arXiv 2103.00020). Codes are [B,N,scales], first those of the first branch.
    """

    def __init__(
        self, encoder: VideoEncoder, methods: list[Method], decoder: Decoder, *, window: int | None = None
    ) -> None:
        methods = [Branches(method) if isinstance(method, MultiScaleVq) else method for method in methods]
        super().__init__(encoder, methods, decoder, window=window)
        if not isinstance(encoder, Frozen) or not isinstance(self.quantizer, Branches):
            raise ValueError(f"imagefolder requires the encoder frozen and multi_scale_vq, got {self.spec!r}")
        self.teacher = Fixed(copy.deepcopy(encoder))
        self.project = nn.Linear(decoder.dim, encoder.width)
        self.log_scale = nn.Parameter(torch.tensor(-math.log(_TEMPERATURE)))

    def extra_losses(self, frames: Tensor, tokens: Tokens, decoded: Tensor | None) -> dict[str, Tensor]:
        teacher = self.teacher.network
        assert isinstance(teacher, Frozen)
        with torch.no_grad():
            (patches,) = teacher.read(frames.transpose(1, 2), (-1,))
        target = F.normalize(patches.mean((2, 3, 4)), dim=1)
        student = F.normalize(self.project(tokens.features.chunk(2, 1)[0].mean(1)), dim=1)
        logits = self.log_scale.exp() * student @ target.mT
        same = torch.arange(len(logits), device=logits.device)
        return {"contrastive": _WEIGHT * (F.cross_entropy(logits, same) + F.cross_entropy(logits.mT, same)) / 2}


PRESET = Preset(
    spec=(
        "frozen('facebook/dinov2-base', stride=(1, 16, 16), trainable=True) "
        "| learned_queries(242, num_layers=4, heads=12) "
        "| multi_scale_vq((1, 1, 2, 3, 3, 4, 5, 6, 8, 11), size=4096, code_dim=32, dropout=0.1, book='cosine') "
        "> mask_tokens(width=768, stride=(1, 16, 16), num_tokens=242, num_layers=12, heads=12)"
    ),
    clip=(1, 256, 256),
    tiny=(
        "frozen(width=64, depth=2, trainable=True) | learned_queries(18, num_layers=2, heads=4) "
        "| multi_scale_vq((1, 1, 2, 3), size=256, code_dim=16, convolutions=2, dropout=0.1, book='cosine') "
        "> mask_tokens(width=96, stride=(1, 8, 8), num_tokens=18, num_layers=3, heads=4)"
    ),
    tiny_clip=(1, 32, 32),
    window=1,
    tiny_window=1,
    kind=ImageFolder,
    recipe={"pixel": "l2"},
    paper="ImageFolder: Autoregressive Image Generation with Folded Tokens, arXiv 2410.01756",
    license="Adobe research license, non-commercial",
    tokens=242,
    figures={"rFID, gFID ImageNet 256x256 (README)": "0.80, 2.60"},
    differs=(
        "Queries follow DINOv2 in 4 blocks, instead of being part of its sequence; the decoder starts from random "
        "weights instead of DINOv2. The contrastive loss compares means of tokens with those of the patches of the "
        "encoder before training; the teacher of the paper is another one. Scales are dropped in each branch "
        "separately. The tiny size tunes a ViT with random weights."
    ),
)
