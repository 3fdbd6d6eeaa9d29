"""Space-time attentional pooling: weighted sums over all tokens of the video, the weights learned."""

from __future__ import annotations

from typing import Any

from fewtokens.core.method import Resampled, Resampler, load_weights
from fewtokens.core.tokens import Tokens
from fewtokens.methods.ops.per_frame import check_dim
from fewtokens.methods.ops.resample import Summary, by_time, check_counts, counts_of, features_of, seen_by_all


class AttentionalPool(Resampler):
    """`keep` weighted sums over all the tokens of the video: W = softmax over tokens of MLP(LN(x)), y = W x.

    BLIP-3-Video (xGen-MM-Vid, arXiv 2410.16267): TokenLearner 1.1 over space and time at once. Here
    attention is not only attribution: the soft weights are exactly what made the features, so each token is a convex
    combination of the video's. It differs from the paper: the tokens come in the order of their mean time, and a
    token whose weights all vanish in float32 counts for all outputs alike (with a weight of 1e-9).

    Args:
        keep: tokens of the whole video, a count; 16, 32 and 128 in the paper.
        dim: channels of the features.
        hidden: channels of the hidden layer.
        checkpoint: a safetensors file with trained parameters; None draws them.
    """

    learned = True
    paper = "BLIP-3-Video, arXiv 2410.16267"
    license = "written from the paper"
    cost = "N*hidden*(C + M) + N*M*C MACs"

    def __init__(self, keep: int = 32, *, dim: int = 384, hidden: int = 64, checkpoint: str | None = None) -> None:
        super().__init__()
        self.take_budget(keep, units=("count",))
        check_counts(hidden=hidden)
        self.dim, self.hidden, self.checkpoint = dim, hidden, checkpoint
        self.summary = Summary(dim, keep, hidden)
        load_weights(self, checkpoint)

    def resample(self, tokens: Tokens, **cues: Any) -> Resampled:
        check_dim(self.name, tokens.C, self.dim)
        maps = self.summary(features_of(tokens, self.summary.norm.weight.dtype), tokens.mask)
        return by_time(tokens, Resampled(None, seen_by_all(maps), counts_of(tokens, self.keep)))
