"""V2L: an image as words of a frozen vocabulary, some of the whole and one for each cell."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from fewtokens.core.tokens import Tokens
from fewtokens.methods.quantizers.frozen_vq import FrozenVq
from fewtokens.tokenizers.encoders.word_conv2d import WordConv2d
from fewtokens.tokenizers.parts import to_signed
from fewtokens.tokenizers.preset import Preset
from fewtokens.tokenizers.tokenizer import Layout, Tokenizer


class V2l(Tokenizer):
    """A tokenizer with one word per cell, followed by the words that a frozen image encoder finds for the video."""

    def __init__(self, *parts: Any, **options: Any) -> None:
        super().__init__(*parts, **options)
        encoder, quantizer = self.encoder, self.quantizer
        if not isinstance(encoder, WordConv2d) or not isinstance(quantizer, FrozenVq):
            raise ValueError(f"the encoder must be word_conv2d and the quantizer frozen_vq, got {self.spec!r}")
        sizes = encoder.size, quantizer.codebook_sizes[0]
        if sizes[0] != sizes[1]:
            raise ValueError(f"both tables must have the same words, got {sizes[0]} and {sizes[1]}")

    def layout(self, frames: int, height: int, width: int) -> Layout:
        local, encoder = super().layout(frames, height, width), self.encoder
        assert isinstance(encoder, WordConv2d) and local.tokens is not None
        windows = 1 if self.window is None else max(1, -(-frames // self.window))
        tokens = local.tokens + windows * encoder.words
        return replace(local, tokens=tokens, bits=tokens * math.log2(encoder.size))

    def _encode(self, frames: Tensor, times: Tensor | None = None) -> Tokens:
        local, encoder = self.pipeline(frames, times), self.encoder
        assert isinstance(encoder, WordConv2d) and self.quantizer is not None and local.codes is not None
        x = to_signed(frames.to(self.device)).to(encoder.dtype).transpose(1, 2)
        words = encoder.global_words(x)[..., None]
        extra = self.quantizer.lookup(words).to(local.features.dtype)
        B, count = words.shape[:2]
        return local.replace(
            features=torch.cat([local.features, extra], 1),
            codes=torch.cat([local.codes, words], 1),
            positions=torch.cat([local.positions, local.positions.new_zeros(B, count, 3)], 1),
            sizes=torch.cat([local.sizes, local.sizes.new_zeros(B, count)], 1),
            mask=torch.cat([local.mask, local.mask.new_ones(B, count)], 1),
        )


PRESET = Preset(
    spec=(
        "word_conv2d(768, teacher='openai/clip-vit-large-patch14', size=32000) "
        "| frozen_vq(size=32000, code_dim=768) > word_conv2d()"
    ),
    clip=(1, 128, 128),
    tiny=(
        "word_conv2d(16, width=16, mult=(1, 2, 2), depth=1, words=3, size=64) | frozen_vq(size=64, code_dim=16) "
        "> word_conv2d(width=16, mult=(1, 2, 2), depth=1)"
    ),
    tiny_clip=(1, 32, 32),
    kind=V2l,
    paper="Beyond Text: Frozen Large Language Models in Visual Signal Comprehension (V2L), arXiv 2403.07874",
    license="no license for the code as a whole",
    differs=(
        "Global words are of the same vocabulary as those of the cells; the authors extend it to 11,908 word groups. "
        "They are the nearest to the mean of the patch features, so `table` must be in that space; the authors compare "
        "with the image feature of CLIP. Without files of word embeddings both tables are random, which codes as well "
        "but has no meaning. Width of the convolutions, and attention to the words once, before them, are ours."
    ),
)
