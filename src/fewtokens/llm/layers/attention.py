"""Rows of attention, recomputed for the few queries that a method asks about.

A layer's own norm, projections and rotary embedding are used, so the rows are those of its eager attention, while the
model itself keeps its own kernel. Nothing of the size queries x keys over the whole sequence is allocated.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fewtokens.llm.interface import changed

# What decoder layers and their attention are made of; all of it is accounted for below.
_LAYER = {"self_attn", "mlp", "input_layernorm", "post_attention_layernorm"}
_ATTENTION = {"q_proj", "k_proj", "v_proj", "o_proj", "q_norm", "k_norm", "rotary_emb"}
# Probabilities held at once (128 MiB in float32); more queries are taken in blocks.
_AT_ONCE = 1 << 25


def check_layers(text: Any) -> None:
    """Raises a ValueError where the layers of a language model are not as `attention_rows` and the hooks take them."""
    kinds = set(getattr(text.config, "layer_types", None) or ["full_attention"])
    if any(getattr(layer.self_attn, "sliding_window", None) for layer in text.layers if hasattr(layer, "self_attn")):
        kinds |= {"sliding_attention"}
    if kinds != {"full_attention"}:
        raise ValueError(f"methods inside a language model need layers of full attention, these are {sorted(kinds)}")
    for layer in text.layers:
        parts = {name for name, _ in layer.named_children()}
        if parts != _LAYER:
            raise changed(f"makes decoder layers of {', '.join(sorted(parts ^ _LAYER))}")
        own = {name for name, _ in layer.self_attn.named_children()}
        if not {"q_proj", "k_proj"} <= own <= _ATTENTION:
            raise changed(f"makes their attention of {', '.join(sorted(own))}")


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
    """The attention that some queries of a decoder layer pay to each key, float32 [B,K].

    Args:
        layer: a decoder layer: input_layernorm and self_attn with q_proj, k_proj (q_norm, k_norm).
        hidden: [B,M,D], what enters the layer.
        rope: cos and sin [B or 1,M,d] of these columns, also of three axes (the model has mixed them).
        queries: int64 [B,Q], places in `hidden`; -1 is none.
        real: bool [B,K], keys that are no padding.
        pool: over heads and queries, "mean" or "max".
        keys: [B,heads,K-M,d] of a cache, which come before those of `hidden`.
    """
    attention = layer.self_attn
    with torch.no_grad():
        hidden = layer.input_layernorm(hidden)
        there = queries >= 0
        asked = hidden.gather(1, queries.clamp(min=0)[..., None].expand(-1, -1, hidden.shape[2]))
        cos, sin = (part.expand(len(hidden), -1, -1) for part in rope)
        own = _turned(_heads(attention, "k", hidden), cos, sin)
        if keys is not None:
            own = torch.cat([keys, own], 2)
        at = queries.clamp(min=0)[..., None].expand(-1, -1, cos.shape[2])
        query = _turned(_heads(attention, "q", asked), cos.gather(1, at), sin.gather(1, at))
        B, groups, K, _ = own.shape
        query = query.unflatten(1, (groups, -1)).float()  # [B,groups,heads of a group,Q,d]
        place = queries + (K - hidden.shape[1])
        total = torch.zeros(B, K, device=hidden.device)
        heads = query.shape[1] * query.shape[2]
        for block in torch.arange(queries.shape[1], device=hidden.device).split(max(1, _AT_ONCE // (B * heads * K))):
            score = query[:, :, :, block] @ own.float()[:, :, None].transpose(3, 4) * attention.scaling
            seen = (torch.arange(K, device=hidden.device) <= place[:, block, None]) & real[:, None]  # [B,q,K]
            share = score.masked_fill(~seen[:, None, None], torch.finfo(torch.float32).min).softmax(-1)
            share = share.masked_fill(~(seen & there[:, block, None])[:, None, None], 0)
            if pool == "max":
                total = torch.maximum(total, share.amax((1, 2, 3)))
            else:
                total += share.sum((1, 2, 3))
        return total if pool == "max" else total / (heads * there.sum(1, keepdim=True).clamp(min=1))


def _heads(attention: Any, which: str, hidden: Tensor) -> Tensor:
    """Queries or keys [B,heads,M,d] before they are turned."""
    made = getattr(attention, f"{which}_proj")(hidden).unflatten(2, (-1, attention.head_dim))
    norm = getattr(attention, f"{which}_norm", None)
    return (made if norm is None else norm(made)).transpose(1, 2)


def _turned(values: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Values [B,heads,M,d] turned by rotary position embeddings [B,M,d]."""
    half = values.shape[-1] // 2
    across = torch.cat([-values[..., half:], values[..., :half]], -1)
    return values * cos[:, None] + across * sin[:, None]
