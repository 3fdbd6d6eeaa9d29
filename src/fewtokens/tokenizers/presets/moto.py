"""Moto: a few tokens of the motion between two frames; the decoder also gets the first one."""

from __future__ import annotations

import torch
from torch import Tensor

from fewtokens.core.tokens import Tokens
from fewtokens.encoders.frames import to_unit
from fewtokens.tokenizers.decoders.next_frame import with_first_frame
from fewtokens.tokenizers.preset import Preset
from fewtokens.tokenizers.tokenizer import Tokenizer, pad


class Moto(Tokenizer):
    """Encodes pairs of frames; the decoder gets the first one of each as side information.

        tokens = tokenizer.encode(pair)
        tokenizer.decode(tokens)  # the pair, from the first frame that `encode` keeps in `prefix`
        tokenizer.decode(tokens, side=other)  # the same motion of another first frame

    The receiver is assumed to have the first frame, as a robot does: its pixels are neither counted in `bits` nor
    written to files of codes.
    """

    def _encode(self, frames: Tensor, times: Tensor | None = None) -> Tokens:
        return with_first_frame(super()._encode(frames, times), to_unit(frames[:, 0].to(self.device)))

    def _as_stored(self, tokens: Tokens) -> Tokens:
        prefix = None if tokens.prefix is None else tokens.prefix.to(self.device)
        return super()._as_stored(tokens).replace(prefix=prefix)

    @torch.no_grad()
    def decode(self, tokens: Tokens, side: Tensor | None = None) -> Tensor:
        """Decodes tokens; see `Tokenizer.decode`.

        Args:
            tokens: the result of `encode`.
            side: the first frame of each pair, [B,3,height,width] (uint8, or float in 0..1) in the size before padding.
                Default: that of the encoded pair.

        Raises:
            ValueError: neither the tokens nor `side` have the first frame, or it has another size.
        """
        if side is not None:
            _, height, width = self.decoder.pixels(tokens.grid)
            fitting = side.ndim == 4 and len(side) == tokens.B
            if not fitting or side.shape[-2] > height or side.shape[-1] > width:
                raise ValueError(f"side must be [{tokens.B},3,{height},{width}] or smaller, got {list(side.shape)}")
            padded = pad(side[:, None], (1, height, width))[:, 0]
            tokens = with_first_frame(tokens, to_unit(padded.to(self.device)))
        return super().decode(tokens)


PRESET = Preset(
    spec=(
        "frame_pair('facebook/vit-mae-large', width=768) | learned_queries('8/frame', num_layers=4, heads=12) "
        "| vq(128, code_dim=32) > next_frame"
    ),
    clip=(2, 224, 224),
    window=2,
    tiny=(
        "frame_pair(width=32) | learned_queries('8/frame', num_layers=2, heads=2) | vq(16, code_dim=8) "
        "> next_frame(width=48, depth=2, heads=2, patch=8)"
    ),
    tiny_clip=(2, 32, 32),
    tiny_window=2,
    kind=Moto,
    recipe={"pixel": "l2"},
    paper="Moto: Latent Motion Token as the Bridging Language for Learning Robot Manipulation, arXiv 2412.04445",
    license="Apache-2.0 with parts of third parties",
    tokens=8,
    differs=(
        "The two features of a patch are combined by a linear layer before the queries; in the paper's code queries "
        "attend to both. The mapping to 32 channels is linear instead of an MLP with Tanh; the codebook follows "
        "moving means. The published perceptual loss has no gradient; ours, in training, has one. The tiny size reads "
        "a ViT with random weights, whose features depend on places: codes of one pair move the first frame of another "
        "only after some 2,000 steps of training."
    ),
)
