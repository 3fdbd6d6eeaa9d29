"""Cross-dynamics attention: passes the map of a video's clusters (which cell is in which) to the few tokens.

Token Dynamics / VQToken, arXiv 2503.16980 (section 3). The map is `Tokens.assignment` after clustering. The paper and
the released code differ, and neither specifies how T*H*W indices become K rows; hence three variants.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fewtokens.core.plan import take_rows
from fewtokens.core.tokens import Tokens
from fewtokens.methods.ops.resample import fitting_heads, key_mask, split_heads

# The grid that a cluster's cells are pooled to: time, rows, columns.
POOLED = (8, 7, 7)
_NUM_BINS = POOLED[0] * POOLED[1] * POOLED[2]
_STATISTICS = 8
# One-hot maps are pooled in blocks of at most this many entries (64 MiB in float32).
_MAX_BLOCK_ENTRIES = 1 << 24


def occupancy(base: Tokens) -> Tensor:
    """The occupancy map of each cluster: its cells, adaptively average-pooled to 8 x 7 x 7 bins, float32 [B,K,392].

    Padded frames are ignored, so a video has the same rows alone and in a batch.
    """
    B, K = base.B, base.N
    T, H, W = base.grid.shape
    lengths = torch.tensor([grid.T for grid in base.grid.videos(B)], device=base.device)
    time = _windows(lengths, T, POOLED[0])
    rows, columns = (
        _windows(torch.tensor([n], device=base.device), n, p)[0] for n, p in zip((H, W), POOLED[1:], strict=True)
    )
    assignment = base.assignment.reshape(B, 1, T, H, W)
    block = max(1, _MAX_BLOCK_ENTRIES // (B * base.grid.cells))
    pooled = []
    for indices in torch.arange(K, device=base.device).split(block):
        members = (assignment == indices.view(1, -1, 1, 1, 1)).float()
        pooled.append(torch.einsum("bkthw,bpt,qh,rw->bkpqr", members, time, rows, columns).flatten(2))
    return torch.cat(pooled, 1)


def _windows(lengths: Tensor, size: int, parts: int) -> Tensor:
    """The weights of adaptive average pooling of `lengths` [B] of `size` positions to `parts` bins, [B,parts,size]."""
    part = torch.arange(parts, device=lengths.device)
    begin = part * lengths[:, None] // parts
    end = -(-(part + 1) * lengths[:, None] // parts)
    position = torch.arange(size, device=lengths.device)
    inside = (position >= begin[..., None]) & (position < end[..., None])
    return inside / (end - begin)[..., None]


def statistics(base: Tokens) -> Tensor:
    """Statistics of each cluster, float32 [B,K,8].

    Mean and standard deviation of (t,y,x) as fractions of the video, log of its fraction of the cells, and the fraction
    of the video's duration from its first to its last frame.
    """
    B, K = base.B, base.N
    lengths = torch.tensor([grid.T for grid in base.grid.videos(B)], device=base.device).float()
    size = torch.stack([lengths, *(torch.full_like(lengths, n) for n in base.grid.shape[1:])], 1)[:, None]
    cells = base.grid.positions(base.device).expand(B, -1, -1)
    slot = base.assignment.masked_fill(base.assignment < 0, K)
    moments = torch.zeros(B, K + 1, 7, device=base.device)
    center = (cells + 0.5) / size
    values = torch.cat([torch.ones_like(center[..., :1]), center, center.square()], 2)
    moments = moments.scatter_add(1, slot[..., None].expand(-1, -1, 7), values)[:, :K]
    count = moments[..., :1].clamp(min=1)
    mean, square = moments[..., 1:4] / count, moments[..., 4:] / count
    deviation = (square - mean.square()).clamp(min=0).sqrt()
    frame = cells[..., 0].contiguous()
    first = torch.full((B, K + 1), float(base.grid.T), device=base.device).scatter_reduce(1, slot, frame, "amin")[:, :K]
    last = torch.zeros(B, K + 1, device=base.device).scatter_reduce(1, slot, frame, "amax")[:, :K]
    span = (last - first + 1).clamp(min=0) / lengths[:, None]
    mass = (count.squeeze(2) / (size.prod(2))).log()
    return torch.cat([mean, deviation, mass[..., None], span[..., None]], 2) * base.mask[..., None]


class CrossDynamics(nn.Module):
    """The recommended module: B' = B + gate * Attention(Q = B, K = B, V = description of each cluster's map).

    K rows in, K rows out; renumbering the clusters only permutes the rows. At initialization the gate is 0, so the
    tokens are the centroids.
    """

    def __init__(self, dim: int, heads: int = 8) -> None:
        super().__init__()
        self.heads = fitting_heads(dim, heads)
        self.norm, self.norm_map = nn.LayerNorm(dim), nn.LayerNorm(_NUM_BINS + _STATISTICS)
        self.describe = nn.Sequential(nn.Linear(_NUM_BINS + _STATISTICS, dim), nn.GELU(), nn.Linear(dim, dim))
        self.query, self.key, self.value, self.out = (nn.Linear(dim, dim, bias=False) for _ in range(4))
        self.gate = nn.Parameter(torch.zeros(()))

    def forward(self, features: Tensor, base: Tokens) -> Tensor:
        """Maps [B,K,C] to [B,K,C]; `base` specifies the cells of each row."""
        description = torch.cat([occupancy(base), statistics(base)], 2).to(features.dtype)
        description = self.describe(self.norm_map(description))
        x = self.norm(features)
        mixed = _attend(self.query(x), self.key(x), self.value(description), base.mask, self.heads)
        return features + self.gate * self.out(mixed)


class PaperAttention(nn.Module):
    """The formula of the paper: B' = MultiHead(Q = B W_Q, K = B W_K, V = MLP(Flatten(M)) W_V).

    Row k of Flatten(M) is interpreted as the positions of cluster k, pooled to a fixed size, since the paper does not
    specify it.
    """

    def __init__(self, dim: int, heads: int = 8) -> None:
        super().__init__()
        self.heads = fitting_heads(dim, heads)
        self.describe = nn.Sequential(nn.Linear(_NUM_BINS, dim), nn.GELU(), nn.Linear(dim, dim))
        self.query, self.key, self.value = (nn.Linear(dim, dim, bias=False) for _ in range(3))

    def forward(self, features: Tensor, base: Tokens) -> Tensor:
        """Maps [B,K,C] to [B,K,C]; `base` specifies the cells of each row."""
        description = self.describe(occupancy(base).to(features.dtype))
        return _attend(self.query(features), self.key(features), self.value(description), base.mask, self.heads)


def _attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, heads: int) -> Tensor:
    q, k, v = (split_heads(x, heads) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, key_mask(mask)).transpose(1, 2).flatten(2)


class ReferenceAttention(nn.Module):
    """The module of the released code: frames of the map are queries, centroids are keys, max(T, K) rows are returned.

    A frame's cluster indices, as floats, pass through one linear layer and a post-norm decoder layer (self-attention,
    cross-attention to the centroids, ReLU). The shorter of the two sequences is repeated from its start to the length
    of the longer. The 20 tensors are those of `model.cross_attention.*` in the released checkpoint. Cluster indices are
    arbitrary, so renumbering them changes the result: a defect of the reference code.
    """

    def __init__(self, dim: int, side: int) -> None:
        super().__init__()
        layer = nn.TransformerDecoderLayer(dim, fitting_heads(dim, 8), batch_first=True)
        self.transformer_decoder = nn.TransformerDecoder(layer, 1)
        self.to_q_proj = nn.Linear(side * side, dim)

    def forward(self, centroids: Tensor, base: Tokens) -> tuple[Tensor, Tensor, Tensor]:
        """Returns rows [B,M,C], their attention to the centroids [B,M,K], and real counts, int64 [B]; M = max(T, K)."""
        lengths = torch.tensor([grid.T for grid in base.grid.videos(base.B)], device=base.device)
        count = base.count.maximum(lengths)
        position = torch.arange(int(count.max()), device=base.device)
        hidden = position >= count[:, None]  # [B,M]
        frames = base.assignment.reshape(base.B, base.grid.T, -1)
        queries = self.to_q_proj(_tile(frames.to(centroids.dtype), position, lengths))
        centroid_index = position % base.count[:, None]
        memory = _tile(centroids, position, base.count)
        layer: nn.TransformerDecoderLayer = self.transformer_decoder.layers[0]
        mixed = layer.self_attn(queries, queries, queries, key_padding_mask=hidden, need_weights=False)[0]
        x = layer.norm1(queries + layer.dropout1(mixed))
        context, weights = layer.multihead_attn(x, memory, memory, key_padding_mask=hidden)
        x = layer.norm2(x + layer.dropout2(context))
        x = layer.norm3(x + layer.dropout3(layer.linear2(layer.dropout(layer.linear1(x).relu()))))
        # The attention to repeated centroids is summed.
        attention = weights.new_zeros(*weights.shape[:2], base.N)
        return x, attention.scatter_add(2, centroid_index[:, None].expand_as(weights), weights), count


def _tile(rows: Tensor, position: Tensor, count: Tensor) -> Tensor:
    """Rows [B,n,D], `count` [B] of which are real, repeated from their start and read at the positions [M]."""
    index = position % count[:, None]
    return take_rows(rows, index)
