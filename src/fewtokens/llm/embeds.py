"""Few tokens as the embeddings of a prompt, for engines that accept those instead of ids.

short = embeds(model, inputs, "kmeans(keep=0.25)")
model.language_model(inputs_embeds=short.inputs_embeds, position_ids=short.position_ids)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fewtokens.core.shapes import shape_repr
from fewtokens.core.tokens import Tokens
from fewtokens.llm.backends.base import MODALITIES, backend_of
from fewtokens.llm.chains import Methods
from fewtokens.llm.compress import compress
from fewtokens.llm.interface import unwrap


@dataclass
class Embeds:
    """A shortened prompt [B,L] as embeddings.

    Attributes:
        inputs_embeds: float [B,L,D].
        position_ids: int64 [B,L], or [3,B,L] if positions are (t, h, w).
        attention_mask: int64 [B,L].
        input_ids: int64 [B,L], with placeholders at the rows of images and videos.
        text_mask: bool [B,L], the columns whose embedding is that of their id: text, no padding.
        deepstack: rows [n,D] that the first layers of the language model add to the n columns that are neither text nor
            padding, by index of the layer; None for models without them.
        tokens: the tokens of each video, in the order of the prompts.
    """

    inputs_embeds: Tensor
    position_ids: Tensor
    attention_mask: Tensor
    input_ids: Tensor
    text_mask: Tensor
    deepstack: dict[int, Tensor] | None
    tokens: list[Tokens]

    __repr__ = shape_repr


def embeds(model: Any, inputs: Any, spec: Methods, *, plain: bool = False, **options: Any) -> Embeds:
    """Encodes the images and videos of a prompt, reduces the videos, and embeds the shortened prompt.

    Args:
        model: as for `compress`; may be wrapped, see `unwrap`.
        inputs: the output of the processor, see `compress`.
        spec: a chain of methods, see `compress`.
        plain: whether the embeddings must be all that the language model needs, as in engines that take nothing else.
        options: layout, positions and items of `compress`. Engines that count positions require positions="renumber".

    Raises:
        ValueError: as `compress`; the prompt has no pixels; or `plain` and the model has DeepStack features.
    """
    inner, backend = unwrap(model), backend_of(model)
    compressed = compress(model, inputs, spec, **options)
    short = compressed.inputs
    ids, mask = short["input_ids"], short["attention_mask"]
    outputs = backend.input_features(inner, short)
    if not outputs:
        raise ValueError("the prompt has no images or videos; pass its ids to the engine")
    table = inner.get_input_embeddings()
    rows = table(ids)
    text = mask.bool()
    layers: dict[int, Tensor] = {}
    for modality in (name for name in MODALITIES if name in outputs):
        features = _joined(outputs[modality].pooler_output, rows)
        _, at = backend.locate(inner, modality, short, len(features))
        columns = torch.zeros_like(text)
        columns[at[:, 0], at[:, 1]] = True
        text = text & ~columns
        rows = rows.masked_scatter(columns[..., None], features)
        for layer, values in enumerate(getattr(outputs[modality], "deepstack_features", None) or ()):
            own = layers.setdefault(layer, torch.zeros_like(rows))
            layers[layer] = own.masked_scatter(columns[..., None], _joined(values, rows))
    if layers and plain:
        raise ValueError(
            f"{backend.name} adds DeepStack features inside the language model, so embeddings of the prompt are not "
            "enough; serve it with the plugin for vLLM"
        )
    positions = short.get("position_ids")
    if positions is None:
        positions = (mask.long().cumsum(1) - 1).clamp(min=0)
    visual = mask.bool() & ~text
    return Embeds(
        inputs_embeds=rows,
        # A count of the columns may come before (t, h, w).
        position_ids=positions[-backend.axes(inner) :] if positions.ndim == 3 else positions,
        attention_mask=mask,
        input_ids=ids,
        text_mask=text,
        deepstack={layer: own[visual] for layer, own in layers.items()} or None,
        tokens=compressed.tokens,
    )


def _joined(values: Any, like: Tensor) -> Tensor:
    """The rows [n,D] of all items, which an output contains as one tensor or as one per item."""
    parts = [values] if isinstance(values, Tensor) else list(values)
    return torch.cat([part.reshape(-1, like.shape[-1]) for part in parts]).to(like)
