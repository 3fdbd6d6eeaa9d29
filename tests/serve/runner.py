"""What an engine does with a processor and a model: sizes the prompt, encodes the media, and prefills in chunks."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor


@dataclass
class Prefilled:
    """A prompt after prefill: ids [L], the row of the encoder at each column if any, positions, and their offset."""

    ids: list[int]
    rows: dict[int, Tensor]
    positions: Tensor | None
    offset: int


def fields(**values: Any) -> dict[str, Any]:
    """A processed image or video."""
    return {name: SimpleNamespace(data=value) for name, value in values.items()}


def prefill(
    model: Any, processor: Any, prompt: list[int | str], items: dict[str, list[dict[str, Any]]], chunk: int = 1000
) -> Prefilled:
    """Prefills a prompt of ids and the names of modalities, each of which stands for its next item."""
    updates = {update.modality: update for update in processor._get_prompt_updates(None, {}, items)}
    ids: list[int] = []
    features = []
    count = dict.fromkeys(items, 0)
    for part in prompt:
        if isinstance(part, int):
            ids.append(part)
            continue
        item = items[part][count[part]]
        content = updates[part].content(count[part])
        count[part] += 1
        own = content if isinstance(content, list) else content.full
        select = None if isinstance(content, list) else content.is_embed
        is_row = torch.ones(len(own), dtype=torch.bool) if select is None else select(own)
        kwargs = {name: field.data for name, field in item.items()}
        (rows,) = model.embed_multimodal(**{name: batched(name, value) for name, value in kwargs.items()})
        assert len(rows) == int(is_row.sum()), "the encoder returned another number of rows than the prompt has places"
        position = SimpleNamespace(offset=len(ids), length=len(own))
        features.append((SimpleNamespace(modality=part, data=item, mm_position=position), is_row, rows))
        ids += own
    mrope = hasattr(model, "get_mrope_input_positions")
    positions, offset = None, 0
    if mrope:
        positions, offset = model.get_mrope_input_positions(ids, [feature for feature, _, _ in features])
    placed: dict[int, Tensor] = {}
    for start in range(0, len(ids), chunk):
        pieces, columns = [], []
        for feature, is_row, rows in features:
            column = feature.mm_position.offset + is_row.nonzero().flatten()
            inside = (column >= start) & (column < start + chunk)
            if bool(inside.any()):
                pieces.append(rows[inside])
                columns.append(column[inside])
        if mrope:
            cleaned, positions, offset = model.recompute_mrope_positions(ids, pieces, positions, start)
            pieces = list(cleaned)
        for column, piece in zip(columns, pieces, strict=True):
            placed |= dict(zip(column.tolist(), piece, strict=True))
    return Prefilled(ids, placed, positions, offset)


def batched(name: str, value: Any) -> Any:
    """The batch of one item: grids, times and lists gain an axis, patches are concatenated."""
    if name in ("pixel_values", "pixel_values_flat") or (name == "pixel_values_videos" and value.ndim == 2):
        return value
    return value[None] if isinstance(value, Tensor) else [value]
