"""TokenFlow: one index into two codebooks, of what a cell means and of how it looks."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor

from fewtokens.core.tokens import Tokens
from fewtokens.tokenizers.blocks.fixed import Fixed
from fewtokens.tokenizers.decoders.semantic_pixels import SemanticPixels as Decoder
from fewtokens.tokenizers.encoders.frozen import Frozen
from fewtokens.tokenizers.encoders.semantic_pixels import SemanticPixels as Encoder
from fewtokens.tokenizers.preset import Preset
from fewtokens.tokenizers.tokenizer import Tokenizer


class TokenFlow(Tokenizer):
    """A tokenizer that also predicts the features of its pretrained encoder, before it was trained further."""

    def __init__(self, *parts: Any, **options: Any) -> None:
        super().__init__(*parts, **options)
        assert isinstance(self.encoder, Encoder)
        self.teacher = Fixed(copy.deepcopy(self.encoder.vit))

    def extra_losses(self, frames: Tensor, tokens: Tokens, decoded: Tensor | None) -> dict[str, Tensor]:
        teacher = self.teacher.network
        assert isinstance(teacher, Frozen) and isinstance(self.decoder, Decoder)
        with torch.no_grad():
            target = teacher.latents(frames.transpose(1, 2)).movedim(1, -1)
        return {"semantic": (1 - torch.cosine_similarity(self.decoder.predict(tokens), target, dim=-1)).mean()}


PRESET = Preset(
    spec=(
        "semantic_pixels('openai/clip-vit-base-patch16') "
        "| multi_scale_vq((1, 2, 4, 6, 8, 10, 12, 14, 16), size=32768, code_dim=40, convolutions=0) > semantic_pixels"
    ),
    clip=(1, 256, 256),
    tiny=(
        "semantic_pixels(semantic=8, detail=8, widths=(16, 16, 32, 32), blocks=1) "
        "| multi_scale_vq((1, 2, 4), size=128, code_dim=16, convolutions=0) > semantic_pixels(semantic=8, "
        "stride=(1, 8, 8), widths=(32, 32, 16, 16), blocks=1, width=32, depth=1, targets=32)"
    ),
    tiny_clip=(1, 32, 32),
    kind=TokenFlow,
    recipe={"pixel": "l2"},
    paper="TokenFlow: Unified Image Tokenizer for Multimodal Understanding and Generation, arXiv 2412.03069",
    license="not read",
    figures={"rFID, ImageNet 256": "1.37", "PSNR": "21.41 dB", "rFID, 384": "0.63", "codebook usage": "above 95 %"},
    differs=(
        "The two codebooks are the first 32 and the last 8 channels of one table, whose Euclidean distance is the sum "
        "of the two distances, with the published weight of 1; `dual_vq` has other weights, without scales. Channels "
        "are not normalized. Scales are never dropped. Features of patches are predicted before the projection of "
        "CLIP. The tiny size begins with a ViT of random weights."
    ),
)
