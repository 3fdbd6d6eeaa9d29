"""One prompt of a batch as columns: those that stay, and those that come where a video stood."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fewtokens.llm.backends.base import VisualFeatures
from fewtokens.llm.visuals import ReducedVisual


@dataclass
class EditedPrompt:
    """A prompt without padding: ids [L], positions [A,L], labels [L]; and the columns of each group that came in."""

    ids: Tensor
    positions: Tensor
    labels: Tensor
    columns: Sequence[Tensor]


class PromptEditor:
    """One prompt of a batch, as columns that are kept, and columns that come in their place."""

    def __init__(self, ids: Tensor, mask: Tensor, positions: Tensor, prompt: dict[str, Any], number: int) -> None:
        self.ids, self.positions = ids, positions
        labels = prompt.get("labels")
        self.labels = torch.full_like(ids, -100) if labels is None else labels[number]
        self.kept = mask.bool().clone()
        self.new: list[tuple[Tensor, int, Tensor]] = []  # place, id, positions of each group of columns

    def replace(
        self,
        visual: VisualFeatures,
        short: ReducedVisual,
        places: Tensor,
        placeholder: int,
        layout: str,
        positions: str,
    ) -> None:
        """Puts the rows of a visual where its placeholders stood."""
        if short.tokens is None:
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
        where = short.tokens.positions[0]
        nearest = nearest_cell(where, visual.grid.shape)
        at = self.positions[:, own]
        found = at[:, nearest] if positions != "average" else _between(at, where, visual.grid.shape)
        self.new.append((start[nearest], placeholder, found))

    def line(self) -> EditedPrompt:
        """What stands there now, in order; new columns stay in the order they came in."""
        kept = self.kept.nonzero().squeeze(1)
        place = torch.cat([kept, *(place for place, _, _ in self.new)])
        ids = torch.cat([self.ids[kept], *(torch.full_like(place, id) for place, id, _ in self.new)])
        at = torch.cat([self.positions[:, kept], *(found for _, _, found in self.new)], dim=1)
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
