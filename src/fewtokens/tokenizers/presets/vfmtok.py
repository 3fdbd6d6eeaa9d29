"""VFMTok: a frozen vision foundation model, sampled by deformable queries."""

from __future__ import annotations

import torch
from torch import Tensor

from fewtokens.core.tokens import Tokens
from fewtokens.tokenizers.decoders.carriers import Carriers
from fewtokens.tokenizers.encoders.frozen import Frozen
from fewtokens.tokenizers.preset import Preset
from fewtokens.tokenizers.tokenizer import Tokenizer


class VfmTok(Tokenizer):
    """A tokenizer whose decoder also predicts the last features of its frozen encoder."""

    def extra_losses(self, frames: Tensor, tokens: Tokens, decoded: Tensor | None) -> dict[str, Tensor]:
        assert isinstance(self.encoder, Frozen) and isinstance(self.decoder, Carriers)
        with torch.no_grad():
            (target,) = self.encoder.read(frames.transpose(1, 2), (-1,))
        predicted = self.decoder.predict(tokens)
        similarity = torch.cosine_similarity(predicted, target.movedim(1, -1), dim=-1)
        return {"features": (1 - similarity).mean()}


PRESET = Preset(
    spec=(
        "frozen('facebook/dinov2-with-registers-large', layers=(6, 12, 18, 24)) "
        "| deformable_queries('256/frame', width=512, levels=4) | vq(16384, code_dim=12) "
        "> carriers(stride=(1, 14, 14), targets=1024)"
    ),
    clip=(1, 336, 336),
    tiny=(
        "frozen(layers=(2, 4)) | deformable_queries('16/frame', width=64, levels=2, layers=2, heads=4, points=2) "
        "| vq(256, code_dim=8) "
        "> carriers(width=64, depth=2, heads=4, stride=(1, 8, 8), widths=(32, 32, 16, 16), blocks=1, targets=32)"
    ),
    tiny_clip=(1, 32, 32),
    kind=VfmTok,
    paper="Vision Foundation Models as Effective Visual Tokenizers for Autoregressive Generation, arXiv 2507.08441",
    license="Apache-2.0",
    tokens=256,
    figures={"rFID, ImageNet 336": "0.89", "rIS": "215.4"},
    differs=(
        "The published codebook is trained by gradient, ours by a moving mean. Places of queries, positions in the "
        "decoder and the padding of deformable samples are not stated by the paper and chosen here. Frames of any "
        "size are encoded; the published code resizes all to 336 x 336. The discriminator has no DINO features. The "
        "tiny size reads a ViT with random weights."
    ),
)
