"""Learned queries: a transformer over all tokens and a few queries, of which the queries are kept."""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fewtokens.core.method import Resampled, Resampler, load_weights
from fewtokens.core.tokens import Tokens
from fewtokens.methods.ops.per_frame import check_dim, resample_frames
from fewtokens.methods.ops.resample import (
    PositionEmbedding,
    check_counts,
    constant_count,
    feed_forward,
    fitting_heads,
    key_mask,
    masked_features,
    split_heads,
    to_float32,
    with_attention_floor,
)

_STYLES = ("titok", "titok_mixed", "larp")


class LearnedQueries(Resampler):
    """Appends learned queries to the tokens, applies a transformer to both, and keeps the queries.

    The encoder of 1-D tokenizers: TiTok (arXiv 2406.07550), One-D-Piece (2501.10064) and LARP (2410.21264) with
    queries that attend to one another, Semanticist (2503.08685) with `ordered` ones. Pre-norm blocks with 4 * `dim`
    hidden channels; a LayerNorm follows the last. In the last block only the queries are computed. Without a
    `style`, positions of the tokens are a learned projection of sines of time, row and column, so any video size and
    the output of other methods work; with one, the tokens must contain their positions, as those of `tubelet` can.

    Attribution: the soft weights are the attention of the last block from the queries to the tokens, averaged over
    heads. Outputs keep the order of the queries, which decoders rely on.

    Args:
        keep: number of queries per video such as 256, or per frame such as "16/frame"; then frames are independent,
            and there must be one token per cell. Default: 32.
        dim: channels of the features.
        num_layers: number of blocks. Default: 4; the papers have 8 to 24.
        heads: maximum number of attention heads; the largest number up to this that divides `dim` is used.
        ordered: whether a query attends only to the tokens, to itself and to earlier queries, and tokens only to
            tokens. Then the first k queries are the same for any number of queries.
        channels: channels of the new tokens, by a linear layer at the end. Default: None, `dim` without a layer.
        style: "titok", the network of TiTok: a class token attends too; "titok_mixed", that of its first release and of
            One-D-Piece, which also reads the normalized queries [M,C] as [C,M] before `channels`, so that a new token
            has channels of several queries; or "larp": no biases of queries, keys and values in the blocks, and no norm
            at the end. Default: None, a plain one.
        checkpoint: path of a safetensors file with trained parameters; None initializes them randomly.
    """

    learned = True
    paper = "TiTok, arXiv 2406.07550; LARP, arXiv 2410.21264; Semanticist, arXiv 2503.08685"
    license = "written from the papers"
    cost = "per block: 12*(N+M)*C*C + 2*(N+M)*(N+M)*C MACs"

    def __init__(
        self,
        keep: int | str = 32,
        *,
        dim: int = 384,
        num_layers: int = 4,
        heads: int = 6,
        ordered: bool = False,
        channels: int | None = None,
        style: Literal["titok", "titok_mixed", "larp"] | None = None,
        checkpoint: str | None = None,
    ) -> None:
        super().__init__()
        self.set_budget(keep, units=("count", "per frame"))
        assert self.budget is not None
        check_counts(num_layers=num_layers, heads=heads)
        if style not in (None, *_STYLES):
            raise ValueError(f"style must be one of {', '.join(_STYLES)}, got {style!r}")
        self.dim, self.num_layers, self.heads = dim, num_layers, heads
        self.ordered, self.style, self.checkpoint = ordered, style, checkpoint
        self.places = PositionEmbedding(dim) if style is None else None
        # Of the length of normalized features, as after the first norm of TiTok. Shorter ones, as in LARP, are soon all
        # the same, since what a block adds is nearly equal for all queries at the start.
        scale = dim**-0.5 if style == "larp" else 1.0
        self.queries = nn.Parameter(scale * torch.randn(int(self.budget.value), dim))
        self.class_token = nn.Parameter(torch.randn(dim)) if style in _STYLES[:2] else None
        self.blocks = nn.ModuleList(QueryBlock(dim, heads, bias=style != "larp") for _ in range(num_layers))
        if channels is not None:
            check_counts(channels=channels)
        self.channels = channels
        self.norm = nn.Identity() if style == "larp" else nn.LayerNorm(dim)
        self.project = nn.Identity() if channels is None else nn.Linear(dim, channels)
        load_weights(self, checkpoint)

    @property
    def out_dim(self) -> int:
        """The number of channels of the new tokens."""
        return self.channels or self.dim

    def resample(self, tokens: Tokens, **cues: Any) -> Resampled:
        check_dim(self.name, tokens.C, self.dim)
        assert self.budget is not None
        x, mask = masked_features(tokens, self.queries.dtype), tokens.mask
        if self.places is not None:
            x = x + self.places(tokens)
        if per_frame := self.budget.unit == "per frame":
            T = tokens.require_full_grid(self.name).grid.T
            x, mask = (value.unflatten(1, (T, -1)).flatten(0, 1) for value in (x, mask))
        if self.class_token is not None:
            x, mask = torch.cat([self.class_token.expand(len(x), 1, -1), x], 1), F.pad(mask, (1, 0), value=True)
        queries = self.queries.expand(len(x), -1, -1)
        for block in self.blocks[:-1]:
            x, queries = block(x, queries, mask, ordered=self.ordered)
        last = self.blocks[-1]
        assert isinstance(last, QueryBlock)
        queries, attention = last.attend_queries(x, queries, mask, ordered=self.ordered)
        queries = self.norm(queries)
        if self.style == "titok_mixed":
            queries = queries.reshape(len(queries), self.dim, -1).mT
        if self.class_token is not None:
            attention = attention[..., 1:]
        queries, attention = self.project(queries), with_attention_floor(attention)
        if per_frame:
            return resample_frames(tokens, attention, queries)
        return Resampled(queries, attention, constant_count(tokens, queries.shape[1]))


class QueryBlock(nn.Module):
    """A pre-norm transformer block over tokens and queries; `bias` is whether queries, keys and values have biases."""

    def __init__(self, dim: int, heads: int, *, bias: bool = True) -> None:
        super().__init__()
        self.heads = fitting_heads(dim, heads)
        self.norm1, self.qkv, self.out = nn.LayerNorm(dim), nn.Linear(dim, 3 * dim, bias=bias), nn.Linear(dim, dim)
        self.norm2, self.mlp = nn.LayerNorm(dim), feed_forward(dim)

    def forward(self, x: Tensor, queries: Tensor, mask: Tensor, *, ordered: bool) -> tuple[Tensor, Tensor]:
        """Maps tokens [B,N,C] with mask [B,N] and queries [B,M,C] to new ones."""
        N = x.shape[1]
        both = torch.cat([x, queries], 1)
        q, k, v = self._project(both)
        visible = visible_keys(mask, queries.shape[1], ordered=ordered)
        if ordered:
            of_tokens = F.scaled_dot_product_attention(q[:, :, :N], k[:, :, :N], v[:, :, :N], key_mask(mask))
            mixed = torch.cat([of_tokens, F.scaled_dot_product_attention(q[:, :, N:], k, v, visible)], 2)
        else:
            mixed = F.scaled_dot_product_attention(q, k, v, visible)
        both = self._finish(both, mixed)
        return both[:, :N], both[:, N:]

    def attend_queries(self, x: Tensor, queries: Tensor, mask: Tensor, *, ordered: bool) -> tuple[Tensor, Tensor]:
        """Computes only the queries; returns them, [B,M,C], and their attention to the tokens, float32 [B,M,N]."""
        N = x.shape[1]
        q, k, v = self._project(torch.cat([x, queries], 1))
        q, visible = q[:, :, N:], visible_keys(mask, queries.shape[1], ordered=ordered)
        logits = to_float32(q) @ to_float32(k).transpose(2, 3) * q.shape[-1] ** -0.5
        weights = logits.masked_fill(~visible, -torch.inf).softmax(-1)
        queries = self._finish(queries, weights.to(v.dtype) @ v)
        return queries, weights[..., :N].mean(1)

    def _project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = (split_heads(part, self.heads) for part in self.qkv(self.norm1(x)).chunk(3, 2))
        return q, k, v

    def _finish(self, x: Tensor, mixed: Tensor) -> Tensor:
        x = x + self.out(mixed.transpose(1, 2).flatten(2))
        finished: Tensor = x + self.mlp(self.norm2(x))
        return finished


def visible_keys(mask: Tensor, queries: int, *, ordered: bool) -> Tensor:
    """Which of the real tokens and of the queries the queries attend to, bool [B,1,1 or M,N+M]."""
    seen = torch.ones(queries, queries, dtype=torch.bool, device=mask.device)
    rows = seen.tril() if ordered else seen[:1]
    rows = rows.expand(len(mask), -1, -1)
    return torch.cat([mask[:, None].expand(-1, rows.shape[1], -1), rows], 2)[:, None]
