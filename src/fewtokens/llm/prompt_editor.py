"""Prompts with few visual tokens: placeholders, masks, positions and labels are written again to fit them.

Text stays as it is. A video's rows are replaced by its tokens, each of which stands where the cell nearest to its mean
position stood. `mm_encoder_outputs` carries the features (and DeepStack features, moved by the same plan), so that the
model puts them in itself, once for each beam.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from fewtokens.core.layer_method import PlacedVideo
from fewtokens.core.shapes import by_shape
from fewtokens.core.tokens import Tokens
from fewtokens.llm.backends.base import MODALITIES, Backend, VisualFeatures
from fewtokens.llm.features import mark_reduced
from fewtokens.llm.interface import check_parameters
from fewtokens.llm.layout import Layout, asked_columns
from fewtokens.llm.visuals import EncodedVisuals, ReducedVisual

LAYOUTS = ("per_frame", "collapse")
POSITIONS = ("keep", "average", "renumber")
# Inputs that describe pixels or the original sequence; of no use once there are features.
_CONSUMED = (
    "image_grid_thw", "video_grid_thw", "second_per_grid_ts", "mm_token_type_ids", "image_sizes", "image_sizes_videos",
    "video_merge_sizes", "image_merge_sizes", "video_compression_mask", "pixel_attention_mask", "batch_num_images",
    "pixel_values", "pixel_values_videos", "video_times", "video_cells", "video_grid",
)  # fmt: skip


@dataclass
class Compressed:
    """A shorter prompt.

    Attributes:
        inputs: for `generate` or `forward`.
        tokens: what became of each video, in the order of the prompt.
        before, after: int64 [B], length of each prompt without padding.
        shift: int64 [B], by how much positions of the text that follows are ahead of a count of the tokens (behind it
            if negative); 0 if positions were renumbered.
        layout: the columns of the visual tokens; None if the prompt is text alone.
    """

    inputs: dict[str, Any]
    tokens: list[Tokens] = field(default_factory=list)
    before: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.int64))
    after: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.int64))
    shift: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.int64))
    layout: Layout | None = None

    __repr__ = by_shape


@dataclass
class EditedPrompt:
    """A prompt after its videos were replaced, without padding, L columns long.

    Attributes:
        ids: int64 [L].
        positions: int64 [A,L] of A = 1 or 3 axes.
        labels: int64 [L], -100 at tokens of videos.
        columns: int64 [n] of the tokens of each video, in the order in which the videos were replaced.
    """

    ids: Tensor
    positions: Tensor
    labels: Tensor
    columns: Sequence[Tensor]

    __repr__ = by_shape


class PromptEditor:
    """One prompt of a batch, as columns that stay, and new columns in the place of others.

    Args:
        ids, mask: int64 [L] of the prompt.
        positions: int64 [A,L] of A = 1 or 3 axes.
        prompt: the batch, with its labels [B,L], if it has some.
        number: which of its rows this is.
    """

    def __init__(self, ids: Tensor, mask: Tensor, positions: Tensor, prompt: dict[str, Any], number: int) -> None:
        self.ids, self.positions = ids, positions
        labels = prompt.get("labels")
        self.labels = torch.full_like(ids, -100) if labels is None else labels[number]
        self.kept = mask.bool().clone()
        self.new: list[tuple[Tensor, int, Tensor]] = []  # place, id, positions of each group of columns

    def replace(
        self,
        visual: VisualFeatures,
        reduced: ReducedVisual,
        places: Tensor,
        placeholder: int,
        layout: str,
        positions: str,
    ) -> None:
        """Puts the rows of a visual where its placeholders stood."""
        if reduced.tokens is None:
            return
        assert visual.grid is not None
        cells = visual.grid.cells
        own = places[:cells]
        self.kept[own] = False
        # A run is a row of placeholders without words between them.
        begins = torch.cat([own.new_ones(1, dtype=torch.bool), own[1:] != own[:-1] + 1])
        start = own[begins][begins.cumsum(0) - 1]
        if layout == "collapse":
            self.kept[int(own[0]) : int(own[-1]) + 1] = False
            start = own[:1].expand(cells)
        where = reduced.tokens.positions[0]
        nearest = nearest_cell(where, visual.grid.shape)
        at = self.positions[:, own]
        new = at[:, nearest] if positions != "average" else _between(at, where, visual.grid.shape)
        self.new.append((start[nearest], placeholder, new))

    def result(self) -> EditedPrompt:
        """The columns in order; new ones of one place stay in the order in which they were added."""
        kept = self.kept.nonzero().squeeze(1)
        place = torch.cat([kept, *(place for place, _, _ in self.new)])
        ids = torch.cat([self.ids[kept], *(torch.full_like(place, id) for place, id, _ in self.new)])
        at = torch.cat([self.positions[:, kept], *(new for _, _, new in self.new)], dim=1)
        blank = [torch.full_like(place, -100) for place, _, _ in self.new]
        labels = torch.cat([self.labels[kept], *blank])
        order = place.argsort(stable=True)
        columns = order.argsort()[len(kept) :].split([len(place) for place, _, _ in self.new])
        return EditedPrompt(ids[order], at[:, order], labels[order], columns)


def nearest_cell(where: Tensor, shape: tuple[int, int, int]) -> Tensor:
    """The number of the cell nearest to (t, y, x) [...,3], int64 [...]."""
    T, H, W = shape
    t, y, x = (where[..., axis].round().long().clamp(0, size - 1) for axis, size in enumerate((T, H, W)))
    return (t * H + y) * W + x


def _between(at: Tensor, where: Tensor, shape: tuple[int, int, int]) -> Tensor:
    """Positions [A,S] of the cells, read between cells at (t, y, x) [n,3] and rounded: int64 [A,n]."""
    low = where.floor()
    part = (where - low).double()
    total = torch.zeros(at.shape[0], len(where), dtype=torch.float64, device=at.device)
    for corner in range(8):
        step = where.new_tensor([corner >> 2 & 1, corner >> 1 & 1, corner & 1])
        share = torch.where(step.bool(), part, 1 - part).prod(1)
        total += share * at[:, nearest_cell(low + step, shape)]
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
    """Prompts [B,L] with the rows of `reduced` where those of `encoded` were; see `compress`."""
    positions = positions or backend.default_positions(model)
    if positions not in POSITIONS:
        raise ValueError(f"positions must be one of {', '.join(POSITIONS)}, got {positions!r}")
    ids = prompt["input_ids"]
    mask = prompt.get("attention_mask")
    mask = torch.ones_like(ids) if mask is None else mask
    old = _positions(backend, model, prompt, mask)
    editors = [PromptEditor(ids[b], mask[b], old[:, b], prompt, b) for b in range(len(ids))]
    placed: list[tuple[int, int]] = []  # prompt and number in it of each video
    for modality, own in encoded.items():
        placeholder = backend.placeholder(model, modality)
        for before, after, b, places in zip(own.visuals, reduced[modality], own.row, own.places, strict=True):
            editors[b].replace(before, after, places, int(placeholder or 0), layout, positions)
            if after.tokens is not None:
                placed.append((b, len(editors[b].new) - 1))
    lines = [editor.result() for editor in editors]
    width = max(len(line.ids) for line in lines)
    left = not bool((mask[:, -1] == 0).any())

    def pad(values: list[Tensor], fill: int) -> Tensor:
        sides = [(width - value.shape[-1], 0) if left else (0, width - value.shape[-1]) for value in values]
        return torch.stack([nn.functional.pad(v, side, value=fill) for v, side in zip(values, sides, strict=True)])

    lengths = mask.sum(1), torch.tensor([len(line.ids) for line in lines], device=ids.device)
    result = {name: value for name, value in prompt.items() if name not in _CONSUMED}
    result["input_ids"] = pad([line.ids for line in lines], _pad_id(model))
    result["attention_mask"] = pad([torch.ones_like(line.ids) for line in lines], 0).to(mask.dtype)
    if "labels" in prompt and prompt["labels"] is not None:
        result["labels"] = pad([line.labels for line in lines], -100)
    shift = torch.zeros_like(lengths[1])
    if positions != "renumber":
        shift = lengths[0] - lengths[1]
    if backend.mrope:
        counted = (result["attention_mask"].long().cumsum(1) - 1).clamp(min=0)
        three = pad([line.positions for line in lines], 0).transpose(0, 1)
        three = counted.expand(3, -1, -1) if positions == "renumber" else three
        result["position_ids"] = torch.cat([counted[None], three])
        # From the words at the end; the model's own delta is that of the largest position, which Qwen2.5-VL gives to
        # the last frame of a video.
        ends = torch.stack([line.positions[:, -1].amax() + 1 for line in lines])
        shift = torch.zeros_like(shift) if positions == "renumber" else ends - lengths[1]
        # Where the model looks when a later turn goes on without `attach`.
        model.base_model.rope_deltas = shift[:, None]
    elif positions != "renumber":
        result["position_ids"] = pad([line.positions for line in lines], 0)[:, 0]
    tokens = [visual.tokens for modality in encoded for visual in reduced[modality] if visual.tokens is not None]
    columns = _layout(backend, model, result, lines, placed, tokens)
    result["mm_encoder_outputs"] = {
        modality: mark_reduced(
            backend.pack(modality, own.outputs, [visual.visual for visual in reduced[modality]]), columns
        )
        for modality, own in encoded.items()
    }
    return Compressed(result, tokens, *lengths, shift, columns)


def _layout(
    backend: Backend, model: Any, result: dict[str, Any], lines: list[EditedPrompt], placed: Any, tokens: list[Tokens]
) -> Layout:
    ids, mask = result["input_ids"], result["attention_mask"].bool()
    visual = torch.zeros_like(mask)
    for modality in MODALITIES:
        if (placeholder := backend.placeholder(model, modality)) is not None:
            visual |= ids == placeholder
    asked = asked_columns(result)
    column = torch.arange(ids.shape[1], device=ids.device)
    # How far the padding on the left moved each prompt.
    offset = mask.long().argmax(1).tolist()
    videos = [
        PlacedVideo(b, lines[b].columns[number] + offset[b], of) for (b, number), of in zip(placed, tokens, strict=True)
    ]
    return Layout(visual & mask, column.where(asked, 0).amax(1), videos)


def _pad_id(model: Any) -> int:
    for config in (model.generation_config, model.config, model.config.get_text_config()):
        if (number := getattr(config, "pad_token_id", None)) is not None:
            return int(number)
    return 0


def _positions(backend: Backend, model: Any, prompt: dict[str, Any], mask: Tensor) -> Tensor:
    """Positions of the original prompt, int64 [A,B,L] of A = 1 or 3 axes."""
    ids = prompt["input_ids"]
    if not backend.mrope:
        return (mask.long().cumsum(1) - 1).clamp(min=0)[None]
    kinds = prompt.get("mm_token_type_ids")
    if kinds is None:
        kinds = sum(
            (ids == backend.placeholder(model, modality)).long() * number
            for number, modality in enumerate(MODALITIES, start=1)
        )
    names = ("image_grid_thw", "video_grid_thw", "second_per_grid_ts")
    index = model.base_model.get_rope_index
    check_parameters(index, ("input_ids", "mm_token_type_ids", "attention_mask", *names), "get_rope_index")
    known = {name: prompt[name] for name in names if prompt.get(name) is not None}
    positions, _ = index(ids, mm_token_type_ids=kinds, attention_mask=mask, **known)
    return positions
