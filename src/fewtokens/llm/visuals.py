"""Encodes the images and videos of prompts, locates their columns and reduces them."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from fewtokens.core.attention_rule import AttentionRule
from fewtokens.core.batch import collate
from fewtokens.core.pipeline import Pipeline
from fewtokens.core.shapes import shape_repr
from fewtokens.core.tokens import Tokens
from fewtokens.llm.backends.base import MODALITIES, Backend
from fewtokens.llm.backends.rows import VisualFeatures, join_layouts
from fewtokens.llm.chains import share_budgets
from fewtokens.llm.cues import cue_shape, make_cues, needed_cues, question_columns
from fewtokens.llm.interface import cache_of, is_filled
from fewtokens.llm.tower_run import TowerMethods, TowerRun


@dataclass
class ReducedVisual:
    """An image or video after reduction.

    Attributes:
        visual: the rows [n,D] that the language model reads: tokens, then the rows of the layout that are not cells.
        tokens: [1,N,D]; None if it is left whole.
    """

    visual: VisualFeatures
    tokens: Tokens | None = None


@dataclass
class EncodedVisuals:
    """The images or videos of one modality in a batch of prompts.

    Attributes:
        outputs: the output of the encoder.
        placeholder: the token id that stands for a row.
        visuals: the images or videos, in the order of the prompts; each grid of an image on its own.
        row: the index of each one's prompt.
        columns: int64 [n], the columns of each one's rows in its prompt.
    """

    outputs: Any
    placeholder: int
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
    needs: Mapping[str, Collection[str]] | None = None,
    rule: AttentionRule | None = None,
    methods: TowerMethods | None = None,
) -> dict[str, EncodedVisuals]:
    """Encodes the images and videos of a prompt, by modality; empty if it is text only.

    Args:
        items: see `compress`.
        needs: names of cues by kind, "image" or "video", of which those of the pixels and of the vision tower are
            stored with the images and videos.
        rule: which attention. Default: that of `AttentionRule`.
        methods: those that act before or inside the vision tower. None runs it in full.

    Warns if the vision tower of the family can only encode all patches.

    Raises:
        ValueError: placeholders do not match the features, a later turn contains a video, or methods cannot act inside
            the vision tower.
    """
    needs, encoded = needs or {}, {}
    methods = methods or TowerMethods()
    ids = prompt.get("input_ids")
    for modality in MODALITIES:
        if not any(prompt.get(name) is not None for name in backend.pixel_inputs[modality]):
            continue
        if ids is None:
            raise ValueError("shortening a prompt requires input_ids; pass them instead of inputs_embeds")
        if is_filled(cache_of(prompt)):
            raise ValueError("pixels in a later turn cannot be inserted into an existing cache; start with a new one")
        # Where videos are images in a row, the entries of an encoder belong to either.
        kinds = MODALITIES if modality == "image" and backend.needs_items else (modality,)
        of_tower = {name for kind in kinds for name in needs.get(kind, ())}
        grouping = partial(_groups, backend, model, modality, prompt, items)
        only_images = items is not None and all(kind == "image" for row in items for kind, _ in row)
        run = TowerRun(backend, model, modality, prompt, methods, grouping, only_images=only_images)
        with backend.recording(model, modality, prompt, of_tower, rule or AttentionRule()) as set_cues:
            outputs = run.encode()
        entries = backend.entries(model, outputs)
        placeholder, at = backend.locate(model, modality, prompt, sum(map(len, entries)))
        groups = run.groups(entries, at[:, 0])
        # The pixels of videos are known from the choice of their patches.
        of_pixels = [k for k, names in needs.items() if "pixels" in names and (k == "image" or run.choice is None)]
        visuals = backend.visuals(model, modality, outputs, prompt, groups, of_pixels)
        run.note(visuals)
        set_cues(visuals)
        parts = at.split([len(visual.features) for visual in visuals])
        if any(len(part) and bool((part[:, 0] != part[0, 0]).any()) for part in parts):
            raise ValueError(f"placeholders of one {modality} span two prompts in the batch")
        encoded[modality] = EncodedVisuals(
            outputs, placeholder, visuals, [int(p[0, 0]) for p in parts], [p[:, 1] for p in parts]
        )
    for modality in set(MODALITIES) - set(encoded):
        _check_no_placeholders(backend, model, prompt, modality, {group.placeholder for group in encoded.values()})
    return encoded


def _check_no_placeholders(
    backend: Backend, model: Any, prompt: dict[str, Any], modality: str, in_use: set[int]
) -> None:
    """Raises a ValueError if a prompt without pixels of a modality has placeholders for them."""
    ids, placeholder = prompt.get("input_ids"), next(iter(backend.placeholders(model, modality)), None)
    encoded = (prompt.get("mm_encoder_outputs") or {}).get(modality) is not None
    shared = in_use if modality == "image" else in_use.union(backend.placeholders(model, "image")[:1])
    # Earlier turns may contain placeholders.
    if ids is None or placeholder is None or placeholder in shared or encoded or is_filled(cache_of(prompt)):
        return
    if count := int((ids == placeholder).sum()):
        pixels = backend.pixel_inputs[modality][0]
        raise ValueError(
            f"the prompt has {count} placeholders for {modality} features (token {placeholder}), but no {pixels}"
        )


def _groups(
    backend: Backend,
    model: Any,
    modality: str,
    prompt: dict[str, Any],
    items: Sequence[Sequence[tuple[str, int]]] | None,
    entries: list[Tensor],
    rows: Tensor,
) -> list[tuple[str, int]]:
    """The images and videos of a modality as ("image" or "video", number of entries), in order.

    Args:
        items: see `compress`; None treats all entries of a prompt as one video if they have a common grid.
        entries: the rows [n,D] of each entry.
        rows: int64 [sum of n], the prompt of each row.

    Raises:
        ValueError: `items` lists another number of entries.
    """
    videos = prompt.get("pixel_values_videos") if modality == "video" else None
    if videos is not None and videos.ndim == 5 and len(entries) in (len(videos), videos.shape[0] * videos.shape[1]):
        return [("video", len(entries) // len(videos))] * len(videos)  # an entry per video or per frame
    if not (backend.needs_items if modality == "image" else backend.video_parts):
        return [(modality, 1)] * len(entries)
    if items is not None:
        groups = [item for row in items for item in row if modality in ("image", item[0])]
        if (total := sum(count for _, count in groups)) != len(entries):
            raise ValueError(f"{backend.name}: items list {total} {modality}s, the prompt has {len(entries)}")
        return groups
    ends = torch.tensor([len(entry) for entry in entries]).cumsum(0) - 1
    counts = torch.unique_consecutive(rows[ends.to(rows.device)], return_counts=True)[1].tolist()
    if modality == "video":
        stated = prompt.get("num_chunks_per_video")
        return [("video", int(count)) for count in (counts if stated is None else stated)]
    layouts = backend.layouts(model, modality, prompt, entries)
    groups = []
    for count in counts:
        begin = sum(number for _, number in groups)
        is_video = count > 1 and join_layouts(layouts[begin : begin + count]) is not None
        groups += [("video", count)] if is_video else [("image", 1)] * count
    return groups


def reduce_visuals(
    backend: Backend,
    model: Any,
    pipeline: Pipeline,
    prompt: dict[str, Any],
    encoded: dict[str, EncodedVisuals],
    images: Pipeline | None = None,
) -> dict[str, list[ReducedVisual]]:
    """Reduces the videos of each modality with `pipeline`, and its images with `images`, unless that is None.

    Raises:
        ValueError: the token count differs from the budget.
    """
    pipelines = {"video": pipeline} if images is None else {"video": pipeline, "image": images}
    needs_text = any("text" in needed_cues(each) for each in pipelines.values())
    text = question_columns(backend, model, prompt) if needs_text else None
    return {modality: _reduce(model, pipelines, prompt, group, text) for modality, group in encoded.items()}


def _reduce(
    model: Any, pipelines: dict[str, Pipeline], prompt: dict[str, Any], encoded: EncodedVisuals, text: Tensor | None
) -> list[ReducedVisual]:
    """Reduces the images and videos of one modality; `text` marks the columns of the cue "text"."""
    visuals = encoded.visuals
    results = [ReducedVisual(visual) for visual in visuals]
    # Images or videos are batched if their frames and their cues have the same size.
    groups: dict[tuple[Any, ...], list[int]] = {}
    for index, visual in enumerate(visuals):
        if visual.grid is None or visual.kind not in pipelines:
            continue
        needs = needed_cues(pipelines[visual.kind])
        if "pixels" in needs and visual.pixels is None:
            raise ValueError("methods that need pixels cannot reduce images in tiles; give images other methods")
        shape = cue_shape(needs, visual, None if text is None else text[encoded.row[index]])
        single = (index,) if visual.plans else ()
        groups.setdefault((visual.kind, visual.part, visual.grid.H, visual.grid.W, *shape, *single), []).append(index)
    for (kind, part, *_), indices in groups.items():
        group = [_tokens(visuals[index]) for index in indices]
        pipeline = pipelines[kind]
        if part is not None:
            pipeline = share_budgets(pipeline, part[0], group[0].grid.cells, part[1], kind)
        if not len(pipeline.methods):
            for index, tokens in zip(indices, group, strict=True):
                results[index] = ReducedVisual(_shorten(visuals[index], tokens, tokens), tokens)
            continue
        batch = group[0] if len(group) == 1 else collate(group)
        rows = [encoded.row[index] for index in indices]
        cues = make_cues(needed_cues(pipeline), model, prompt, [visuals[i] for i in indices], batch, rows, text)
        plans = visuals[indices[0]].plans
        reduced = pipeline.resume(batch, plans, **cues) if plans else pipeline(batch, **cues)
        for index, before, after in zip(indices, group, reduced, strict=True):
            planned = pipeline.planned_count(before.grid)
            if planned is not None and planned != after.N:
                raise ValueError(f"{pipeline.spec} must leave {planned} of {before.N} tokens, got {after.N}")
            results[index] = ReducedVisual(_shorten(visuals[index], before, after), after)
    return results


def _tokens(visual: VisualFeatures) -> Tokens:
    assert visual.layout is not None
    return Tokens.from_cells(visual.features[None, visual.layout.cells(visual.features.device)], visual.layout.grid)


def _shorten(visual: VisualFeatures, before: Tokens, after: Tokens) -> VisualFeatures:
    """Replaces the cells of a visual with the tokens `after`, and its DeepStack rows by the same plan."""
    assert visual.layout is not None
    device = visual.features.device
    cells, others = visual.layout.cells(device), visual.layout.others(device)
    layers = [layer[None, cells] for layer in visual.deepstack]
    if layers:
        for plan in visual.plans:
            layers = [plan.move(layer, before.sizes) for layer in layers]
            before = before.apply(plan)
    layers = [layer[0] if after is before else after.pool(layer, before)[0] for layer in layers]
    deepstack = [torch.cat([layer, full[others]]) for layer, full in zip(layers, visual.deepstack, strict=True)]
    features = torch.cat([after.features[0].to(visual.features.dtype), visual.features[others]])
    return replace(visual, features=features, deepstack=deepstack, pixels=None, cues={}, plans=[], encoded=None)
