"""The attention inside a language model: rows of it for the few queries that a method needs, and its parts.

A layer is run once more, until it calls its attention function, for which `AttentionInterface` of transformers has one
that only notes the queries and keys. So these are those of the model, whatever its norms, projections and rotary
embeddings are, while the model keeps its own kernel. The full attention matrix (queries x keys) is never allocated.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fewtokens.core.shapes import shape_repr
from fewtokens.llm.interface import CACHE_NAMES, unsupported

# The number of probabilities in memory (128 MiB in float32); more queries are processed in blocks.
_BLOCK_SIZE = 1 << 25
_NAME = "fewtokens_noted"


@dataclass
class AttentionInputs:
    """What a layer passes to its attention function.

    Attributes:
        queries: [B,heads,M,d], normalized and rotated.
        keys: [B,groups,K,d], the last M of which belong to the queries' columns.
        scaling: the factor of their products.
        mask: None (causal), [B,K], or [B,heads,M,K], bool or additive.
        softcap: the bound of the logits, which pass through tanh; None for no bound.
    """

    queries: Tensor
    keys: Tensor
    scaling: float
    mask: Tensor | None = None
    softcap: float | None = None

    __repr__ = shape_repr

    def flat_keys(self) -> Tensor:
        """The keys by column, [B,K,groups*d]."""
        return self.keys.transpose(1, 2).flatten(2)

    def visible(self, queries: Tensor, real: Tensor) -> Tensor:
        """The keys that some queries see, bool [B,heads or 1,Q,K].

        Args:
            queries: int64 [B,Q], indices into `self.queries`.
            real: bool [B,K], keys that are not padding.
        """
        K = self.keys.shape[2]
        if self.mask is None or self.mask.ndim == 2:
            position = queries + K - self.queries.shape[2]
            seen = (torch.arange(K, device=queries.device) <= position[..., None])[:, None]
        else:
            row = torch.arange(len(queries), device=queries.device)[:, None]
            part = self.mask.expand(len(queries), -1, -1, -1)[row, :, queries].transpose(1, 2)
            seen = part if part.dtype == torch.bool else part > torch.finfo(part.dtype).min / 2
        return seen & real[:, None, None]


class _Noted(Exception):
    """Ends the run of a layer at its attention function."""

    def __init__(self, inputs: AttentionInputs) -> None:
        self.inputs = inputs


def _note(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, scaling: float | None = None,
    softcap: float | None = None, s_aux: Tensor | None = None, **kwargs: Any,
) -> Any:  # fmt: skip
    if s_aux is not None:
        raise unsupported("the attention of this model has sinks, which methods inside it do not account for")
    raise _Noted(AttentionInputs(query, key, scaling or query.shape[-1] ** -0.5, attention_mask, softcap))


def attention_inputs(config: Any, layer: Any, inputs: Mapping[str, Any], cache: Any = None) -> AttentionInputs:
    """Returns what a decoder layer passes to its attention function.

    Args:
        config: of the language model, whose choice of the attention function is changed for the moment.
        layer: a decoder layer with attention.
        inputs: its arguments.
        cache: a cache that may be changed; None for no earlier columns.

    Raises:
        ValueError: the layer does not call an attention function of transformers.
    """
    from transformers import AttentionInterface

    AttentionInterface.register(_NAME, _note)
    inputs = {name: cache if name in CACHE_NAMES else value for name, value in inputs.items()}
    own = config._attn_implementation
    config._attn_implementation = _NAME
    try:
        with torch.no_grad():
            layer.forward(**inputs)  # not the call, whose hooks would act
    except _Noted as noted:
        return noted.inputs
    finally:
        config._attn_implementation = own
    raise unsupported(f"the attention of {type(layer).__name__} does not pass through AttentionInterface")


def attention_rows(attention: AttentionInputs, queries: Tensor, real: Tensor, *, pool: str = "mean") -> Tensor:
    """Returns the attention of some queries of a decoder layer to each key, float32 [B,K].

    Args:
        attention: queries and keys of the layer.
        queries: int64 [B,Q], indices into `attention.queries`; -1 is padding.
        real: bool [B,K], keys that are not padding.
        pool: the reduction over heads and queries, "mean" or "max".
    """
    keys = attention.keys.float()
    B, groups, K, _ = keys.shape
    valid, at = queries >= 0, queries.clamp(min=0)
    total = torch.zeros(B, K, device=keys.device)
    count = attention.queries.shape[1]
    for block in torch.arange(queries.shape[1], device=keys.device).split(max(1, _BLOCK_SIZE // (B * count * K))):
        index = at[:, None, block, None].expand(-1, count, -1, attention.queries.shape[3])
        query = attention.queries.gather(2, index).float().unflatten(1, (groups, -1))  # [B,groups,heads of a group,q,d]
        score = (query @ keys[:, :, None].transpose(3, 4) * attention.scaling).flatten(1, 2)
        score = score.float()  # half precision under autocast
        if attention.softcap is not None:
            score = attention.softcap * (score / attention.softcap).tanh()
        visible = attention.visible(at[:, block], real)
        probs = score.masked_fill(~visible, torch.finfo(torch.float32).min).softmax(-1)
        probs = probs.masked_fill(~(visible & valid[:, None, block, None]), 0)
        if pool == "max":
            total = torch.maximum(total, probs.amax((1, 2)))
        else:
            total += probs.sum((1, 2))
    return total if pool == "max" else total / (count * valid.sum(1, keepdim=True).clamp(min=1))


def rotate(values: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotates values [B,heads,M,d] by rotary position embeddings [B,M,d]."""
    half = values.shape[-1] // 2
    orthogonal = torch.cat([-values[..., half:], values[..., :half]], -1)
    return values * cos[:, None] + orthogonal * sin[:, None]
