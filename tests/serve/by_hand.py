"""The rows of a short video, one at a time and in exact arithmetic; nothing of `fewtokens.serve`."""

from __future__ import annotations

from fractions import Fraction

import torch
from torch import Tensor

from fewtokens.core import registry
from fewtokens.core.grid import Grid
from fewtokens.core.tokens import Tokens


def members_of(tokens: Tokens) -> list[list[int]]:
    """The cells of each token."""
    assignment = tokens.assignment[0].tolist()
    return [[cell for cell, to in enumerate(assignment) if to == token] for token in range(tokens.N)]


def nearest_member(members: list[int], grid: tuple[int, int, int]) -> int:
    """The member nearest to the mean position of all; the earlier of two."""
    _, H, W = grid
    place = {c: (c // (H * W), c // W % H, c % W) for c in members}
    center = [Fraction(sum(p[axis] for p in place.values()), len(members)) for axis in range(3)]
    distance = {c: sum((x - m) ** 2 for x, m in zip(p, center, strict=True)) for c, p in place.items()}
    return min(members, key=lambda c: (distance[c], c))


def shorten(
    spec: str, rows: Tensor, grid: tuple[int, int, int], width: int, pixels: Tensor | None = None
) -> tuple[Tensor, list[int]]:
    """The rows [K,D] of a video by a chain whose tokens are means of cells or one of them, and the cell of each row.

    `pixels` is the cue of the first method, if that needs it.
    """
    tokens = Tokens.from_cells(rows[None, :, :width], Grid(*grid))
    for method in registry.build(spec):
        tokens = method(tokens, **({"pixels": pixels[None]} if pixels is not None and method.needs else {}))
    # A token that stands for cells that look the same later (`rlt`) has the features of the first one.
    members = [
        cells[:1] if torch.equal(rows[cells[0], :width], features) else cells
        for cells, features in zip(members_of(tokens), tokens.features[0], strict=True)
    ]
    means = [(nearest_member(cells, grid), rows[cells].double().mean(0).to(rows)) for cells in members]
    means.sort(key=lambda pair: pair[0])
    return torch.stack([row for _, row in means]), [cell for cell, _ in means]
