"""Attention rows, recomputed for the few queries that a method needs.

The layer's own norm, projections and rotary embedding are used, so the rows equal those of eager attention, while the
model keeps its own kernel. The full attention matrix (queries x keys) is never allocated.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fewtokens.core.plan import take_rows
from fewtokens.llm.interface import unsupported

# The submodules of decoder layers and of their attention; the code below accounts for all of them.
_LAYER = {"self_attn", "mlp", "input_layernorm", "post_attention_layernorm"}
_ATTENTION = {"q_proj", "k_proj", "v_proj", "o_proj", "q_norm", "k_norm", "rotary_emb"}
# The number of probabilities in memory (128 MiB in float32); more queries are processed in blocks.
_BLOCK_SIZE = 1 << 25


def check_layers(text: Any) -> None:
    """Raises a ValueError if the layers of a language model differ from what `attention_rows` and the hooks expect."""
    kinds = set(getattr(text.config, "layer_types", None) or ["full_attention"])
    if any(getattr(layer.self_attn, "sliding_window", None) for layer in text.layers if hasattr(layer, "self_attn")):
        kinds |= {"sliding_attention"}
    if kinds != {"full_attention"}:
        raise ValueError(f"methods inside a language model require layers of full attention, got {sorted(kinds)}")
    for layer in text.layers:
        parts = {name for name, _ in layer.named_children()}
        if parts != _LAYER:
            raise unsupported(f"decoder layers differ in {', '.join(sorted(parts ^ _LAYER))}")
        own = {name for name, _ in layer.self_attn.named_children()}
        if not {"q_proj", "k_proj"} <= own <= _ATTENTION:
            raise unsupported(f"the attention of decoder layers consists of {', '.join(sorted(own))}")


def attention_rows(
    layer: Any,
    hidden: Tensor,
    rope: tuple[Tensor, Tensor],
    queries: Tensor,
    real: Tensor,
    *,
    pool: str = "mean",
    keys: Tensor | None = None,
) -> Tensor:
    """Returns the attention of some queries of a decoder layer to each key, float32 [B,K].

    Args:
        layer: a decoder layer: input_layernorm and self_attn with q_proj, k_proj (q_norm, k_norm).
        hidden: [B,M,D], the input of the layer.
        rope: cos and sin [B or 1,M,d] of these columns, also of three axes (the model has already mixed them).
        queries: int64 [B,Q], indices into `hidden`; -1 is padding.
        real: bool [B,K], keys that are not padding.
        pool: the reduction over heads and queries, "mean" or "max".
        keys: [B,heads,K-M,d] of a cache, which precede those of `hidden`.
    """
    attention = layer.self_attn
    with torch.no_grad():
        hidden = layer.input_layernorm(hidden)
        valid = queries >= 0
        selected = take_rows(hidden, queries.clamp(min=0))
        cos, sin = (part.expand(len(hidden), -1, -1) for part in rope)
        all_keys = rotate(heads(attention, "k", hidden), cos, sin)
        if keys is not None:
            all_keys = torch.cat([keys, all_keys], 2)
        at = queries.clamp(min=0)[..., None].expand(-1, -1, cos.shape[2])
        query = rotate(heads(attention, "q", selected), cos.gather(1, at), sin.gather(1, at))
        B, groups, K, _ = all_keys.shape
        query = query.unflatten(1, (groups, -1)).float()  # [B,groups,heads of a group,Q,d]
        position = queries + (K - hidden.shape[1])
        total = torch.zeros(B, K, device=hidden.device)
        count = query.shape[1] * query.shape[2]
        for block in torch.arange(queries.shape[1], device=hidden.device).split(max(1, _BLOCK_SIZE // (B * count * K))):
            score = query[:, :, :, block] @ all_keys.float()[:, :, None].transpose(3, 4) * attention.scaling
            score = score.float()  # half precision under autocast
            visible = (torch.arange(K, device=hidden.device) <= position[:, block, None]) & real[:, None]  # [B,q,K]
            probs = score.masked_fill(~visible[:, None, None], torch.finfo(torch.float32).min).softmax(-1)
            probs = probs.masked_fill(~(visible & valid[:, block, None])[:, None, None], 0)
            if pool == "max":
                total = torch.maximum(total, probs.amax((1, 2, 3)))
            else:
                total += probs.sum((1, 2, 3))
        return total if pool == "max" else total / (count * valid.sum(1, keepdim=True).clamp(min=1))


def rotated_keys(layer: Any, hidden: Tensor, rope: tuple[Tensor, Tensor]) -> Tensor:
    """Returns the keys of a decoder layer, after rotation, [B,M,heads*d], for its input `hidden` [B,M,D]."""
    cos, sin = (part.expand(len(hidden), -1, -1) for part in rope)
    with torch.no_grad():
        keys = rotate(heads(layer.self_attn, "k", layer.input_layernorm(hidden)), cos, sin)
    return keys.transpose(1, 2).flatten(2)


def heads(attention: Any, which: str, hidden: Tensor, projection: Any = None) -> Tensor:
    """Queries ("q"), keys ("k") or values ("v") [B,heads,M,d] before rotation.

    Args:
        hidden: [B,M,D], after the layer's input norm.
        projection: a linear layer that replaces the attention's own.
    """
    projection = getattr(attention, f"{which}_proj") if projection is None else projection
    projected = projection(hidden).unflatten(2, (-1, attention.head_dim))
    norm = getattr(attention, f"{which}_norm", None)
    return (projected if norm is None else norm(projected)).transpose(1, 2)


def rotate(values: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotates values [B,heads,M,d] by rotary position embeddings [B,M,d]."""
    half = values.shape[-1] // 2
    orthogonal = torch.cat([-values[..., half:], values[..., :half]], -1)
    return values * cos[:, None] + orthogonal * sin[:, None]
