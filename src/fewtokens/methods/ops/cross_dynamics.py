"""Cross-dynamics attention: how the map of a video's clusters, which cell went to which, reaches the few tokens.

Of Token Dynamics / VQToken, arXiv 2503.16980 (section 3). The map is `Tokens.assignment` after clustering. The text
and the released code do different things, and neither says how T*H*W indices become K rows; so there are three.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fewtokens.core.tokens import Tokens
from fewtokens.methods.ops.resample import fitting_heads, split_heads, visible

# The grid that a cluster's cells are pooled to: time, rows, columns.
POOLED = (8, 7, 7)
_PLACES = POOLED[0] * POOLED[1] * POOLED[2]
_STATISTICS = 8
# One-hot maps are pooled in blocks of at most this many entries (64 MiB in float32).
_ENTRIES_AT_ONCE = 1 << 24


def occupancy(base: Tokens) -> Tensor:
    """Where each cluster lies: its cells, adaptively averaged to 8 x 7 x 7 places, float32 [B,K,392].

    Padded frames count nowhere, so a video has the same rows alone and in a batch.
    """
    B, K = base.B, base.N
    T, H, W = base.grid.shape
    lengths = torch.tensor([one.T for one in base.grid.videos(B)], device=base.device)
    time = _windows(lengths, T, POOLED[0])
    rows, columns = (
        _windows(torch.tensor([n], device=base.device), n, p)[0] for n, p in zip((H, W), POOLED[1:], strict=True)
    )
    source = base.assignment.reshape(B, 1, T, H, W)
    block = max(1, _ENTRIES_AT_ONCE // (B * base.grid.cells))
    pooled = []
    for numbers in torch.arange(K, device=base.device).split(block):
        own = (source == numbers.view(1, -1, 1, 1, 1)).float()
        pooled.append(torch.einsum("bkthw,bpt,qh,rw->bkpqr", own, time, rows, columns).flatten(2))
    return torch.cat(pooled, 1)


def _windows(lengths: Tensor, size: int, parts: int) -> Tensor:
    """What adaptive average pooling of `lengths` [B] of `size` places gives each of `parts`, [B,parts,size]."""
    part = torch.arange(parts, device=lengths.device)
    begin = part * lengths[:, None] // parts
    end = -(-(part + 1) * lengths[:, None] // parts)
    place = torch.arange(size, device=lengths.device)
    inside = (place >= begin[..., None]) & (place < end[..., None])
    return inside / (end - begin)[..., None]


def statistics(base: Tokens) -> Tensor:
    """Mean (t,y,x) and their deviation in parts of the video, log of the share of cells, and part of the time from its
    first to its last frame, of each cluster: float32 [B,K,8]."""
    B, K = base.B, base.N
    lengths = torch.tensor([one.T for one in base.grid.videos(B)], device=base.device).float()
    size = torch.stack([lengths, *(torch.full_like(lengths, n) for n in base.grid.shape[1:])], 1)[:, None]
    cells = base.grid.positions(base.device).expand(B, -1, -1)
    slot = base.assignment.masked_fill(base.assignment < 0, K)
    share = torch.zeros(B, K + 1, 7, device=base.device)
    place = (cells + 0.5) / size
    values = torch.cat([torch.ones_like(place[..., :1]), place, place.square()], 2)
    share = share.scatter_add(1, slot[..., None].expand(-1, -1, 7), values)[:, :K]
    count = share[..., :1].clamp(min=1)
    mean, square = share[..., 1:4] / count, share[..., 4:] / count
    deviation = (square - mean.square()).clamp(min=0).sqrt()
    frame = cells[..., 0].contiguous()
    first = torch.full((B, K + 1), float(base.grid.T), device=base.device).scatter_reduce(1, slot, frame, "amin")[:, :K]
    last = torch.zeros(B, K + 1, device=base.device).scatter_reduce(1, slot, frame, "amax")[:, :K]
    span = (last - first + 1).clamp(min=0) / lengths[:, None]
    mass = (count.squeeze(2) / (size.prod(2))).log()
    return torch.cat([mean, deviation, mass[..., None], span[..., None]], 2) * base.mask[..., None]


class CrossDynamics(nn.Module):
    """The recommended module: B' = B + gate * Attention(Q = B, K = B, V = what the map says of each cluster).

    K rows in, K rows out; numbering the clusters otherwise permutes the rows and nothing else; with the gate at 0,
    where it begins, the tokens are the plain centres.
    """

    def __init__(self, dim: int, heads: int = 8) -> None:
        super().__init__()
        self.heads = fitting_heads(dim, heads)
        self.norm, self.norm_map = nn.LayerNorm(dim), nn.LayerNorm(_PLACES + _STATISTICS)
        self.describe = nn.Sequential(nn.Linear(_PLACES + _STATISTICS, dim), nn.GELU(), nn.Linear(dim, dim))
        self.query, self.key, self.value, self.out = (nn.Linear(dim, dim, bias=False) for _ in range(4))
        self.gate = nn.Parameter(torch.zeros(()))

    def forward(self, features: Tensor, base: Tokens) -> Tensor:
        """[B,K,C] to [B,K,C]; `base` says which cells each row stands for."""
        told = torch.cat([occupancy(base), statistics(base)], 2).to(features.dtype)
        told = self.describe(self.norm_map(told))
        x = self.norm(features)
        mixed = _attend(self.query(x), self.key(x), self.value(told), base.mask, self.heads)
        return features + self.gate * self.out(mixed)


class PaperAttention(nn.Module):
    """The formula of the text: B' = MultiHead(Q = B W_Q, K = B W_K, V = MLP(Flatten(M)) W_V), without more.

    Row k of Flatten(M) is taken as the places of cluster k, pooled to one size, since the text does not say.
    """

    def __init__(self, dim: int, heads: int = 8) -> None:
        super().__init__()
        self.heads = fitting_heads(dim, heads)
        self.describe = nn.Sequential(nn.Linear(_PLACES, dim), nn.GELU(), nn.Linear(dim, dim))
        self.query, self.key, self.value = (nn.Linear(dim, dim, bias=False) for _ in range(3))

    def forward(self, features: Tensor, base: Tokens) -> Tensor:
        """[B,K,C] to [B,K,C]; `base` says which cells each row stands for."""
        told = self.describe(occupancy(base).to(features.dtype))
        return _attend(self.query(features), self.key(features), self.value(told), base.mask, self.heads)


def _attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, heads: int) -> Tensor:
    q, k, v = (split_heads(x, heads) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, visible(mask)).transpose(1, 2).flatten(2)


class ReferenceAttention(nn.Module):
    """What the released code trained: frames of the map ask, the centres answer, max(T, K) rows come out.

    A frame's cluster numbers, as floats, go through one linear layer; a decoder layer of post-norm (self-attention,
    cross-attention to the centres, ReLU) follows. The shorter of the two lists is repeated from its start to the length
    of the longer. Its 20 tensors are those of `model.cross_attention.*` of the released checkpoint. Cluster numbers are
    names, so numbering them otherwise changes the result: a defect of the reference.
    """

    def __init__(self, dim: int, side: int) -> None:
        super().__init__()
        layer = nn.TransformerDecoderLayer(dim, fitting_heads(dim, 8), batch_first=True)
        self.transformer_decoder = nn.TransformerDecoder(layer, 1)
        self.to_q_proj = nn.Linear(side * side, dim)

    def forward(self, centres: Tensor, base: Tokens) -> tuple[Tensor, Tensor, Tensor]:
        """Rows [B,M,C], what each looked at [B,M,K], and how many are real, int64 [B]; M = max(T, K)."""
        lengths = torch.tensor([one.T for one in base.grid.videos(base.B)], device=base.device)
        count = base.count.maximum(lengths)
        place = torch.arange(int(count.max()), device=base.device)
        hidden = place >= count[:, None]  # [B,M]
        frames = base.assignment.reshape(base.B, base.grid.T, -1)
        asking = self.to_q_proj(_tiled(frames.to(centres.dtype), place, lengths))
        code = place % base.count[:, None]
        memory = _tiled(centres, place, base.count)
        layer: nn.TransformerDecoderLayer = self.transformer_decoder.layers[0]
        own = layer.self_attn(asking, asking, asking, key_padding_mask=hidden, need_weights=False)[0]
        x = layer.norm1(asking + layer.dropout1(own))
        seen, weights = layer.multihead_attn(x, memory, memory, key_padding_mask=hidden)
        x = layer.norm2(x + layer.dropout2(seen))
        x = layer.norm3(x + layer.dropout3(layer.linear2(layer.dropout(layer.linear1(x).relu()))))
        # Centres that were repeated share what was looked at.
        looked = weights.new_zeros(*weights.shape[:2], base.N)
        return x, looked.scatter_add(2, code[:, None].expand_as(weights), weights), count


def _tiled(rows: Tensor, place: Tensor, count: Tensor) -> Tensor:
    """Rows [B,n,D] of which `count` [B] are real, repeated from their start to the places [M]."""
    index = place % count[:, None]
    return rows.gather(1, index[..., None].expand(-1, -1, rows.shape[2]))
