"""Shared by the resamplers: attention that returns its weights, position embeddings, and conversion to `Tokens`.

A resampler computes new features, which are not means of anything. Its attention becomes the soft weights of its tokens
(attribution), from which positions, sizes and `assignment` follow; it does not mean that features were averaged.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fewtokens.core.method import Resampled
from fewtokens.core.plan import group_count, position_order, split_blocks, take_rows
from fewtokens.core.tokens import Tokens

# A frame has this many units along each side, so that a position means the same at any resolution.
PARTS = 16
_WAVES = 8


def check_counts(**counts: int | None) -> None:
    """Raises a ValueError that names the first argument that is not an integer of at least 1."""
    for name, count in counts.items():
        if not isinstance(count, int) or isinstance(count, bool) or count < 1:
            raise ValueError(f"{name} must be an integer of at least 1, got {count!r}")


def check_text(name: str, text: Tensor, tokens: Tokens, dim: int) -> None:
    """Raises a ValueError if the cue "text" is not [B,L,D] with L >= 1 for these tokens and D = `dim`."""
    if text.ndim != 3 or len(text) != tokens.B or text.shape[1] < 1:
        raise ValueError(f"{name} requires text of shape [B,L,D] with B={tokens.B}, got {list(text.shape)}")
    if text.shape[2] != dim:
        raise ValueError(
            f"{name} was built for text of {dim} channels, got {text.shape[2]}; set text_dim={text.shape[2]}"
        )


def to_float32(x: Tensor) -> Tensor:
    """Converts half precision to float32, in which decisions are computed; float64 is unchanged."""
    return x if x.dtype == torch.float64 else x.float()


def masked_features(tokens: Tokens, dtype: torch.dtype) -> Tensor:
    """The features in the dtype of the parameters, zero in padded slots, [B,N,C]."""
    return tokens.features.masked_fill(~tokens.mask[..., None], 0).to(dtype)


def constant_count(tokens: Tokens, count: int) -> Tensor:
    """The same count for every video, int64 [B]."""
    return torch.full((tokens.B,), count, device=tokens.device)


def sort_by_time(tokens: Tokens, new: Resampled) -> Resampled:
    """Sorts the new tokens by mean time, then row, then column; with attribution in blocks those of each block."""
    plan = new.plan
    m, n = plan.block_weights.shape[2:]
    positions, mask = (split_blocks(x, n).flatten(0, 1) for x in (tokens.positions, tokens.mask))  # [B*G,n,...]
    weights = plan.block_weights.detach().float().clamp(min=0).flatten(0, 1) * mask[:, None]
    center = weights / weights.sum(2, keepdim=True).clamp(min=1e-12) @ positions
    order = position_order(center, plan.mask.reshape(-1, m))

    def sort(rows: Tensor) -> Tensor:
        return take_rows(rows.reshape(-1, m, rows.shape[-1]), order).reshape(rows.shape)

    return Resampled(None if new.features is None else sort(new.features), sort(new.attribution), new.count)


def attribute_by_attention(tokens: Tokens, features: Tensor, attention: Tensor, count: Tensor) -> Resampled:
    """Returns new tokens with their attention to the old ones as attribution, sorted by mean time.

    Args:
        tokens: the old tokens.
        features: [B,M,C] new features, in any float dtype.
        attention: [B,M,N], nonnegative; rows are scaled to sum to 1 over the real tokens. A token without any attention
            is dropped.
        count: int64 [B], the number of real tokens among the M.
    """
    attention = to_float32(attention) * tokens.mask[:, None]
    attention = attention / attention.sum(2, keepdim=True).clamp(min=1e-12)
    return sort_by_time(tokens, Resampled(features, attention, count))


def with_attention_floor(attention: Tensor) -> Tensor:
    """Adds a small attention to tokens that receive almost none, equal for all outputs, [B,M,N].

    Without it, a cell whose softmax weights underflow in float32 would not be part of any token.
    """
    return attention + 1e-9 * (attention.sum(1, keepdim=True) < 1e-9)


def fitting_heads(dim: int, heads: int) -> int:
    """The largest number of heads up to `heads` that divides `dim`."""
    return max(h for h in range(1, min(heads, dim) + 1) if dim % h == 0)


def split_heads(x: Tensor, heads: int) -> Tensor:
    """[B,N,C] to [B,heads,N,C/heads]."""
    return x.unflatten(2, (heads, -1)).transpose(1, 2)


def key_mask(mask: Tensor) -> Tensor:
    """The mask [B,1,M,N] of keys [B,N] (M = 1) or [B,M,N]; if no key is real, all are visible, to avoid NaN."""
    mask = mask | ~mask.any(-1, keepdim=True)
    return mask[:, None] if mask.ndim == 3 else mask[:, None, None]


def attention_weights(q: Tensor, k: Tensor, mask: Tensor | None = None) -> Tensor:
    """softmax(q k^T / sqrt(d)) over the real keys, in float32: [B,h,M,d], [B,h,N,d] to [B,h,M,N]."""
    logits = to_float32(q) @ to_float32(k).transpose(2, 3) * q.shape[-1] ** -0.5
    return (logits if mask is None else logits.masked_fill(~key_mask(mask), -torch.inf)).softmax(-1)


class Attention(nn.Module):
    """Multi-head attention that ignores padded keys.

    Without biases: a softmax is invariant to that of the keys, and the surrounding layers have their own. The number of
    heads is `fitting_heads`.

    Args:
        dim: channels of the queries and of the output.
        heads: maximum number of heads.
        context_dim: channels of the keys and values. Default: None, `dim`.
    """

    def __init__(self, dim: int, heads: int, context_dim: int | None = None) -> None:
        super().__init__()
        self.heads = fitting_heads(dim, heads)
        self.query = nn.Linear(dim, dim, bias=False)
        self.key = nn.Linear(context_dim or dim, dim, bias=False)
        self.value = nn.Linear(context_dim or dim, dim, bias=False)
        self.out = nn.Linear(dim, dim, bias=False)
        for layer in (self.query, self.key, self.value, self.out):
            nn.init.xavier_uniform_(layer.weight)

    def attend(self, x: Tensor, context: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Attends from x [B,M,C] to the context [B,N,D] with mask [B,N].

        Returns:
            [B,M,C], and the weights averaged over heads, float32 [B,M,N].
        """
        weights = attention_weights(*self._queries_and_keys(x, context), mask)
        mixed = weights.to(context.dtype) @ split_heads(self.value(context), self.heads)
        return self.out(mixed.transpose(1, 2).flatten(2)), weights.mean(1)

    def forward(self, x: Tensor, context: Tensor, mask: Tensor | None = None) -> Tensor:
        """As `attend` without the weights, [B,M,C], with PyTorch's fused attention; the mask may be [B,M,N]."""
        q, k = self._queries_and_keys(x, context)
        v = split_heads(self.value(context), self.heads)
        mixed = F.scaled_dot_product_attention(q, k, v, None if mask is None else key_mask(mask))
        return self.out(mixed.transpose(1, 2).flatten(2))

    def _queries_and_keys(self, x: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
        return split_heads(self.query(x), self.heads), split_heads(self.key(context), self.heads)


def feed_forward(dim: int) -> nn.Sequential:
    """A linear layer to 4 * dim channels, GELU, and a linear layer back."""
    return nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))


class Block(nn.Module):
    """A pre-norm transformer block: self-attention, then an MLP with 4 * dim hidden channels."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.attention = nn.LayerNorm(dim), Attention(dim, heads)
        self.norm2, self.mlp = nn.LayerNorm(dim), feed_forward(dim)

    def forward(self, x: Tensor) -> Tensor:
        """[B,N,C] to [B,N,C]."""
        y = self.norm1(x)
        x = x + self.attention(y, y)
        return x + self.mlp(self.norm2(x))


class IdentityLayer(nn.Module):
    """Pre-norm attention, to the input or a context, and an MLP; the identity before training."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm1, self.attention = nn.LayerNorm(dim), Attention(dim, 8)
        self.norm2, self.mlp = nn.LayerNorm(dim), feed_forward(dim)
        for parameter in (self.attention.out.weight, *self.mlp[-1].parameters()):
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor, context: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """[B,N,C], attending to a context [B,K,C] (None for itself) with mask [B,K] or [B,N,K]."""
        y = self.norm1(x)
        x = x + self.attention(y, y if context is None else self.norm1(context), mask)
        return x + self.mlp(self.norm2(x))


class QueryLayer(nn.Module):
    """A layer of a Q-Former: self-attention, cross-attention to the video if `cross`, and an MLP; post-norm."""

    def __init__(self, dim: int, heads: int, *, cross: bool = True) -> None:
        super().__init__()
        self.attention, self.norm1 = Attention(dim, heads), nn.LayerNorm(dim)
        self.cross = Attention(dim, heads) if cross else None
        self.norm2 = nn.LayerNorm(dim) if cross else nn.Identity()
        self.mlp, self.norm3 = feed_forward(dim), nn.LayerNorm(dim)

    def forward(
        self, queries: Tensor, x: Tensor, mask: Tensor, text: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Returns new queries [B,M,C] and their attention to x, [B,M,N], or None without cross-attention.

        `text`: rows [B,L,C] to which the queries also attend, next to one another.
        """
        seen = queries if text is None else torch.cat([queries, text], 1)
        queries = self.norm1(queries + self.attention(queries, seen))
        attention = None
        if self.cross is not None:
            mixed, attention = self.cross.attend(queries, x, mask)
            queries = self.norm2(queries + mixed)
        return self.norm3(queries + self.mlp(queries)), attention


class TokenSummary(nn.Module):
    """TokenLearner over a set of tokens: softmax over the tokens of MLP(LayerNorm(x)), one map per output.

    The last layer has no bias, to which the softmax would be invariant.
    """

    def __init__(self, dim: int, outputs: int, hidden: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.mlp = nn.Sequential(nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, outputs, bias=False))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """The maps, float32 [B,outputs,N], of x [B,N,C] and mask [B,N]; rows sum to 1."""
        logits = to_float32(self.mlp(self.norm(x))).transpose(1, 2)
        return (logits if mask is None else logits.masked_fill(~key_mask(mask)[:, 0], -torch.inf)).softmax(-1)


class PositionEmbedding(nn.Module):
    """Embeds positions: sines and cosines of time, row and column, then one learned layer.

    Time is counted in frames from the first one, rows and columns in sixteenths of a frame. So positions are defined
    for any number of frames, any resolution and the tokens of any earlier method, and no later frame changes them.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.layer = nn.Linear(6 * _WAVES, dim, bias=False)

    def forward(self, tokens: Tokens) -> Tensor:
        """The embeddings of the tokens' positions, [B,N,C]."""
        return self.embed(tokens.positions, tokens.grid.H, tokens.grid.W)

    def embed(self, positions: Tensor, H: int, W: int) -> Tensor:
        """The embeddings [B,N,C] of positions [B,N,3] (t, y, x) in frames of H x W cells."""
        scale = torch.tensor([1.0, PARTS / H, PARTS / W], device=positions.device)
        middle = torch.tensor([0.0, 0.5, 0.5], device=positions.device)
        rates = 10_000.0 ** (-torch.arange(_WAVES, device=positions.device) / _WAVES)
        angles = (((positions + middle) * scale)[..., None] * rates).flatten(2)
        return self.layer(torch.cat([angles.sin(), angles.cos()], 2).to(self.layer.weight.dtype))


def group_by_frame(tokens: Tokens) -> tuple[Tensor, Tensor]:
    """The tokens of each frame: their indices, int64 [B,T,n], and which of these are real, bool [B,T,n].

    n is the largest number of tokens of a frame. Works after an earlier method; a frame may then have no tokens.
    """
    T = tokens.grid.T
    frame = tokens.frame.masked_fill(~tokens.mask, T)
    count = group_count(frame, T + 1)[:, :T]
    slots = torch.arange(int(count.max()), device=tokens.device)
    start = count.cumsum(1) - count
    index = (start[..., None] + slots).clamp(max=tokens.N - 1)
    order = frame.argsort(dim=1, stable=True)
    return order.gather(1, index.flatten(1)).reshape(index.shape), slots < count[..., None]
