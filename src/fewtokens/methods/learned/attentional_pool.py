"""Attentional pooling (BLIP-3-Video): learned weighted sums over all tokens of a video."""

from __future__ import annotations

from typing import Any

from fewtokens.core.method import Resampled, Resampler, load_weights
from fewtokens.core.tokens import Tokens
from fewtokens.methods.ops.per_frame import check_dim
from fewtokens.methods.ops.resample import (
    TokenSummary,
    check_counts,
    constant_count,
    masked_features,
    sort_by_time,
    with_attention_floor,
)


class AttentionalPool(Resampler):
    """Pools all tokens of a video into a few weighted sums with learned weights.

    Attentional pooling of BLIP-3-Video (xGen-MM-Vid, arXiv 2410.16267), which is TokenLearner 1.1 over space and time
    jointly: W = softmax over tokens of MLP(LN(x)), y = W x. Attribution is exact: each output is the convex combination
    of the input tokens that its soft weights describe. Differences from the paper: outputs are sorted by their mean
    time, and an input token whose weights all vanish in float32 enters every output with weight 1e-9.

    Args:
        keep: number of output tokens per video, at least 1. The paper uses 16, 32 and 128. Default: 32.
        dim: channels of the features.
        hidden: channels of the hidden layer of the MLP.
        checkpoint: path of a safetensors file with trained parameters; None initializes them randomly.
    """

    learned = True
    paper = "BLIP-3-Video, arXiv 2410.16267"
    license = "written from the paper"
    cost = "N*hidden*(C + M) + N*M*C MACs"

    def __init__(self, keep: int = 32, *, dim: int = 384, hidden: int = 64, checkpoint: str | None = None) -> None:
        super().__init__()
        self.set_budget(keep, units=("count",))
        check_counts(hidden=hidden)
        self.dim, self.hidden, self.checkpoint = dim, hidden, checkpoint
        self.summary = TokenSummary(dim, keep, hidden)
        load_weights(self, checkpoint)

    def resample(self, tokens: Tokens, **cues: Any) -> Resampled:
        check_dim(self.name, tokens.C, self.dim)
        maps = self.summary(masked_features(tokens, self.summary.norm.weight.dtype), tokens.mask)
        return sort_by_time(tokens, Resampled(None, with_attention_floor(maps), constant_count(tokens, self.keep)))
