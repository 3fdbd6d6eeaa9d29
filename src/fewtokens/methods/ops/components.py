"""Connected components of similar tokens on tensors, without a full matrix of all pairs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from fewtokens.core.plan import readable, take_rows

# Similarities are computed in blocks of at most this many entries (4 MiB in float32).
_MAX_BLOCK_ENTRIES = 1 << 20
# Edges are kept for lower thresholds if there are at most this many per token.
_MAX_EDGES = 64


def components(lowest: Callable[[Tensor], Tensor], mask: Tensor, label: Tensor | None = None) -> Tensor:
    """The smallest index in each token's component, int64 [B,N]; each padded slot is a separate component.

    Labels propagate along edges and along themselves (pointer jumping) until nothing changes, in about the logarithm of
    the longest path.

    Args:
        lowest: maps labels [B,N] to the lowest label among each token's neighbors and itself, [B,N].
        mask: bool [B,N], True for real tokens.
        label: components already found, as returned by this function.
    """
    if label is None:
        label = torch.arange(mask.shape[1], device=mask.device).expand(mask.shape)
    while True:
        # Hook the root of every tree to the lowest label next to any of its members, then shorten the paths.
        neighbor_label = torch.where(mask, lowest(label), label)
        root = label.scatter_reduce(1, label, neighbor_label, "amin", include_self=True)
        while True:
            jumped = root.gather(1, root)
            if bool((jumped == root).all()):
                break
            root = jumped
        new_label = root.gather(1, label)
        if bool((new_label == label).all()):
            return label
        label = new_label


def lowest_over(a: Tensor, b: Tensor, linked: Tensor | None = None) -> Callable[[Tensor], Tensor]:
    """The argument `lowest` of `components` for edges between tokens `a` and `b`, int64 [B,E].

    `linked` bool [B,E] marks the edges that count; None for all.
    """

    def lowest(label: Tensor) -> Tensor:
        at_a, at_b = label.gather(1, a), label.gather(1, b)
        to_a, to_b = at_b, at_a
        if linked is not None:
            to_a, to_b = torch.where(linked, at_b, at_a), torch.where(linked, at_a, at_b)
        return label.scatter_reduce(1, a, to_a, "amin").scatter_reduce(1, b, to_b, "amin")

    return lowest


def count_components(label: Tensor, mask: Tensor) -> Tensor:
    """The number of components of the tokens of a mask, int64 [B], from the first token of each, both [B,N]."""
    return ((label == torch.arange(label.shape[1], device=label.device)) & mask).sum(1)


class Edges(NamedTuple):
    """Pairs of tokens of a batch [B,N], as video * N + token.

    Attributes:
        a, b: int64 [E].
        cosine: float32 [E].
        floor: float32 [B], the cosine above which these are all pairs of each video.
    """

    a: Tensor
    b: Tensor
    cosine: Tensor
    floor: Tensor

    def select(self, chosen: Tensor) -> Edges:
        return Edges(self.a[chosen], self.b[chosen], self.cosine[chosen], self.floor)


def cosine_components(
    x: Tensor,
    mask: Tensor,
    tau: Tensor,
    floor: Tensor | None = None,
    least: Tensor | None = None,
    known: Edges | None = None,
    fresh: Tensor | None = None,
) -> tuple[Tensor, Edges, Tensor]:
    """Components of tokens connected by a cosine above tau, and the edges for lower thresholds.

    Each pair of tokens is compared once, in blocks; the components found so far are joined by the edges of each block.

    Args:
        x: [B,N,D].
        mask: bool [B,N].
        tau: [B].
        floor: [B], the cosine above which edges are returned, unless they are more than a few per token: see
            `Edges.floor`. Default: tau.
        least: [B]; as soon as every video has fewer components, no further edges are looked for. Default: all are.
        known: all edges above `floor` between tokens that are not fresh.
        fresh: bool [B,N], the tokens to compare with all others. Default: all tokens.

    Returns:
        The first token of each component, int64 [B,N]; the edges; and the tokens that were compared with all others,
            bool [B,N].
    """
    floor = tau if floor is None else floor
    B, N, _ = x.shape
    x, real = F.normalize(x.float(), dim=2), mask
    dense = readable(mask) and bool(mask.all())
    every = torch.ones(1, B * N, dtype=torch.bool, device=x.device)
    label = torch.arange(B * N, device=x.device)[None]
    slot, compared, found = label.reshape(B, N), N, list[Edges]()
    if known is not None and fresh is not None:
        # The fresh tokens first.
        order = (~fresh).to(torch.uint8).argsort(dim=1, stable=True)
        x, slot, compared = take_rows(x, order), slot.gather(1, order), int(fresh.sum(1).max())
        mask = mask.gather(1, order)
        above = known.cosine > tau[known.a // N]
        label = components(lowest_over(known.a[above][None], known.b[above][None]), every, label)
        found = [known]
    start = 0
    while start < compared:
        stop = min(compared, start + max(1, _MAX_BLOCK_ENTRIES // (B * (N - start))))
        similar = (x[:, start:stop] @ x[:, start:].transpose(1, 2)).clamp_(max=1)
        near = similar > floor[:, None, None]
        if not dense:
            near &= mask[:, None, start:] & mask[:, start:stop, None]
        video, row, column = near.nonzero().unbind(1)
        edges = Edges(slot[video, start + row], slot[video, start + column], similar[near], floor)
        above = edges.cosine > tau[video]
        label = components(lowest_over(edges.a[above][None], edges.b[above][None]), every, label)
        start = stop
        found = _at_most(_MAX_EDGES * B * N, [*found, edges], tau, N)
        floor = found[0].floor
        if least is not None and bool((count_components(label.reshape(B, N) % N, real) < least).all()):
            break
    done = torch.ones_like(real).flatten().index_fill(0, slot[:, start:compared].flatten(), False).reshape(B, N)
    a, b, cosine, _ = zip(*found, strict=True)
    return label.reshape(B, N) % N, Edges(torch.cat(a), torch.cat(b), torch.cat(cosine), floor), done


def _at_most(number: int, edges: list[Edges], tau: Tensor, N: int) -> list[Edges]:
    """The edges above a common floor, raised halfway to tau [B] as often as they are too many; above 1 there are none.

    Args:
        number: the largest number of edges.
        edges: the last have the highest floor.
        tau: [B].
        N: the number of tokens of each video.
    """
    floor = edges[-1].floor
    while sum(len(each.a) for each in edges) > number:
        floor = torch.where(floor < tau - 1e-3, (floor + tau) / 2, torch.where(floor < tau, tau, 2))
        edges = [each.select(each.cosine > floor[each.a // N]) for each in edges]
    return [each._replace(floor=floor) for each in edges]


def spanning_edges(x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Edges of a maximum spanning tree by cosine: the components of the edges above any tau are those of all pairs.

    Boruvka's algorithm: in each round, every component is joined to its most similar neighbor. A table of all pairs
    that does not fit in a block is computed again in each round.

    Args:
        x: [B,N,D], of length 1.
        mask: bool [B,N].

    Returns:
        The other end of up to R edges of each token, int64 [B,R,N], and their cosines, -inf for none.
    """
    B, N, _ = x.shape
    block = max(1, _MAX_BLOCK_ENTRIES // (B * N))

    def tables() -> Iterator[Tensor]:
        for rows in x.split(block, 1):
            yield (rows @ x.transpose(1, 2)).clamp_(max=1).masked_fill_(~mask[:, None], -torch.inf)

    computed = list(tables()) if block >= N else None
    own = torch.arange(N, device=x.device).expand(B, N)
    label = own
    ends, cosines = [], []
    while True:
        # Padded tokens are separate components; nothing is similar to them.
        nearest = [
            table.masked_fill(rows[..., None] == label[:, None], -torch.inf).max(2)
            for table, rows in zip(computed or tables(), label.split(block, 1), strict=True)
        ]
        value, end = (torch.cat(part, 1) for part in zip(*nearest, strict=True))
        value = value.masked_fill(~mask, -torch.inf)
        best = torch.full_like(value, -torch.inf).scatter_reduce(1, label, value, "amax").gather(1, label)
        value = value.masked_fill(value < best, -torch.inf)
        ends.append(end)
        cosines.append(value)
        chosen = value > -torch.inf
        if not bool(chosen.any()):
            return torch.stack(ends, 1), torch.stack(cosines, 1)
        label = components(lowest_over(own, end, chosen), mask, label)
