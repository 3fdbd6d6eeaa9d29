"""Vista-LLaMA's sequential projector: the tokens of a frame are queried by those of the previous frame."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fewtokens.core.method import Resampled, Resampler, load_weights
from fewtokens.core.shapes import shape_repr
from fewtokens.core.tokens import Tokens
from fewtokens.methods.ops.per_frame import check_dim, resample_frames
from fewtokens.methods.ops.resample import (
    PositionEmbedding,
    QueryLayer,
    check_counts,
    masked_features,
    with_attention_floor,
)


@dataclass(frozen=True)
class SequentialState:
    """State between chunks.

    Attributes:
        queries: [B,M,C], the tokens of the last frame.
    """

    queries: Tensor

    __repr__ = shape_repr


class VistaLlama(Resampler):
    """Reduces each frame to `keep` tokens with a Q-Former whose queries are the tokens of the previous frame; causal.

    The sequential visual projector of Vista-LLaMA (arXiv 2312.08870). The queries of the first frame are learned; those
    of frame t are the outputs for frame t-1, so each token carries the context of all earlier frames. Every layer has
    self-attention, cross-attention to the cells of the frame, and an MLP; as in `qformer`, a LayerNorm follows each
    residual, which bounds the tokens however long the video. The language model's part of the paper is
    `--streams vista_llama` of `fewtokens train video-llm`. Not stated in the abstract, so chosen here: one width
    throughout, the number of layers, and rows and columns as a learned projection of sines (time is in the recurrence).

    Attribution: the soft weights are the cross-attention to the cells of the frame, averaged over heads and layers; the
    way through earlier frames is not followed. Tokens of a frame keep the order of their queries.

    Args:
        keep: tokens per frame, written "32/frame".
        dim: channels of the features.
        num_layers: number of layers, the same ones for all frames.
        heads: maximum number of attention heads; the largest number up to this that divides `dim` is used.
        checkpoint: path of a safetensors file with trained parameters; None initializes them randomly.
    """

    learned = True
    full_grid = True
    paper = "Vista-LLaMA, arXiv 2312.08870"
    license = "written from the abstract"
    cost = "per layer and frame: 14*M*C*C + 2*M*M*C + 2*H*W*C*C + 2*M*H*W*C MACs; frames one after another"

    def __init__(
        self,
        keep: int | str = "32/frame",
        *,
        dim: int = 384,
        num_layers: int = 2,
        heads: int = 8,
        checkpoint: str | None = None,
    ) -> None:
        super().__init__()
        self.set_budget(keep, units=("per frame",))
        check_counts(num_layers=num_layers, heads=heads)
        assert self.budget is not None
        self.dim, self.num_layers, self.heads, self.checkpoint = dim, num_layers, heads, checkpoint
        self.queries = nn.Parameter(0.02 * torch.randn(int(self.budget.value), dim))
        self.norm_queries, self.norm_seen = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.places = PositionEmbedding(dim)
        self.layers = nn.ModuleList(QueryLayer(dim, heads) for _ in range(num_layers))
        load_weights(self, checkpoint)

    @property
    def causal(self) -> bool:
        return True

    def resample(self, tokens: Tokens, **cues: Any) -> Resampled:
        return self._project(tokens, None)[0]

    def step(self, tokens: Tokens, state: SequentialState | None = None, **cues: Any) -> tuple[Tokens, SequentialState]:
        """Returns the tokens of these frames; see `Method.step`."""
        new, last = self._project(tokens, None if state is None else state.queries)
        return new.apply_to(tokens), SequentialState(last.detach())

    def _project(self, tokens: Tokens, queries: Tensor | None) -> tuple[Resampled, Tensor]:
        """Returns the tokens of all frames, and those of each video's last frame, [B,M,C].

        Args:
            queries: [B,M,C], the tokens of the frame before the first one; None for the learned ones.
        """
        check_dim(self.name, tokens.C, self.dim)
        in_frame = tokens.replace(positions=tokens.positions * tokens.positions.new_tensor([0.0, 1.0, 1.0]))
        x = self.norm_seen(masked_features(tokens, self.queries.dtype) + self.places(in_frame))
        frames, real = (value.unflatten(1, (tokens.grid.T, -1)) for value in (x, tokens.mask))
        if queries is None:
            queries = self.norm_queries(self.queries).expand(tokens.B, -1, -1)
        features, attention = [], []
        for frame, mask in zip(frames.unbind(1), real.unbind(1), strict=True):
            outputs, weights = queries, []
            for layer in self.layers:
                outputs, seen = layer(outputs, frame, mask)
                weights.append(seen)
            features.append(outputs)
            attention.append(with_attention_floor(torch.stack(weights).mean(0)))
            queries = torch.where(mask.any(1)[:, None, None], outputs, queries)
        maps = torch.stack(attention, 1).flatten(0, 1)  # [B*T,M,H*W]
        return resample_frames(tokens, maps, torch.stack(features, 1).flatten(0, 1)), queries
