"""UniFlow: a tuned image encoder that keeps the features of its teacher, and a patch-wise flow decoder."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor

from fewtokens.core.tokens import Tokens
from fewtokens.tokenizers.blocks.fixed import Fixed
from fewtokens.tokenizers.encoders.frozen import Frozen
from fewtokens.tokenizers.preset import Preset
from fewtokens.tokenizers.tokenizer import Tokenizer


class UniFlow(Tokenizer):
    """A tokenizer whose trained encoder is compared, layer by layer, with a frozen copy of its initial state."""

    def __init__(self, *parts: Any, **options: Any) -> None:
        super().__init__(*parts, **options)
        self.teacher = Fixed(copy.deepcopy(self.encoder))

    def extra_losses(self, frames: Tensor, tokens: Tokens, decoded: Tensor | None) -> dict[str, Tensor]:
        student, teacher = self.encoder, self.teacher.network
        assert isinstance(student, Frozen) and isinstance(teacher, Frozen)
        x, layers = frames.transpose(1, 2), range(1, len(student.model.blocks) + 1)
        with torch.no_grad():
            targets = teacher.read(x, layers)
        features = student.read(x, layers)
        loss = torch.zeros((), device=x.device)
        for layer, feature, target in zip(layers, features, targets, strict=True):
            loss = loss + layer * (1 - torch.cosine_similarity(feature, target, dim=1)).mean()
        return {"distillation": loss / sum(layers)}


PRESET = Preset(
    spec=(
        "frozen('OpenGVLab/InternViT-300M-448px', trainable=True) | bottleneck(64, hidden=1024) "
        "> patch_flow(stride=(1, 14, 14))"
    ),
    clip=(1, 448, 448),
    tiny=(
        "frozen(trainable=True) | bottleneck(16, hidden=32) "
        "> patch_flow(stride=(1, 8, 8), width=64, depth=2, blocks=1, target='x')"
    ),
    tiny_clip=(1, 32, 32),
    kind=UniFlow,
    paper="UniFlow: A Unified Pixel Flow Tokenizer for Visual Understanding and Generation, arXiv 2510.10575",
    license="none stated for the code",
    tokens=1024,
    differs=(
        "The training code is not released: the weight of a layer in the distillation, which is proportional to its "
        "number, levels per patch and no perceptual or adversarial loss are ours. Blocks of the decoder drop no "
        "paths, and positions are fixed sines and cosines (learned from that start there). Weights of InternViT cannot "
        "be loaded; a folder of any ViT that `load_encoder` accepts can take its place. The tiny size tunes a ViT with "
        "random weights, and predicts pixels instead of velocities."
    ),
)
