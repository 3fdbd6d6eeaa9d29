"""LARP: queries over the whole video, whose codes a small autoregressive prior learns to predict during training."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fewtokens.core.method import Method
from fewtokens.core.tokens import Tokens
from fewtokens.methods.ops.resample import fitting_heads
from fewtokens.tokenizers.blocks.transformer import VideoTransformer
from fewtokens.tokenizers.parts import Decoder, VideoEncoder
from fewtokens.tokenizers.preset import Preset
from fewtokens.tokenizers.tokenizer import Tokenizer

# Weight of the loss of the prior; largest share of inputs that are its own predictions, and the training steps over
# which this share grows to it.
_WEIGHT, _SHARE, _STEPS = 0.06, 0.5, 10_000


class Larp(Tokenizer):
    """A tokenizer with the loss of a prior over the sequence of its codes, whose gradient reaches the encoder.

    LARP (arXiv 2410.21264): the prior reads the quantized features, with the straight-through gradient, and predicts
    the next code; so the encoder learns codes that are easy to predict. In training it runs twice: in the second round,
    a random share of its inputs are the predictions of the first (scheduled sampling); the share grows linearly to a
    half in 10,000 steps. The prior is not used to encode or decode.

    Raises:
        ValueError: there is not one code per token.
    """

    def __init__(
        self, encoder: VideoEncoder, methods: list[Method], decoder: Decoder, *, window: int | None = None
    ) -> None:
        super().__init__(encoder, methods, decoder, window=window)
        if self.quantizer is None or len(self.quantizer.codebook_sizes) != 1:
            raise ValueError(f"larp requires a quantizer with one code per token, got {self.spec!r}")
        self.prior = Prior(decoder.dim, self.quantizer.codebook_sizes[0])
        self.steps: Tensor
        self.register_buffer("steps", torch.zeros((), dtype=torch.long))

    def extra_losses(self, frames: Tensor, tokens: Tokens, decoded: Tensor | None) -> dict[str, Tensor]:
        assert self.quantizer is not None and tokens.codes is not None
        logits = self.prior(tokens.features)
        if self.training:
            with torch.no_grad():
                share = _SHARE * (self.steps / _STEPS).clamp(max=1)
                predicted = self.quantizer.lookup(logits.argmax(-1, keepdim=True)).to(tokens.features.dtype)
                replaced = torch.rand(tokens.mask.shape, device=tokens.device) < share
                self.steps += 1
            logits = self.prior(torch.where(replaced[..., None], predicted, tokens.features))
        real = tokens.mask
        return {"prior": _WEIGHT * F.cross_entropy(logits[real].float(), tokens.codes[..., 0][real])}


class Prior(nn.Module):
    """A causal transformer that predicts each code of a sequence from the features of the codes before it.

    Args:
        dim: channels C of the features.
        size: number K of codes.
    """

    def __init__(self, dim: int, size: int) -> None:
        super().__init__()
        width = dim // 2
        self.start = nn.Parameter(0.02 * torch.randn(width))
        self.embed = nn.Linear(dim, width)
        self.transformer = VideoTransformer(width, (("time", 6),), fitting_heads(width // 2, 6))
        self.norm, self.predict = nn.LayerNorm(width), nn.Linear(width, size)

    def forward(self, features: Tensor) -> Tensor:
        """Returns the logits [B,N,K] of all codes from their features [B,N,C]; those of code n from 0..n-1."""
        before = torch.cat([self.start.expand(len(features), 1, -1), self.embed(features[:, :-1])], 1)
        # The sequence is a video of frames with one cell.
        x = self.transformer(before[:, :, None, None])[:, :, 0, 0]
        logits: Tensor = self.predict(self.norm(x))
        return logits


PRESET = Preset(
    spec=(
        "tubelet(768, stride=(4, 8, 8)) | learned_queries(1024, num_layers=12, heads=12) "
        "| stochastic_vq(8192, code_dim=16) > mask_tokens(width=768, stride=(4, 8, 8), num_tokens=1024, "
        "num_layers=12, heads=12, positions=(4, 16, 16))"
    ),
    clip=(16, 128, 128),
    tiny=(
        "tubelet(96, stride=(4, 8, 8)) | learned_queries(16, num_layers=3, heads=4) "
        "| stochastic_vq(256, code_dim=16) > mask_tokens(width=96, stride=(4, 8, 8), num_tokens=16, num_layers=3, "
        "heads=4, positions=(1, 4, 4))"
    ),
    tiny_clip=(4, 32, 32),
    window=16,
    tiny_window=4,
    kind=Larp,
    recipe={"pixel": "l1"},
    paper="LARP: Tokenizing Videos with a Learned Autoregressive Generative Prior, arXiv 2410.21264",
    license="code MIT",
    tokens=1024,
    parameters=173,
    figures={
        "UCF-101 train 16x128x128 rFVD, sizes L and L-Long": "24, 20",
        "gFVD UCF-101, Kinetics-600": "57, 5.1",
    },
    differs=(
        "The published count of parameters is that of encoder, queries, quantizer and decoder. The prior has half the "
        "width, 6 blocks with rotary positions and a linear layer to the codes; its size in the paper could not be "
        "confirmed. After `eval()` codes are the nearest entries; the authors' are sampled unless set otherwise."
    ),
)
