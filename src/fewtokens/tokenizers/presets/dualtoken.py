"""DualToken: pixels are read from a shallow layer of an image encoder, semantics from a deep one."""

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


class DualToken(Tokenizer):
    """A tokenizer whose first half of the codes is decoded to pixels, and the second half to frozen features."""

    def __init__(self, *parts: Any, **options: Any) -> None:
        super().__init__(*parts, **options)
        # The encoder is trained; the teacher is what it was before.
        self.teacher = Fixed(copy.deepcopy(self.encoder))

    def semantic_features(self, tokens: Tokens) -> Tensor:
        """The decoded features of the deep layer, [B,C,T,H,W]; the second half of the channels, unchanged."""
        return tokens.unmerge().movedim(-1, 1).chunk(2, 1)[1]

    def extra_losses(self, frames: Tensor, tokens: Tokens, decoded: Tensor | None) -> dict[str, Tensor]:
        teacher = self.teacher.network
        assert isinstance(teacher, Frozen)
        with torch.no_grad():
            (target,) = teacher.read(frames.transpose(1, 2), teacher.layers[-1:])
        features = self.semantic_features(tokens)
        pooled = torch.cosine_similarity(features.mean((3, 4)), target.mean((3, 4)), dim=1)
        return {"semantic": (features - target).square().mean() + (1 - pooled).mean()}


PRESET = Preset(
    spec=(
        "frozen('google/siglip2-so400m-patch14-384', layers=(6, 26), trainable=True) "
        "| grouped_residual_vq(16384, groups=2, levels=8, code_dim=32) "
        "> conv_up(stride=(1, 14, 14), widths=(1024, 512, 512, 128, 128), channels=1152)"
    ),
    clip=(1, 378, 378),
    tiny=(
        "frozen(layers=(1, 4), trainable=True) | grouped_residual_vq(64, groups=2, levels=2, code_dim=8) "
        "> conv_up(stride=(1, 8, 8), widths=(32, 32, 16, 16), blocks=1, channels=32)"
    ),
    tiny_clip=(1, 32, 32),
    kind=DualToken,
    recipe={"pixel": "l2"},
    paper="DualToken: Towards Unifying Visual Understanding and Generation, arXiv 2503.14324",
    license="README says MIT; the file it names is absent",
    tokens=729,
    differs=(
        "It takes 163 kbit for an image, so it does not make few tokens. Projections to 32 channels are linear "
        "instead of attention, before and after quantization; the shallow layer is read without 0.6 times layer 4; "
        "each level has a codebook, all with moving means. The semantic loss compares the mean of patches instead of "
        "the pooling head, with weight 1 as pixels (both 5 in the paper's code). 384 pixels are 27 x 27 patches of "
        "14, so the clip has 378; the decoder resizes them to 24 x 24 patches of 16. The tiny size starts from a ViT "
        "with random weights."
    ),
)
