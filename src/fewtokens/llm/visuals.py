"""Encodes the images and videos of prompts, locates their columns and reduces the videos."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from fewtokens.core.attention_rule import AttentionRule
from fewtokens.core.batch import collate
from fewtokens.core.pipeline import Pipeline
from fewtokens.core.shapes import shape_repr
from fewtokens.core.tokens import Tokens
from fewtokens.llm.backends.base import MODALITIES, Backend, VisualFeatures
from fewtokens.llm.cues import cue_shape, make_cues, question_columns
from fewtokens.llm.interface import attribute, cache_of, is_filled


@dataclass
class ReducedVisual:
    """An image or video after reduction.

    Attributes:
        visual: the rows [n,D] that the language model reads: tokens, then the tail.
        tokens: the tokens of a video, [1,N,D]; None for an image, which is not reduced.
    """

    visual: VisualFeatures
    tokens: Tokens | None = None


@dataclass
class EncodedVisuals:
    """The images or videos of one modality in a batch of prompts.

    Attributes:
        outputs: the output of the encoder.
        visuals: the images or videos, in the order of the prompts.
        row: the index of each one's prompt.
        columns: int64 [n], the columns of each one's rows in its prompt.
    """

    outputs: Any
    visuals: list[VisualFeatures]
    row: list[int]
    columns: list[Tensor]

    __repr__ = shape_repr


def encode_visuals(
    backend: Backend,
    model: Any,
    prompt: dict[str, Any],
    items: Any = None,
    *,
    needs: Collection[str] = (),
    rule: AttentionRule | None = None,
) -> dict[str, EncodedVisuals]:
    """Encodes the images and videos of a prompt, by modality; empty if it is text only.

    Args:
        items: see `compress`.
        needs: names of cues, of which those of the pixels and of the vision tower are stored with the videos.
        rule: which attention. Default: that of `AttentionRule`.

    Raises:
        ValueError: placeholders do not match the features, or a later turn contains a video.
    """
    encoded = {}
    ids = prompt.get("input_ids")
    for modality in MODALITIES:
        if not any(prompt.get(name) is not None for name in backend.pixel_inputs[modality]):
            _check_no_placeholders(backend, model, prompt, modality)
            continue
        if ids is None:
            raise ValueError("shortening a prompt requires input_ids; pass them instead of inputs_embeds")
        if is_filled(cache_of(prompt)):
            raise ValueError("pixels in a later turn cannot be inserted into an existing cache; start with a new one")
        with backend.recording(model, modality, prompt, needs, rule or AttentionRule()) as set_cues:
            outputs = backend.encode(model, modality, prompt)
        placeholder = attribute(model.config, f"{modality}_token_id")
        at = (ids == placeholder).nonzero()
        if backend.needs_items:
            items = items if items is not None else _guess_items(backend, model, outputs, at, len(ids))
        flat = [item for row in items or () for item in row]
        visuals = backend.visuals(model, modality, outputs, prompt, flat, "pixels" in needs)
        set_cues(visuals)
        lengths = [len(visual.features) for visual in visuals]
        if sum(lengths) != len(at):
            raise ValueError(
                f"the prompt has {len(at)} placeholders for {modality} features, the encoder returned {sum(lengths)}; "
                "was the prompt made by the processor of this model?"
            )
        parts = at.split(lengths)
        if any(len(part) and bool((part[:, 0] != part[0, 0]).any()) for part in parts):
            raise ValueError(f"placeholders of one {modality} span two prompts in the batch")
        encoded[modality] = EncodedVisuals(outputs, visuals, [int(p[0, 0]) for p in parts], [p[:, 1] for p in parts])
    return encoded


def _check_no_placeholders(backend: Backend, model: Any, prompt: dict[str, Any], modality: str) -> None:
    """Raises a ValueError if a prompt without pixels of a modality has placeholders for them."""
    ids, placeholder = prompt.get("input_ids"), backend.placeholder(model, modality)
    encoded = (prompt.get("mm_encoder_outputs") or {}).get(modality) is not None
    # Earlier turns may contain placeholders.
    if ids is None or placeholder is None or encoded or is_filled(cache_of(prompt)):
        return
    if count := int((ids == placeholder).sum()):
        pixels = backend.pixel_inputs[modality][0]
        raise ValueError(
            f"the prompt has {count} placeholders for {modality} features (token {placeholder}), but no {pixels}"
        )


def _guess_items(backend: Backend, model: Any, outputs: Any, at: Tensor, prompts: int) -> list[list[tuple[str, int]]]:
    """Treats all images of a prompt as one video if there are several."""
    size = getattr(model.base_model, "image_seq_len", None) or outputs.pooler_output[0].shape[0]
    counts = (torch.bincount(at[:, 0], minlength=prompts) // size).tolist()
    return [[("video" if count > 1 else "image", count)] if count else [] for count in counts]


def reduce_visuals(
    backend: Backend, model: Any, pipeline: Pipeline, prompt: dict[str, Any], encoded: dict[str, EncodedVisuals]
) -> dict[str, list[ReducedVisual]]:
    """Reduces the videos of each modality.

    Raises:
        ValueError: the token count differs from the budget.
    """
    text = question_columns(backend, model, prompt) if "text" in pipeline.needs else None
    return {modality: _reduce(model, pipeline, prompt, group, text) for modality, group in encoded.items()}


def _reduce(
    model: Any, pipeline: Pipeline, prompt: dict[str, Any], encoded: EncodedVisuals, text: Tensor | None
) -> list[ReducedVisual]:
    """Reduces the videos of one modality; `text` marks the columns of the cue "text"."""
    visuals, needs = encoded.visuals, pipeline.needs
    results = [ReducedVisual(visual) for visual in visuals]
    # Videos are batched if their frames and their cues have the same size.
    groups: dict[tuple[int, ...], list[int]] = {}
    for index, visual in enumerate(visuals):
        if visual.grid is None:
            continue
        shape = cue_shape(needs, visual, None if text is None else text[encoded.row[index]])
        groups.setdefault((visual.grid.H, visual.grid.W, *shape), []).append(index)
    for indices in groups.values():
        group = [_tokens(visuals[index]) for index in indices]
        if not len(pipeline.methods):
            for index, tokens in zip(indices, group, strict=True):
                results[index].tokens = tokens
            continue
        batch = group[0] if len(group) == 1 else collate(group)
        rows = [encoded.row[index] for index in indices]
        cues = make_cues(needs, model, prompt, [visuals[index] for index in indices], batch, rows, text)
        for index, before, after in zip(indices, group, pipeline(batch, **cues), strict=True):
            planned = pipeline.planned_count(before.grid)
            if planned is not None and planned != after.N:
                raise ValueError(f"{pipeline.spec} must leave {planned} of {before.N} tokens, got {after.N}")
            results[index] = ReducedVisual(_shorten(visuals[index], before, after), after)
    return results


def _tokens(visual: VisualFeatures) -> Tokens:
    assert visual.grid is not None
    return Tokens.from_cells(visual.features[None, : visual.grid.cells], visual.grid)


def _shorten(visual: VisualFeatures, before: Tokens, after: Tokens) -> VisualFeatures:
    """Replaces the cells of a visual with the tokens `after`, and its DeepStack rows by the same plan."""
    cells = before.N
    deepstack = [torch.cat([after.pool(layer[None, :cells], before)[0], layer[cells:]]) for layer in visual.deepstack]
    features = torch.cat([after.features[0].to(visual.features.dtype), visual.features[cells:]])
    return replace(visual, features=features, deepstack=deepstack, pixels=None, cues={})
