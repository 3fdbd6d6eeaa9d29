"""Weights of cells in tokens (`Tokens.attribution`), in blocks of frames. Axis letters are defined in `tokens.py`."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fewtokens.core.plan import Plan, group_count, split_blocks, take_rows

if TYPE_CHECKING:
    from fewtokens.core.tokens import Tokens


def take_cells(tokens: Tokens, index: Tensor | None, frames: Tensor | None) -> Tensor:
    """The weights of the cells of some frames in some tokens, see `Tokens.cell_weights`."""
    if tokens.attribution is None:
        raise ValueError("these tokens have no attribution weights")
    weights, start = tokens.attribution, _start(tokens)
    if index is not None:
        weights, start = weights[:, index], start[:, index]
    frames = torch.arange(tokens.grid.T, device=tokens.device) if frames is None else frames.to(tokens.device)
    return _take_frames(weights, frames - start[..., None], tokens.grid.cells_per_frame)


def enlarge_blocks(tokens: Tokens, frames: int) -> Tensor:
    """The attribution in larger blocks, see `Tokens.attribution_in_blocks`."""
    assert tokens.attribution is not None
    if frames == tokens.block_frames:
        return tokens.attribution
    local = torch.arange(frames, device=tokens.device) - (_start(tokens) % frames)[..., None]
    return _take_frames(tokens.attribution, local, tokens.grid.cells_per_frame)


def _start(tokens: Tokens) -> Tensor:
    """The first frame of the block of each token, int64 [B,N]."""
    return tokens.frame // tokens.block_frames * tokens.block_frames


def apply_hard(tokens: Tokens, plan: Plan, parts: Tensor) -> Tensor | None:
    """Copies or sums attribution by a hard plan; a sum over several blocks has weights in one larger block."""
    if tokens.attribution is None or plan.representative is not None:
        return None if tokens.attribution is None else plan.copy(tokens.attribution)
    assert plan.dest is not None
    blocks = _joined_blocks(tokens, plan.dest, plan.num_slots)
    # Each row is added to its place in the larger block.
    place = plan.dest * blocks + tokens.frame // tokens.block_frames % blocks
    places = replace(plan, dest=place.masked_fill(plan.dest < 0, -1), num_slots=plan.num_slots * blocks)
    sums = places.sum(tokens.attribution, parts)
    return sums.unflatten(1, (plan.num_slots, blocks)).flatten(2)[..., : tokens.grid.cells]


def apply_soft(tokens: Tokens, plan: Plan) -> Tensor:
    """Sums attribution by a soft plan: [B,M,S], since an output may use tokens of all blocks."""
    assert tokens.attribution is not None
    G = plan.block_weights.shape[1]
    diagonal = torch.eye(G, device=tokens.device, dtype=plan.block_weights.dtype)
    dense = plan.block_weights[:, :, :, None] * diagonal[:, None, :, None]  # [B,G,m,G,n]
    weights = dense.flatten(3).flatten(1, 2)[..., : tokens.N].to(tokens.attribution.dtype)
    if tokens.block_frames == tokens.grid.T:
        return weights @ tokens.attribution
    index, _ = _tokens_of_blocks(tokens)
    rows = take_rows(tokens.attribution, index.clamp(min=0).flatten(1)).unflatten(1, index.shape[1:])
    columns = take_rows(weights.transpose(1, 2), index.clamp(min=0).flatten(1)).unflatten(1, index.shape[1:])
    mixed = torch.einsum("bgkm,bgkc->bmgc", columns * (index >= 0)[..., None], rows)
    return mixed.flatten(2)[..., : tokens.grid.cells]


def weighted_means(tokens: Tokens, rows: Tensor, assignment: Tensor) -> Tensor:
    """Means [B,N,D], weighted by attribution, of rows [B,N',D], one per token of an `assignment` [B,S]."""
    assert tokens.attribution is not None
    wide = torch.float64 if rows.dtype == torch.float64 else torch.float32
    n = tokens.attribution.shape[2]
    cells = split_blocks(take_rows(rows, assignment.clamp(min=0)).to(wide), n)  # [B,G,n,D]
    valid = split_blocks(assignment >= 0, n)[:, :, None]
    if cells.shape[1] == 1:
        weights, place = (tokens.attribution * tokens.mask[..., None])[:, None], None
    else:
        index, place = _tokens_of_blocks(tokens)
        weights = take_rows(tokens.attribution, index.clamp(min=0).flatten(1)).unflatten(1, index.shape[1:])
    weights = weights.to(wide).clamp(min=0) * valid
    means = (weights / weights.sum(3, keepdim=True).clamp(min=1e-12) @ cells).flatten(1, 2).to(rows.dtype)
    return means if place is None else take_rows(means, place).masked_fill(~tokens.mask[..., None], 0)


def _joined_blocks(tokens: Tokens, dest: Tensor, num_slots: int) -> int:
    """The smallest number of blocks to join so that tokens with the same `dest` [B,N] are in one block."""
    w, total = tokens.block_frames, -(-tokens.grid.T // tokens.block_frames)
    if total == 1 or torch.compiler.is_compiling():  # a graph cannot depend on values
        return total
    # Reading the result synchronizes a GPU, which costs less than a table of all tokens and cells.
    block = tokens.frame // w
    slot = dest.masked_fill(dest < 0, num_slots)
    first = block.new_full((tokens.B, num_slots + 1), total).scatter_reduce(1, slot, block, "amin")[:, :num_slots]
    last = block.new_zeros(tokens.B, num_slots + 1).scatter_reduce(1, slot, block, "amax")[:, :num_slots]
    several = (first < last).long().flatten()
    # The number of outputs with tokens on both sides of each border between two blocks.
    change = block.new_zeros(total + 1)
    change.index_add_(0, (first.flatten() + 1).clamp(max=total), several)
    change.index_add_(0, last.flatten() + 1, -several)
    crossed = change.cumsum(0)[:total].cpu().numpy() > 0
    return next(k for k in range(1, total + 1) if not crossed[k::k].any())


def _tokens_of_blocks(tokens: Tokens) -> tuple[Tensor, Tensor]:
    """The tokens of each block of attribution.

    Returns:
        Indices of tokens, int64 [B,G,k], -1 for none; and the place of each token among these G*k, int64 [B,N].
    """
    G = -(-tokens.grid.T // tokens.block_frames)
    block = (tokens.frame // tokens.block_frames).masked_fill(~tokens.mask, G)
    count = group_count(block, G + 1)
    # A graph cannot depend on values.
    k = tokens.N if torch.compiler.is_compiling() else max(1, int(count[:, :G].max()))
    order = block.argsort(dim=1, stable=True)
    ordered = block.gather(1, order)
    token = torch.arange(tokens.N, device=tokens.device).expand(tokens.B, -1)
    rank = token - (count.cumsum(1) - count).gather(1, ordered)
    # One extra place for padded slots.
    ordered_place = (ordered * k + rank).clamp(max=G * k)
    place = torch.empty_like(order).scatter(1, order, ordered_place)
    index = place.new_full((tokens.B, G * k + 1), -1).scatter(1, place, token)[:, :-1]
    return index.unflatten(1, (G, k)), place.clamp(max=G * k - 1)


def _take_frames(weights: Tensor, frames: Tensor, cells: int) -> Tensor:
    """Takes frames of weights.

    Args:
        weights: [B,N,w*cells].
        frames: int64 [B,N,F]; those outside 0..w-1 give zeros.
        cells: the number of cells per frame.

    Returns:
        [B,N,F*cells].
    """
    by_frame = weights.unflatten(2, (-1, cells)).flatten(0, 1)  # [B*N,w,cells]
    w = by_frame.shape[1]
    outside = (frames < 0) | (frames >= w)
    taken = take_rows(by_frame, frames.clamp(0, w - 1).flatten(0, 1)).unflatten(0, weights.shape[:2])
    return taken.masked_fill(outside[..., None], 0).flatten(2)
