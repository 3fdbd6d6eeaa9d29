"""Rewrites prompts for few visual tokens: placeholders, masks, positions and labels.

Text is unchanged. A video's rows are replaced by its tokens, each at the column of the cell nearest to its mean
position, in the order of these cells; if positions are averaged, in the order of their time within a run of columns.
`mm_encoder_outputs` contains the features (and DeepStack features, reduced by the same plan), so that the model inserts
them itself, once for each beam.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from fewtokens.core.layer_method import VideoPlacement
from fewtokens.core.plan import Plan
from fewtokens.core.shapes import shape_repr
from fewtokens.core.tokens import Tokens
from fewtokens.llm.backends.base import MODALITIES, Backend
from fewtokens.llm.backends.rows import VisualFeatures
from fewtokens.llm.features import mark_reduced
from fewtokens.llm.layout import Layout, prompt_columns
from fewtokens.llm.visuals import EncodedVisuals, ReducedVisual

LAYOUTS = ("per_frame", "collapse")
POSITIONS = ("keep", "average", "renumber")
# Inputs of `forward` that describe pixels and that no encoder reads.
_PIXEL_INPUTS = (
    "num_chunks_per_video", "image_sizes_videos", "video_compression_mask", "batch_num_images", "pixel_attention_mask",
)  # fmt: skip
# Inputs with a value for each token, and the value of padding. Others with a value for each token are refused.
_PARALLEL = {
    "labels": -100, "mm_token_type_ids": 0, "token_type_ids": 0, "moe_mm_token_type_ids": 0, "block_sequence_ids": -1,
}  # fmt: skip


@dataclass
class Compressed:
    """A shortened prompt.

    Attributes:
        inputs: the inputs of `generate` or `forward`.
        tokens: the tokens of each image that was reduced, then of each video, in the order of the prompts; each grid
            of an image on its own.
        whole: the number of tokens of each image that was left whole.
        before, after: int64 [B], the length of each prompt before and after, without padding.
        shift: int64 [B], the offset of the positions of later text from a count of the columns (negative if behind);
            0 if positions were renumbered.
        layout: the columns of the visual tokens; None if the prompt is text only.
    """

    inputs: dict[str, Any]
    tokens: list[Tokens] = field(default_factory=list)
    before: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.int64))
    after: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.int64))
    shift: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.int64))
    layout: Layout | None = None
    whole: list[int] = field(default_factory=list)

    __repr__ = shape_repr


@dataclass
class EditedPrompt:
    """A prompt after its videos were replaced, without padding, L columns long.

    Attributes:
        ids: int64 [L].
        positions: int64 [A,L] of A axes.
        parallel: [L], other inputs with a value for each token, by name; labels are -100 at tokens of videos.
        columns: int64 [n], the columns of the tokens of each video, in the order in which the videos were replaced.
    """

    ids: Tensor
    positions: Tensor
    parallel: dict[str, Tensor]
    columns: Sequence[Tensor]

    __repr__ = shape_repr


@dataclass
class NewColumns:
    """The columns of the tokens of a video.

    Attributes:
        column: int64 [n], where each is inserted.
        id: the placeholder.
        positions: int64 [A,n].
        source: int64 [n], the original column whose values in parallel inputs each takes.
    """

    column: Tensor
    id: int
    positions: Tensor
    source: Tensor

    __repr__ = shape_repr


class PromptEditor:
    """Edits one prompt of a batch: some columns are kept, others are replaced by new ones.

    Args:
        ids, mask: int64 [L] of the prompt.
        positions: int64 [A,L] of A axes.
        parallel: [L], other inputs with a value for each token, by name.
    """

    def __init__(self, ids: Tensor, mask: Tensor, positions: Tensor, parallel: dict[str, Tensor]) -> None:
        self.ids, self.positions, self.parallel = ids, positions, parallel
        self.survivors = mask.bool().clone()
        self.new: list[NewColumns] = []

    def replace(
        self,
        visual: VisualFeatures,
        reduced: ReducedVisual,
        columns: Tensor,
        placeholder: int,
        layout: str,
        positions: str,
    ) -> VisualFeatures:
        """Replaces the placeholders of a visual, at `columns`, by its reduced rows; returns these in their new order.

        Rows that are not cells, such as newlines, stay with their group of cells, and are removed with it if no token
        is left in it. If the layout is "collapse", only the last newline stays, or the first row before a group.
        """
        if reduced.tokens is None:
            return reduced.visual
        assert visual.layout is not None
        grid, group = visual.layout.grid, visual.layout.group
        cell_columns, other_columns = (
            columns[part(columns.device)] for part in (visual.layout.cells, visual.layout.others)
        )
        self.survivors[cell_columns] = False
        # A run is a sequence of cells without text or other rows between them.
        begins = torch.cat([cell_columns.new_ones(1, dtype=torch.bool), cell_columns[1:] != cell_columns[:-1] + 1])
        start = cell_columns[begins][begins.cumsum(0) - 1]
        if layout == "collapse":
            self.survivors[int(cell_columns[0]) : int(cell_columns[-1]) + 1] = False
            start = cell_columns[:1].expand(grid.cells)
        centers = reduced.tokens.positions[0]
        nearest = nearest_cell(centers, grid.shape)
        old = self.positions[:, cell_columns]
        new = old[:, nearest] if positions != "average" else _interpolate(old, centers, grid.shape)
        self.new.append(NewColumns(start[nearest], placeholder, new, cell_columns[nearest]))
        if not group:
            return reduced.visual
        remains = torch.zeros_like(other_columns, dtype=torch.bool)
        if layout == "collapse":
            remains[0 if visual.layout.leading else -1] = True
        else:
            remains[torch.div(nearest, group, rounding_mode="floor")] = True
        self.survivors[other_columns[~remains]] = False
        others = self.survivors[other_columns].nonzero().squeeze(1)
        order = torch.cat([start[nearest], other_columns[others]]).argsort(stable=True)
        tokens = torch.arange(len(nearest), device=columns.device)
        return reduced.visual.take(torch.cat([tokens, others + len(nearest)])[order])

    def result(self) -> EditedPrompt:
        """Returns the columns in order; new columns at one position keep the order in which they were added."""
        survivors = self.survivors.nonzero().squeeze(1)
        column = torch.cat([survivors, *(new.column for new in self.new)])
        ids = torch.cat([self.ids[survivors], *(torch.full_like(new.column, new.id) for new in self.new)])
        positions = torch.cat([self.positions[:, survivors], *(new.positions for new in self.new)], dim=1)
        order = column.argsort(stable=True)
        source = torch.cat([survivors, *(new.source for new in self.new)])[order]
        parallel = {name: values[source] for name, values in self.parallel.items()}
        if "labels" in parallel:
            parallel["labels"] = parallel["labels"].masked_fill(order >= len(survivors), -100)
        columns = order.argsort()[len(survivors) :].split([len(new.column) for new in self.new])
        return EditedPrompt(ids[order], positions[:, order], parallel, columns)


def nearest_cell(position: Tensor, shape: tuple[int, int, int]) -> Tensor:
    """The index of the cell nearest to (t, y, x) [...,3], int64 [...]."""
    T, H, W = shape
    t, y, x = (position[..., axis].round().long().clamp(0, size - 1) for axis, size in enumerate((T, H, W)))
    return (t * H + y) * W + x


def in_reading_order(visual: ReducedVisual) -> ReducedVisual:
    """The visual with its tokens in the order of the cells nearest to their mean positions.

    Methods order merged tokens by mean time, so that one that takes a third of its cells from the next frame comes
    after all others of its frame. A language model was trained on rows in the order of the cells, whose positions they
    take. Averaged positions are those of the mean, and follow the order of the methods already.

    Tokens with an attribution, such as those of learned queries, keep their order: they consist of all cells.
    """
    tokens = visual.tokens
    if tokens is None or tokens.attribution is not None:
        return visual
    cell = nearest_cell(tokens.positions[0], tokens.grid.shape)
    if bool((cell.diff() >= 0).all()):
        return visual
    order = cell.argsort(stable=True)
    rows = torch.arange(len(visual.visual.features), device=order.device)
    rows[: len(order)] = order
    features, *deepstack = (values[rows] for values in (visual.visual.features, *visual.visual.deepstack))
    moved = tokens.apply(Plan(tokens.count, tokens.N, order.argsort()[None]))
    return ReducedVisual(replace(visual.visual, features=features, deepstack=deepstack), moved)


def _interpolate(values: Tensor, points: Tensor, shape: tuple[int, int, int]) -> Tensor:
    """Interpolates values [A,S] of the cells at points (t, y, x) [n,3], rounded: int64 [A,n]."""
    low = points.floor()
    fraction = (points - low).double()
    total = torch.zeros(values.shape[0], len(points), dtype=torch.float64, device=values.device)
    for corner in range(8):
        step = points.new_tensor([corner >> 2 & 1, corner >> 1 & 1, corner & 1])
        weight = torch.where(step.bool(), fraction, 1 - fraction).prod(1)
        total += weight * values[:, nearest_cell(low + step, shape)]
    return total.round().long()


def check_prompt_options(layout: str, positions: str | None) -> None:
    """Raises ValueError for an unknown layout, or unknown positions; None is the default of the family."""
    if layout not in LAYOUTS:
        raise ValueError(f"layout must be one of {', '.join(LAYOUTS)}, got {layout!r}")
    if positions is not None and positions not in POSITIONS:
        raise ValueError(f"positions must be one of {', '.join(POSITIONS)}, got {positions!r}")


def edit_prompts(
    backend: Backend,
    model: Any,
    prompt: dict[str, Any],
    encoded: dict[str, EncodedVisuals],
    reduced: dict[str, list[ReducedVisual]],
    *,
    layout: str = "per_frame",
    positions: str | None = None,
) -> Compressed:
    """Replaces the rows of `encoded` in prompts [B,L] with those of `reduced`; see `compress`."""
    positions = positions or backend.default_positions(model)
    check_prompt_options(layout, positions)
    if backend.counted and positions != "renumber":
        raise ValueError(
            f"in {backend.name}, transformers counts the columns of a prompt, so positions must be 'renumber', got "
            f"{positions!r}"
        )
    if positions != "average":
        reduced = {modality: list(map(in_reading_order, visuals)) for modality, visuals in reduced.items()}
    ids = prompt["input_ids"]
    mask = prompt.get("attention_mask")
    mask = torch.ones_like(ids) if mask is None else mask
    old = backend.original_positions(model, prompt, mask)
    consumed = backend.consumed(model).union(*backend.pixel_inputs.values(), _PIXEL_INPUTS)
    rest = {name: value for name, value in prompt.items() if name not in consumed}
    parallel = _parallel_inputs(rest)
    editors = [
        PromptEditor(ids[b], mask[b], old[:, b], {name: values[b] for name, values in parallel.items()})
        for b in range(len(ids))
    ]
    packed: dict[str, list[VisualFeatures]] = {modality: [] for modality in encoded}
    video_slots: list[tuple[int, int]] = []  # the prompt of each video, and its index in that prompt
    for modality, group in encoded.items():
        for before, after, b, columns in zip(group.visuals, reduced[modality], group.row, group.columns, strict=True):
            packed[modality].append(editors[b].replace(before, after, columns, group.placeholder, layout, positions))
            if after.tokens is not None:
                video_slots.append((b, len(editors[b].new) - 1))
    edited = [editor.result() for editor in editors]
    length = max(len(row.ids) for row in edited)
    left = not bool((mask[:, -1] == 0).any())

    def pad(values: list[Tensor], fill: int) -> Tensor:
        sides = [(length - value.shape[-1], 0) if left else (0, length - value.shape[-1]) for value in values]
        return torch.stack([nn.functional.pad(v, side, value=fill) for v, side in zip(values, sides, strict=True)])

    lengths = mask.sum(1), torch.tensor([len(row.ids) for row in edited], device=ids.device)
    result = rest
    result["input_ids"] = pad([row.ids for row in edited], _pad_id(model))
    result["attention_mask"] = pad([torch.ones_like(row.ids) for row in edited], 0).to(mask.dtype)
    for name in parallel:
        result[name] = pad([row.parallel[name] for row in edited], _PARALLEL[name])
    shift = torch.zeros_like(lengths[1])
    if positions != "renumber":
        shift = lengths[0] - lengths[1]
    if len(old) > 1:
        count = (result["attention_mask"].long().cumsum(1) - 1).clamp(min=0)
        axes = pad([row.positions for row in edited], 0).transpose(0, 1)
        axes = count.expand(len(old), -1, -1) if positions == "renumber" else axes
        result["position_ids"] = torch.cat([count[None], axes])
        # From the text at the end; the model's own delta comes from the largest position, which in Qwen2.5-VL is
        # that of a video's last frame.
        ends = torch.stack([row.positions[:, -1].amax() + 1 for row in edited])
        shift = torch.zeros_like(shift) if positions == "renumber" else ends - lengths[1]
        # The model reads this if a later turn continues without `attach`.
        model.base_model.rope_deltas = shift[:, None]
    elif positions != "renumber":
        result["position_ids"] = pad([row.positions for row in edited], 0)[:, 0]
    tokens = [visual.tokens for modality in encoded for visual in reduced[modality] if visual.tokens is not None]
    whole: list[int] = []
    for visual in (visual for modality in encoded for visual in reduced[modality] if visual.tokens is None):
        rows, part = len(visual.visual.features), visual.visual.part
        whole = [*whole, rows] if part is None or not part[0] else [*whole[:-1], whole[-1] + rows]
    token_layout = _layout(backend, model, result, edited, video_slots, tokens)
    result["mm_encoder_outputs"] = {
        backend.output_name(model, modality, group.placeholder): mark_reduced(
            backend.pack(modality, group.outputs, packed[modality]), token_layout
        )
        for modality, group in encoded.items()
    }
    return Compressed(result, tokens, *lengths, shift, token_layout, whole)


def _layout(
    backend: Backend,
    model: Any,
    result: dict[str, Any],
    edited: list[EditedPrompt],
    video_slots: Any,
    tokens: list[Tokens],
) -> Layout:
    ids, mask = result["input_ids"], result["attention_mask"].bool()
    visual = torch.zeros_like(mask)
    for modality in MODALITIES:
        for placeholder in backend.placeholders(model, modality):
            visual |= ids == placeholder
    before_answer = prompt_columns(result)
    column = torch.arange(ids.shape[1], device=ids.device)
    # The number of padding columns to the left of each prompt.
    offset = mask.long().argmax(1).tolist()
    videos = [
        VideoPlacement(b, edited[b].columns[index] + offset[b], video)
        for (b, index), video in zip(video_slots, tokens, strict=True)
    ]
    return Layout(visual & mask, column.where(before_answer, 0).amax(1), videos)


def _pad_id(model: Any) -> int:
    for config in (model.generation_config, model.config, model.config.get_text_config()):
        if (pad_id := getattr(config, "pad_token_id", None)) is not None:
            return int(pad_id)
    return 0


def _parallel_inputs(inputs: dict[str, Any]) -> dict[str, Tensor]:
    """The inputs with a value for each token of prompts [B,L], other than ids and mask.

    Raises:
        ValueError: an unknown one, which cannot be shortened.
    """
    shape, parallel = inputs["input_ids"].shape, {}
    for name, value in inputs.items():
        if name in ("input_ids", "attention_mask") or not isinstance(value, Tensor):
            continue
        if value.shape[-2:] == shape or value.shape[:2] == shape:
            if name not in _PARALLEL:
                raise ValueError(
                    f"{name} {list(value.shape)} has a value for each token, but is not one of "
                    f"{', '.join(_PARALLEL)}, which are shortened with the prompt; remove it"
                )
            parallel[name] = value
    return parallel
