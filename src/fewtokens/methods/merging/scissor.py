"""LLaVA-Scissor: connected components of similar tokens, first in each frame, then over the video."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from fewtokens.core.method import Method
from fewtokens.core.plan import Plan, flat_rows, mask_indices, readable, take_rows
from fewtokens.core.tokens import Tokens
from fewtokens.methods.ops.bipartite import SKETCH_ERROR, best_match, merge_to, sketch, sketch_axes
from fewtokens.methods.ops.components import (
    Edges,
    components,
    cosine_components,
    count_components,
    lowest_over,
    spanning_edges,
)
from fewtokens.methods.ops.groups import packs
from fewtokens.methods.ops.resample import to_float32
from fewtokens.methods.ops.search import find_threshold

_ROUNDING = 1e-6


class Scissor(Method):
    """Merges connected components of similar tokens: per frame, then per video.

    LLaVA-Scissor (arXiv 2506.21862). Two tokens of a frame are connected if their cosine exceeds tau; each connected
    component is averaged. The averages of all frames are connected and averaged in the same way, each with weight one
    regardless of the number of tokens it stands for. Finally every original token joins its most similar
    representative, and the output is the mean of that representative and all its tokens.

    Components are exact, by label propagation on tensors; the published code samples nodes, which is exact up to about
    3,400 tokens, and visits them in a Python loop. A token stays with the representative of its component unless
    another is nearer by more than the rounding error. Representatives without tokens are excluded; the published code
    returns them unchanged. Tokens are ordered by mean position; in the published code, representatives are ordered by
    the member of their component with the most neighbors.

    All pairs of averages, and of tokens and representatives, are compared, so this costs more than other methods: 2 to
    5 % (384 channels) or 25 % (896) of the time in which a ViT-S/14 encodes 32 frames; with keep=0.25, whose threshold
    leaves more averages, 11 to 23 % or 30 %. It grows with the square of the number of tokens.

    Args:
        tau: cosine above which tokens are connected, in [-1, 1]. Default: 0.9, as in the published examples.
        keep: budget in place of tau, a fraction of the cells (float), a count (int) or "8/frame": a search finds the
            threshold that leaves the fewest tokens not below the budget, and the most similar pairs are merged to the
            exact count.
    """

    paper = "LLaVA-Scissor: Token Compression with Semantic Connected Components, arXiv 2506.21862"
    license = "written from the description; the reference code is CC BY-NC 4.0"
    cost = "O(T n^2 C + M^2 C + N K C) with n tokens per frame, M components of frames and K results"

    def __init__(self, tau: float | None = None, *, keep: float | int | str | None = None) -> None:
        super().__init__()
        self.set_budget(keep, tau=tau)
        if tau is not None and not -1 <= tau <= 1:
            raise ValueError(f"tau must be a cosine in [-1, 1], got {tau}")
        self.tau = tau

    def forward(self, tokens: Tokens, **cues: Any) -> Tokens:
        with torch.no_grad():
            passes = _Passes(tokens)
            if self.budget is None:
                tau = torch.full((tokens.B,), 0.9 if self.tau is None else self.tau, device=tokens.device)
            else:
                # A threshold of 1 connects nothing.
                target = self.counts(tokens)
                tau = find_threshold(
                    lambda tau, floor: passes.count(tau, floor, target), target, tokens.count, -1.0, 1.0
                )
            representatives = passes.representatives(tau)
            nearest = passes.assign(representatives)
            plan = Plan.group(nearest, tokens, representatives.unit.shape[1])
        out = tokens.apply(plan)
        # The mean of the representative and its tokens, each with weight one.
        assert plan.dest is not None
        ones = torch.ones_like(tokens.sizes)
        count, features = plan.parts(ones)[1][..., None], to_float32(tokens.features)
        mean = plan.move(features)
        center = plan.move(take_rows(representatives.center(features, tokens.sizes), nearest))
        features = (mean * count + center) / (count + 1)
        out = replace(out, features=features.masked_fill(~out.mask[..., None], 0).to(tokens.features.dtype))
        return out if self.budget is None else out.apply(merge_to(out, target))


class _Representatives(NamedTuple):
    unit: Tensor  # [B,M,C], of length 1
    real: Tensor  # bool [B,M]
    own: Tensor  # int64 [B,N], the representative of each token's component; 0 for padding
    plans: tuple[Plan, Plan]  # those of both passes

    def center(self, features: Tensor, sizes: Tensor) -> Tensor:
        """The features of the representatives [B,M,C], from those of the tokens [B,N,C], with their gradient."""
        first, second = self.plans
        return second.move(first.move(features, sizes))


class _Passes:
    """The two passes at any threshold, and the assignment of tokens to representatives.

    The components of a frame at all thresholds are those of its maximum spanning tree, which is computed once.
    """

    # The last thresholds that left enough tokens, with their representatives.
    last: tuple[Tensor, _Representatives] | None = None
    # The edges of components of frames that were compared with all others, and their numbers of tokens, both by first
    # tokens.
    compared: tuple[Edges, Tensor] | None = None

    def __init__(self, tokens: Tokens) -> None:
        self.tokens = tokens.replace(features=tokens.features.float())
        self.rows = F.normalize(self.tokens.features, dim=2)
        self.axes = sketch_axes(self.rows)
        self.sketch = sketch(self.rows, self.axes)
        flat = self.rows.flatten(0, 1)
        a, b, cosine = [], [], []
        for pack in packs(tokens.frame.masked_fill(~tokens.mask, -1), tokens.grid.T):
            end, similar = spanning_edges(pack.rows(flat), pack.real)
            edges = similar > -torch.inf
            a.append(pack.index[:, None].expand(end.shape)[edges])
            b.append(pack.index.gather(1, end.flatten(1)).reshape(end.shape)[edges])
            cosine.append(similar[edges])
        self.a, self.b, self.cosine = torch.cat(a)[None], torch.cat(b)[None], torch.cat(cosine)[None]

    def first_labels(self, tau: Tensor) -> Tensor:
        """The first token of each token's component within its frame, int64 [B,N]."""
        B, N = self.tokens.mask.shape
        linked = self.cosine > tau[self.a // N]
        every = torch.ones(1, B * N, dtype=torch.bool, device=tau.device)
        return components(lowest_over(self.a, self.b, linked), every).unflatten(1, (B, N))[0] % N

    def representatives(self, tau: Tensor) -> _Representatives:
        """The representatives after both passes, with a separate tau [B] for each video."""
        if self.last is None or not torch.equal(self.last[0], tau):
            found = self._both_passes(tau, tau, torch.zeros_like(self.tokens.count))
            assert found is not None
            self.last = tau, found
        return self.last[1]

    def _both_passes(self, tau: Tensor, floor: Tensor, least: Tensor) -> _Representatives | None:
        """The representatives, or None as soon as every video is known to have fewer than `least` [B].

        `floor` [B] is a lower bound of all thresholds that follow.
        """
        tokens = self.tokens
        label = self.first_labels(tau)
        if bool((count_components(label, tokens.mask) < least).all()):
            return None
        first_plan = Plan.group(label, tokens, tokens.N)
        first = tokens.apply(first_plan)
        assert first_plan.dest is not None
        members = _occupied(first_plan.dest.clamp(min=0), tokens.mask, first.N)
        token = self._first_tokens(first_plan.dest, first.N)
        known, fresh = self._compared_before(token, members, tau)
        floor = floor if known is None else floor.maximum(known.floor)
        label, edges, done = cosine_components(first.features, first.mask, tau, floor, least, known, fresh)
        if self.compared is None or bool(done.sum() >= (self.compared[1] > 0).sum()):
            counts = torch.zeros(tokens.mask.numel() + 1, dtype=torch.int64, device=token.device)
            counts[token] = (members * done).flatten()
            self.compared = edges._replace(a=token[edges.a], b=token[edges.b]), counts
        if bool((count_components(label, first.mask) < least).all()):
            return None
        second_plan = Plan.group(label, first, first.N)
        features = second_plan.move(first.features)
        own = first_plan.then(second_plan).dest
        assert own is not None
        unit = F.normalize(features, dim=2)
        return _Representatives(unit, second_plan.mask, own.clamp(min=0), (first_plan, second_plan))

    def _first_tokens(self, dest: Tensor, slots: int) -> Tensor:
        """The first token of each component of frames, video * N + token, int64 [B*slots]; B * N for padding."""
        B, N = dest.shape
        slot = flat_rows(dest.masked_fill(dest < 0, slots), slots + 1)
        first = torch.full((B * (slots + 1),), B * N, device=dest.device)
        first = first.scatter_reduce(0, slot, torch.arange(B * N, device=dest.device), "amin")
        return first.reshape(B, slots + 1)[:, :slots].flatten()

    def _compared_before(self, token: Tensor, members: Tensor, tau: Tensor) -> tuple[Edges | None, Tensor | None]:
        """The components of frames that were compared at another threshold.

        As components at two thresholds are nested, those of equal size with the same first token are equal.

        Args:
            token: int64 [B*M], first token of each component.
            members: int64 [B,M], number of tokens of each component.
            tau: [B]; edges above it are needed.

        Returns:
            The edges between such components, and which of the components are others, bool [B,M]; None if there are
            none.
        """
        if self.compared is None or bool((self.compared[0].floor > tau).any()):
            return None, None
        edges, counts = self.compared
        same = (counts[token] == members.flatten()) & (members.flatten() > 0)
        position = torch.full_like(counts, -1)
        position[token] = torch.arange(len(token), device=token.device).masked_fill(~same, -1)
        edges = edges._replace(a=position[edges.a], b=position[edges.b])
        return edges.select((edges.a >= 0) & (edges.b >= 0)), (~same).reshape(members.shape)

    def assign(self, representatives: _Representatives) -> Tensor:
        """The representative of each token, int64 [B,N]: its own, unless another is nearer by more than rounding."""
        unit, real, own, _ = representatives
        similarity = (self.rows * take_rows(unit, own)).sum(2)
        rest = mask_indices(self._contested(self.sketch, own, similarity, representatives) & self.tokens.mask)
        best, nearest = best_match(take_rows(self.rows, rest), unit, _unless_all(real))
        stays = similarity.gather(1, rest) >= best - _ROUNDING
        return own.scatter(1, rest, torch.where(stays, own.gather(1, rest), nearest))

    def _contested(self, rows: Tensor, own: Tensor, similarity: Tensor, representatives: _Representatives) -> Tensor:
        """Which tokens may be more similar to another than to their own representative, bool [B,n].

        Args:
            rows: the sketches of the tokens, [B,n,P].
            own: int64 [B,n], their representatives.
            similarity: [B,n], of the tokens and their own representatives.
            representatives: all representatives.
        """
        bound, _ = best_match(rows, sketch(representatives.unit, self.axes), _unless_all(representatives.real), own)
        return ~(bound < similarity - SKETCH_ERROR)

    def count(self, tau: Tensor, floor: Tensor, target: Tensor) -> Tensor:
        """The number of tokens that thresholds [B] leave, or one on the same side of `target` [B], int64 [B].

        From the target on it is an upper bound, which mostly takes no assignment. Below the target it may be 0. Later
        thresholds must not be below `floor` [B]: the pairs compared now are not compared again.
        """
        found = self._both_passes(tau, floor, target)
        if found is None:
            return torch.zeros_like(target)
        least, most = self._least_count(found), found.real.sum(1)
        if bool(((least < target) & (most >= target)).any()):
            # Some representatives may have no tokens.
            least = most = (_occupied(self.assign(found), self.tokens.mask, found.real.shape[1]) > 0).sum(1)
        if bool((least >= target).all()):
            self.last = tau, found
        return most

    def _least_count(self, representatives: _Representatives) -> Tensor:
        """The number of representatives that keep the most similar token of their component, int64 [B]."""
        unit, real, own, _ = representatives
        mask = self.tokens.mask
        size = _occupied(own, mask, unit.shape[1])
        # A representative of one token is that token, and keeps it.
        several = Plan.keep(size > 1)
        if not several.num_slots:
            return real.sum(1)
        similar = (self.rows * take_rows(unit, own)).sum(2).masked_fill(~mask, -torch.inf)
        highest = torch.full(size.shape, -torch.inf, device=own.device).scatter_reduce(1, own, similar, "amax")
        token = torch.arange(mask.shape[1], device=own.device).expand_as(own)
        token = token.masked_fill(similar < highest.gather(1, own), 0)
        member = torch.zeros_like(size).scatter_reduce(1, own, token, "amax")
        index = several.representative
        assert index is not None
        member, highest = member.gather(1, index), highest.gather(1, index)
        contested = self._contested(take_rows(self.sketch, member), index, highest, representatives) & several.mask
        rest = mask_indices(contested)
        best, _ = best_match(take_rows(self.rows, member.gather(1, rest)), unit, _unless_all(real))
        loses = (highest.gather(1, rest) < best - _ROUNDING) & contested.gather(1, rest)
        return real.sum(1) - loses.sum(1)


def _occupied(index: Tensor, mask: Tensor, slots: int) -> Tensor:
    """The number of tokens [B,N] at each index, int64 [B,slots]."""
    return index.new_zeros(len(index), slots).scatter_add_(1, index, mask.long())


def _unless_all(real: Tensor) -> Tensor | None:
    """The mask, or None if it is known to be True everywhere."""
    return None if readable(real) and bool(real.all()) else real
