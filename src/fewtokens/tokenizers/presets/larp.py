"""LARP: queries over the whole video, whose codes a small autoregressive prior learns to predict during training."""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fewtokens.core.grid import Grid
from fewtokens.core.method import Method
from fewtokens.core.tokens import Tokens
from fewtokens.methods.learned.learned_queries import QueryBlock
from fewtokens.methods.quantizers.stochastic_vq import StochasticVq
from fewtokens.tokenizers.decoders.larp import Larp as LarpDecoder
from fewtokens.tokenizers.parts import Decoder, VideoEncoder
from fewtokens.tokenizers.preset import Preset
from fewtokens.tokenizers.tokenizer import Tokenizer

# Weight of the loss of the prior; largest share of inputs that are its own predictions, and the training steps over
# which this share grows to it.
_WEIGHT, _SHARE, _STEPS = 0.06, 0.5, 10_000


class Larp(Tokenizer):
    """A tokenizer with the loss of a prior over the sequence of its codes, whose gradient reaches the encoder.

    LARP (arXiv 2410.21264): the prior reads the entries of the codes, with the straight-through gradient, and predicts
    the next code; so the encoder learns codes that are easy to predict. In training it runs twice: in the second round,
    a random share of its inputs are samples of the predictions of the first (scheduled sampling), and the loss is the
    mean of both; the share grows linearly to a half in 10,000 steps. The prior is not used to encode or decode. It has
    half the width and the number of blocks of the decoder.

    Raises:
        ValueError: the quantizer is not `stochastic_vq` with entries of as many channels as the tokens, or the decoder
            is not `larp`.
    """

    def __init__(
        self, encoder: VideoEncoder, methods: list[Method], decoder: Decoder, *, window: int | None = None
    ) -> None:
        super().__init__(encoder, methods, decoder, window=window)
        quantizer = self.quantizer
        if not isinstance(quantizer, StochasticVq) or quantizer.dim != quantizer.code_dim:
            raise ValueError(
                f"larp requires stochastic_vq on tokens with the channels of its entries, got {self.spec!r}"
            )
        if not isinstance(decoder, LarpDecoder):
            raise ValueError(f"larp requires the decoder larp, got {decoder.name}")
        tokens = int(self.pipeline.planned_count(Grid(1, 1, 1)) or 0)
        self.prior = Prior(quantizer.dim, decoder.width // 2, tokens, decoder.num_layers)
        self.steps: Tensor
        self.register_buffer("steps", torch.zeros((), dtype=torch.long))

    def extra_losses(self, frames: Tensor, tokens: Tokens, decoded: Tensor | None) -> dict[str, Tensor]:
        assert tokens.codes is not None
        # The entries, of length 1; the gradient of the logits does not move them.
        table = F.normalize(cast(StochasticVq, self.quantizer).table.detach().float(), dim=-1)
        entries, real = tokens.features, tokens.mask[:, 1:]
        logits = [self.prior(entries) @ table.T]
        if self.training:
            with torch.no_grad():
                share = _SHARE * (self.steps / _STEPS).clamp(max=1)
                sampled = table[logits[0].flatten(0, 1).softmax(-1).multinomial(1)[:, 0]].view_as(entries[:, 1:])
                replaced = torch.rand(real.shape, device=tokens.device) < share
                self.steps += 1
            later = torch.where(replaced[..., None], sampled.to(entries.dtype), entries[:, 1:])
            logits.append(self.prior(torch.cat([entries[:, :1], later], 1)) @ table.T)
        losses = [F.cross_entropy(part[real].float(), tokens.codes[:, 1:, 0][real]) for part in logits]
        return {"prior": _WEIGHT * torch.stack(losses).mean()}


class Prior(nn.Module):
    """A causal transformer that predicts the entry of each code of a sequence from those before it.

    Pre-norm blocks with learned positions. The logits of a code are the products of the prediction and the entries.

    Args:
        dim: channels C of the entries.
        width: channels of the transformer.
        length: largest number N of codes.
        num_layers: number of blocks.
        heads: largest number of attention heads that divides `width` is used, up to this.
    """

    def __init__(self, dim: int, width: int, length: int, num_layers: int, heads: int = 6) -> None:
        super().__init__()
        self.embed = nn.Linear(dim, width)
        self.positions = nn.Parameter(0.02 * torch.randn(length, width))
        self.blocks = nn.ModuleList(QueryBlock(width, heads) for _ in range(num_layers))
        self.norm, self.predict = nn.LayerNorm(width), nn.Linear(width, dim)

    def forward(self, entries: Tensor) -> Tensor:
        """Returns the predictions [B,N-1,C] of entries 1..N-1 of [B,N,C]; that of n depends on 0..n-1."""
        before = entries[:, :-1]
        x = self.embed(before) + self.positions[: before.shape[1]]
        # Ordered queries attend to themselves and to earlier ones.
        none, mask = x[:, :0], x.new_zeros(len(x), 0, dtype=torch.bool)
        for block in self.blocks:
            _, x = block(none, x, mask, ordered=True)
        predicted: Tensor = self.predict(self.norm(x))
        return predicted


PRESET = Preset(
    spec=(
        "tubelet(768, stride=(4, 8, 8), positions='sine') | learned_queries(1024, num_layers=12, heads=12, "
        "channels=16, style='larp') | stochastic_vq(8192, code_dim=16) > larp(width=768, stride=(4, 8, 8), "
        "num_layers=12, heads=12)"
    ),
    clip=(16, 128, 128),
    tiny=(
        "tubelet(96, stride=(4, 8, 8), positions='sine') | learned_queries(16, num_layers=3, heads=4, channels=16, "
        "style='larp') | stochastic_vq(256, code_dim=16) > larp(width=96, stride=(4, 8, 8), num_layers=3, heads=4)"
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
        "The published count of parameters is that of encoder, queries, quantizer and decoder. The prior has no "
        "dropout, that of the authors 0.1, and the logits are not limited, where the authors normalize the prediction. "
        "After `eval()` codes are the nearest entries; the authors sample them unless set otherwise. The network is "
        "that of the released weights, which `load_tokenizer` reads."
    ),
)
