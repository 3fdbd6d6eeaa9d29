"""Rewrites prompts for few visual tokens: placeholders, masks, positions and labels.

Text is unchanged. A video's rows are replaced by its tokens, each at the column of the cell nearest to its mean
position. `mm_encoder_outputs` contains the features (and DeepStack features, reduced by the same plan), so that the
model inserts them itself, once for each beam.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from fewtokens.core.layer_method import VideoPlacement
from fewtokens.core.shapes import shape_repr
from fewtokens.core.tokens import Tokens
from fewtokens.llm.backends.base import MODALITIES, Backend, VisualFeatures
from fewtokens.llm.features import mark_reduced
from fewtokens.llm.interface import check_parameters
from fewtokens.llm.layout import Layout, prompt_columns
from fewtokens.llm.visuals import EncodedVisuals, ReducedVisual

LAYOUTS = ("per_frame", "collapse")
POSITIONS = ("keep", "average", "renumber")
# Inputs that describe pixels or the original sequence, which features replace.
_CONSUMED = (
    "image_grid_thw", "video_grid_thw", "second_per_grid_ts", "mm_token_type_ids", "image_sizes", "image_sizes_videos",
    "video_merge_sizes", "image_merge_sizes", "video_compression_mask", "pixel_attention_mask", "batch_num_images",
    "pixel_values", "pixel_values_videos", "video_times", "video_cells", "video_grid",
)  # fmt: skip


@dataclass
class Compressed:
    """A shortened prompt.

    Attributes:
        inputs: the inputs of `generate` or `forward`.
        tokens: the tokens of each video, in the order of the prompt.
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

    __repr__ = shape_repr


@dataclass
class EditedPrompt:
    """A prompt after its videos were replaced, without padding, L columns long.

    Attributes:
        ids: int64 [L].
        positions: int64 [A,L] of A = 1 or 3 axes.
        labels: int64 [L], -100 at tokens of videos.
        columns: int64 [n], the columns of the tokens of each video, in the order in which the videos were replaced.
    """

    ids: Tensor
    positions: Tensor
    labels: Tensor
    columns: Sequence[Tensor]

    __repr__ = shape_repr


class PromptEditor:
    """Edits one prompt of a batch: some columns are kept, others are replaced by new ones.

    Args:
        ids, mask: int64 [L] of the prompt.
        positions: int64 [A,L] of A = 1 or 3 axes.
        prompt: the batch, with labels [B,L] if given.
        row: the row of this prompt in the batch.
    """

    def __init__(self, ids: Tensor, mask: Tensor, positions: Tensor, prompt: dict[str, Any], row: int) -> None:
        self.ids, self.positions = ids, positions
        labels = prompt.get("labels")
        self.labels = torch.full_like(ids, -100) if labels is None else labels[row]
        self.survivors = mask.bool().clone()
        self.new: list[tuple[Tensor, int, Tensor]] = []  # column, id, positions of each group of columns

    def replace(
        self,
        visual: VisualFeatures,
        reduced: ReducedVisual,
        columns: Tensor,
        placeholder: int,
        layout: str,
        positions: str,
    ) -> None:
        """Replaces the placeholders of a visual, at `columns`, by its reduced rows."""
        if reduced.tokens is None:
            return
        assert visual.grid is not None
        cells = visual.grid.cells
        cell_columns = columns[:cells]
        self.survivors[cell_columns] = False
        # A run is a sequence of placeholders without text between them.
        begins = torch.cat([cell_columns.new_ones(1, dtype=torch.bool), cell_columns[1:] != cell_columns[:-1] + 1])
        start = cell_columns[begins][begins.cumsum(0) - 1]
        if layout == "collapse":
            self.survivors[int(cell_columns[0]) : int(cell_columns[-1]) + 1] = False
            start = cell_columns[:1].expand(cells)
        centers = reduced.tokens.positions[0]
        nearest = nearest_cell(centers, visual.grid.shape)
        old = self.positions[:, cell_columns]
        new = old[:, nearest] if positions != "average" else _interpolate(old, centers, visual.grid.shape)
        self.new.append((start[nearest], placeholder, new))

    def result(self) -> EditedPrompt:
        """Returns the columns in order; new columns at one position keep the order in which they were added."""
        survivors = self.survivors.nonzero().squeeze(1)
        column = torch.cat([survivors, *(column for column, _, _ in self.new)])
        ids = torch.cat([self.ids[survivors], *(torch.full_like(column, id) for column, id, _ in self.new)])
        positions = torch.cat([self.positions[:, survivors], *(new for _, _, new in self.new)], dim=1)
        ignored = [torch.full_like(column, -100) for column, _, _ in self.new]
        labels = torch.cat([self.labels[survivors], *ignored])
        order = column.argsort(stable=True)
        columns = order.argsort()[len(survivors) :].split([len(column) for column, _, _ in self.new])
        return EditedPrompt(ids[order], positions[:, order], labels[order], columns)


def nearest_cell(position: Tensor, shape: tuple[int, int, int]) -> Tensor:
    """The index of the cell nearest to (t, y, x) [...,3], int64 [...]."""
    T, H, W = shape
    t, y, x = (position[..., axis].round().long().clamp(0, size - 1) for axis, size in enumerate((T, H, W)))
    return (t * H + y) * W + x


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
    if positions not in POSITIONS:
        raise ValueError(f"positions must be one of {', '.join(POSITIONS)}, got {positions!r}")
    ids = prompt["input_ids"]
    mask = prompt.get("attention_mask")
    mask = torch.ones_like(ids) if mask is None else mask
    old = _positions(backend, model, prompt, mask)
    editors = [PromptEditor(ids[b], mask[b], old[:, b], prompt, b) for b in range(len(ids))]
    video_slots: list[tuple[int, int]] = []  # the prompt of each video, and its index in that prompt
    for modality, group in encoded.items():
        placeholder = backend.placeholder(model, modality)
        for before, after, b, columns in zip(group.visuals, reduced[modality], group.row, group.columns, strict=True):
            editors[b].replace(before, after, columns, int(placeholder or 0), layout, positions)
            if after.tokens is not None:
                video_slots.append((b, len(editors[b].new) - 1))
    edited = [editor.result() for editor in editors]
    length = max(len(row.ids) for row in edited)
    left = not bool((mask[:, -1] == 0).any())

    def pad(values: list[Tensor], fill: int) -> Tensor:
        sides = [(length - value.shape[-1], 0) if left else (0, length - value.shape[-1]) for value in values]
        return torch.stack([nn.functional.pad(v, side, value=fill) for v, side in zip(values, sides, strict=True)])

    lengths = mask.sum(1), torch.tensor([len(row.ids) for row in edited], device=ids.device)
    result = {name: value for name, value in prompt.items() if name not in _CONSUMED}
    result["input_ids"] = pad([row.ids for row in edited], _pad_id(model))
    result["attention_mask"] = pad([torch.ones_like(row.ids) for row in edited], 0).to(mask.dtype)
    if "labels" in prompt and prompt["labels"] is not None:
        result["labels"] = pad([row.labels for row in edited], -100)
    shift = torch.zeros_like(lengths[1])
    if positions != "renumber":
        shift = lengths[0] - lengths[1]
    if backend.mrope:
        count = (result["attention_mask"].long().cumsum(1) - 1).clamp(min=0)
        axes = pad([row.positions for row in edited], 0).transpose(0, 1)
        axes = count.expand(3, -1, -1) if positions == "renumber" else axes
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
    token_layout = _layout(backend, model, result, edited, video_slots, tokens)
    result["mm_encoder_outputs"] = {
        modality: mark_reduced(
            backend.pack(modality, group.outputs, [visual.visual for visual in reduced[modality]]), token_layout
        )
        for modality, group in encoded.items()
    }
    return Compressed(result, tokens, *lengths, shift, token_layout)


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
        if (placeholder := backend.placeholder(model, modality)) is not None:
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


def _positions(backend: Backend, model: Any, prompt: dict[str, Any], mask: Tensor) -> Tensor:
    """Positions of the original prompt, int64 [A,B,L] of A = 1 or 3 axes."""
    ids = prompt["input_ids"]
    if not backend.mrope:
        return (mask.long().cumsum(1) - 1).clamp(min=0)[None]
    token_types = prompt.get("mm_token_type_ids")
    if token_types is None:
        token_types = sum(
            (ids == backend.placeholder(model, modality)).long() * token_type
            for token_type, modality in enumerate(MODALITIES, start=1)
        )
    names = ("image_grid_thw", "video_grid_thw", "second_per_grid_ts")
    get_rope_index = model.base_model.get_rope_index
    check_parameters(get_rope_index, ("input_ids", "mm_token_type_ids", "attention_mask", *names), "get_rope_index")
    inputs = {name: prompt[name] for name in names if prompt.get(name) is not None}
    positions, _ = get_rope_index(ids, mm_token_type_ids=token_types, attention_mask=mask, **inputs)
    return positions
