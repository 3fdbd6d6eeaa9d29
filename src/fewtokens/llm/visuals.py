"""The images and videos of prompts: encoded, assigned to their places, and the videos reduced."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from fewtokens.core.batch import collate
from fewtokens.core.pipeline import Pipeline
from fewtokens.core.shapes import by_shape
from fewtokens.core.tokens import Tokens
from fewtokens.llm.backends.base import MODALITIES, Backend, VisualFeatures
from fewtokens.llm.cues import check_cues, cue_shape, make_cues, question_columns
from fewtokens.llm.interface import attribute, cache_of, filled


@dataclass
class ReducedVisual:
    """An image or video after reduction.

    Attributes:
        visual: with the rows [n,D] that the language model is given: tokens, then the tail.
        tokens: of a video, [1,N,D]; None for an image, whose rows are as they were.
    """

    visual: VisualFeatures
    tokens: Tokens | None = None


@dataclass
class EncodedVisuals:
    """The images or videos of one modality in a batch of prompts.

    Attributes:
        outputs: the encoder's output, as the model gave it.
        visuals: in the order of the prompts.
        row: the prompt of each.
        places: int64 [n], the columns of each one's rows in its prompt.
    """

    outputs: Any
    visuals: list[VisualFeatures]
    row: list[int]
    places: list[Tensor]

    __repr__ = by_shape


def encode_visuals(
    backend: Backend, model: Any, prompt: dict[str, Any], items: Any = None, *, pixels: bool = False
) -> dict[str, EncodedVisuals]:
    """Encodes what a prompt holds; nothing if it is text alone.

    Raises:
        ValueError: placeholders that do not fit the features, a video in a later turn.
    """
    encoded = {}
    ids = prompt.get("input_ids")
    for modality in MODALITIES:
        if not any(prompt.get(name) is not None for name in backend.pixel_inputs[modality]):
            _check_no_places(backend, model, prompt, modality)
            continue
        if ids is None:
            raise ValueError("a prompt is shortened by its input_ids; give them rather than inputs_embeds")
        if filled(cache_of(prompt)):
            raise ValueError("pixels in a later turn cannot be spliced into a kept cache; begin a new one")
        outputs = backend.encode(model, modality, prompt)
        placeholder = attribute(model.config, f"{modality}_token_id")
        at = (ids == placeholder).nonzero()
        if backend.needs_items:
            items = items if items is not None else _guess_items(backend, model, outputs, at, len(ids))
        flat = [item for row in items or () for item in row]
        visuals = backend.visuals(model, modality, outputs, prompt, flat, pixels)
        lengths = [len(visual.features) for visual in visuals]
        if sum(lengths) != len(at):
            raise ValueError(
                f"the prompt has {len(at)} places for {modality} features, the encoder gives {sum(lengths)}; was it "
                "made by the processor of this model?"
            )
        parts = at.split(lengths)
        if any(len(part) and bool((part[:, 0] != part[0, 0]).any()) for part in parts):
            raise ValueError(f"placeholders of one {modality} span two prompts in the batch")
        encoded[modality] = EncodedVisuals(outputs, visuals, [int(p[0, 0]) for p in parts], [p[:, 1] for p in parts])
    return encoded


def _check_no_places(backend: Backend, model: Any, prompt: dict[str, Any], modality: str) -> None:
    """Raises a ValueError where a prompt without pixels of a modality has places for some."""
    ids, placeholder = prompt.get("input_ids"), backend.placeholder(model, modality)
    encoded = (prompt.get("mm_encoder_outputs") or {}).get(modality) is not None
    # Earlier turns may hold anything.
    if ids is None or placeholder is None or encoded or filled(cache_of(prompt)):
        return
    if places := int((ids == placeholder).sum()):
        pixels = backend.pixel_inputs[modality][0]
        raise ValueError(
            f"the prompt has {places} places for {modality} features (token {placeholder}), but no {pixels}"
        )


def _guess_items(backend: Backend, model: Any, outputs: Any, at: Tensor, prompts: int) -> list[list[tuple[str, int]]]:
    """All pictures of a prompt are one video if there are several."""
    size = getattr(model.base_model, "image_seq_len", None) or outputs.pooler_output[0].shape[0]
    counts = (torch.bincount(at[:, 0], minlength=prompts) // size).tolist()
    return [[("video" if count > 1 else "image", count)] if count else [] for count in counts]


def reduce_visuals(
    backend: Backend, model: Any, pipeline: Pipeline, prompt: dict[str, Any], encoded: dict[str, EncodedVisuals]
) -> dict[str, list[ReducedVisual]]:
    """The visuals of each modality with their videos reduced.

    Raises:
        ValueError: a cue that the backend cannot give, or a count that does not meet the budget.
    """
    check_cues(backend, pipeline)
    words = question_columns(backend, model, prompt) if "text" in pipeline.needs else None
    return {modality: _reduce(model, pipeline, prompt, own, words) for modality, own in encoded.items()}


def _reduce(
    model: Any, pipeline: Pipeline, prompt: dict[str, Any], encoded: EncodedVisuals, words: Tensor | None
) -> list[ReducedVisual]:
    """The visuals of one modality; `words` are the columns of the cue "text"."""
    visuals, needs = encoded.visuals, pipeline.needs
    results = [ReducedVisual(visual) for visual in visuals]
    # Videos go together if their frames and their cues have one size.
    groups: dict[tuple[int, ...], list[int]] = {}
    for number, visual in enumerate(visuals):
        if visual.grid is None:
            continue
        shape = cue_shape(needs, visual, None if words is None else words[encoded.row[number]])
        groups.setdefault((visual.grid.H, visual.grid.W, *shape), []).append(number)
    for numbers in groups.values():
        group = [_tokens(visuals[number]) for number in numbers]
        if not len(pipeline.methods):
            for number, tokens in zip(numbers, group, strict=True):
                results[number].tokens = tokens
            continue
        whole = group[0] if len(group) == 1 else collate(group)
        rows = [encoded.row[number] for number in numbers]
        cues = make_cues(needs, model, prompt, [visuals[number] for number in numbers], whole, rows, words)
        for number, before, after in zip(numbers, group, pipeline(whole, **cues), strict=True):
            planned = pipeline.planned_count(before.grid)
            if planned is not None and planned != after.N:
                raise ValueError(f"{pipeline.spec} was to leave {planned} tokens of {before.N} and left {after.N}")
            results[number] = ReducedVisual(_shortened(visuals[number], before, after), after)
    return results


def _tokens(visual: VisualFeatures) -> Tokens:
    assert visual.grid is not None
    return Tokens.from_cells(visual.features[None, : visual.grid.cells], visual.grid)


def _shortened(visual: VisualFeatures, before: Tokens, after: Tokens) -> VisualFeatures:
    """The visual with the rows of `after`; what follows the cells, and DeepStack, along with it."""
    cells = before.N
    moved = [torch.cat([after.pool(layer[None, :cells], before)[0], layer[cells:]]) for layer in visual.deepstack]
    features = torch.cat([after.features[0].to(visual.features.dtype), visual.features[cells:]])
    return replace(visual, features=features, deepstack=moved, pixels=None)
