"""HoliTom, outer part: the video is cut where most can be merged over time, then pruned and merged within frames."""

from __future__ import annotations

import torch
from torch import Tensor

from fewtokens.core.method import Reducer
from fewtokens.core.plan import Plan
from fewtokens.core.tokens import Tokens
from fewtokens.methods.ops.density import density_peaks, nearest_centre
from fewtokens.methods.ops.segments import deal, rank_within
from fewtokens.methods.ops.temporal import cosine


class HoliTom(Reducer):
    """Places that stay the same over a window of frames become one token; windows are chosen to merge the most.

    HoliTom (arXiv 2505.21334), the part before the language model. A place is static in a window if the cosine of all
    its neighbouring frames exceeds tau; a window of l frames with c static places saves (l-1)*c tokens, and the best
    cut into windows is found exactly, by dynamic programming. Static places are averaged over their window and then
    clustered around density peaks (0.6 of the centre, 0.4 of the mean of its members); of the other tokens
    those stay that receive most attention.

    Places are dealt out to frames and windows in proportion (Sainte-Lague's rule), so the count is exact; the published
    code rounds each part up or to the nearest, and so overshoots by up to one token for each of them.

    Args:
        keep: share of the cells (float) or count (int).
        tau: of static places; 0.8 in the paper (0.65 at a budget of 0.1).
        centre: weight of a cluster's centre; 1 leaves it as it is.
        neighbors: of the density.
    """

    paper = "HoliTom: Holistic Token Merging for Fast Video Large Language Models, arXiv 2505.21334"
    license = "written from the description; reference Apache-2.0"
    cost = "O(T^2 + TnC + T n^2 C) with n cells of a frame; a table of T*T counts"
    full_grid = True

    def __init__(
        self, keep: float | int | str = 0.25, *, tau: float = 0.8, centre: float = 0.6, neighbors: int = 7
    ) -> None:
        super().__init__()
        self.take_budget(keep)
        if not -1 <= tau <= 1 or not 0 <= centre <= 1 or neighbors < 1:
            raise ValueError(f"tau must be in [-1, 1], centre in [0, 1], neighbors at least 1; got {tau}, {centre}")
        self.tau, self.centre, self.neighbors = float(tau), float(centre), neighbors

    @property
    def needs(self) -> tuple[str, ...]:
        return ("attention",)

    def plan(self, tokens: Tokens, *, attention: Tensor) -> Plan:
        B, T, n = tokens.B, tokens.grid.T, tokens.grid.cells_per_frame
        x = tokens.require_full_grid(self.name).features.float().unflatten(1, (T, n))
        there = tokens.mask.unflatten(1, (T, n))[..., 0]  # [B,T]
        similar = cosine(x[:, 1:], x[:, :-1])
        runs = _runs(similar > self.tau, there)
        first, last = best_windows(runs, there)
        steps = (last - first)[..., None]  # [B,T,1]
        static = (runs.gather(1, last[..., None].expand(-1, -1, n)) >= steps) & (steps > 0)
        begins = (first == torch.arange(T, device=x.device))[..., None]
        counts = self.counts(tokens)
        static &= begins | ~_least_similar(similar, static & ~begins, counts - tokens.count)
        # Static places live in the first frame of their window, as the mean over it.
        at_first = static & begins
        window = first[..., None].expand(-1, -1, n)
        length = torch.zeros(B, T, n, device=x.device).scatter_add_(1, window, static.float()).gather(1, window)
        mean = torch.zeros_like(x).scatter_add_(
            1, window[..., None].expand_as(x), x.masked_fill(~static[..., None], 0) / length.clamp(min=1)[..., None]
        )
        peaks = density_peaks(mean.flatten(0, 1), at_first.flatten(0, 1), self.neighbors).unflatten(0, (B, T))

        dynamic = ~static & there[..., None]
        # Groups: frame t's dynamic tokens are t, its window's static ones T + t.
        t = torch.arange(T, device=x.device)[:, None].expand(B, -1, n)
        group = torch.where(dynamic, t, torch.where(at_first, T + t, -1)).flatten(1)
        score = torch.where(dynamic, attention.float().unflatten(1, (T, n)), peaks).flatten(1)
        size = torch.cat([dynamic.sum(2), at_first.sum(2)], 1).float()
        order = deal(rank_within(-score, group, 2 * T), size.gather(1, group.clamp(min=0)))
        candidates = group >= 0
        order = order.masked_fill(~candidates, torch.inf)
        chosen = (order.argsort(dim=1, stable=True).argsort(dim=1) < counts[:, None]).unflatten(1, (T, n))

        # Static tokens that are no centre go to the nearest one of their window.
        centres = chosen & at_first
        nearest = nearest_centre(mean.flatten(0, 1), mean.flatten(0, 1), centres.flatten(0, 1)).unflatten(0, (B, T))
        own = torch.arange(n, device=x.device).expand(B, T, -1)
        place = torch.where(centres, own, nearest)  # within the first frame of the window
        place = place.gather(1, window)  # of every frame's static places
        slot = (chosen.flatten(1).cumsum(1) - 1).masked_fill(~chosen.flatten(1), -1)
        of_static = slot.gather(1, (window * n + place).flatten(1))
        # A window without a centre has nothing to keep its places in.
        has_centre = centres.any(2).gather(1, first)[..., None].expand(-1, -1, n).flatten(1)
        dest = torch.where(static.flatten(1), of_static.masked_fill(~has_centre, -1), slot)
        dest = dest.masked_fill(~tokens.mask, -1)

        is_centre = centres.gather(1, window).flatten(1) & static.flatten(1)
        members = torch.zeros(B, int(counts.max()) + 1, device=x.device)
        outside = static.flatten(1) & ~is_centre & (dest >= 0)
        members.scatter_add_(1, dest.masked_fill(~outside, int(counts.max())), outside.float())
        around = members.gather(1, dest.clamp(min=0))  # tokens of other places in the same cluster, all frames
        frames = length.flatten(1).clamp(min=1)
        alone = around == 0
        part = torch.where(
            is_centre, torch.where(alone, 1.0, self.centre) / frames, (1 - self.centre) / around.clamp(min=1)
        )
        part = torch.where(static.flatten(1), part, 1.0)
        return Plan(counts, int(counts.max()), dest, shares=part).ordered(tokens)


def _least_similar(similar: Tensor, later: Tensor, spare: Tensor) -> Tensor:
    """Cells that stay tokens of their own because the budget is larger than what merging leaves, bool [B,T,n].

    Of the cells `later` [B,T,n], which would go into the first frame of their window, those least like the frame
    before; as many as the budget has room for.

    Args:
        spare: [B], the budget minus all cells of the video; with the cells that go, what is left of it.
    """
    value = (
        torch.cat([torch.zeros_like(later[:, :1], dtype=similar.dtype), similar], 1)
        .masked_fill(~later, torch.inf)
        .flatten(1)
    )
    room = spare + later.flatten(1).sum(1)
    rank = value.argsort(dim=1, stable=True).argsort(dim=1)
    return (rank < room[:, None]).unflatten(1, later.shape[1:]) & later


def _runs(same: Tensor, there: Tensor) -> Tensor:
    """For how many steps back each place has stayed the same without a break, int64 [B,T,n].

    Args:
        same: bool [B,T-1,n], a place is like the frame before. there: bool [B,T], real frames.
    """
    same = torch.cat([torch.zeros_like(there[:, :1, None]).expand(-1, -1, same.shape[2]), same], 1) & there[..., None]
    t = torch.arange(same.shape[1], device=same.device)[:, None].expand(same.shape)
    return t - t.masked_fill(same, 0).cummax(1).values


def best_windows(runs: Tensor, there: Tensor) -> tuple[Tensor, Tensor]:
    """The cut into windows that saves the most tokens; the first and last frame of each frame's window, int64 [B,T].

    Exact, by dynamic programming over the frames. Of equal cuts the one with the shortest last window, as published.

    Args:
        runs: [B,T,n], see `_runs`.
        there: bool [B,T], real frames, first.
    """
    B, T, _ = runs.shape
    # static[b,e,l]: places that have stayed for at least l steps at frame e; a histogram added up from its end.
    histogram = torch.zeros(B, T, T + 1, device=runs.device).scatter_add_(
        2, runs, torch.ones_like(runs, dtype=torch.float32)
    )
    static = histogram.flip(2).cumsum(2).flip(2)[..., :T]
    steps = torch.arange(T, device=runs.device)
    gain = steps * static  # of a window of l steps that ends at e
    best = torch.zeros(B, T + 1, device=runs.device)  # best[e + 1]: up to frame e
    choice = torch.zeros(B, T, dtype=torch.int64, device=runs.device)
    for e in range(T):
        # A window of l steps begins at e - l.
        total = best[:, : e + 1].flip(1) + gain[:, e, : e + 1]
        value, _ = total.max(1)
        # The shortest of equals.
        choice[:, e] = torch.where(total == value[:, None], steps[: e + 1], T).amin(1)
        best[:, e + 1] = value
    first, last = torch.empty_like(choice), torch.empty_like(choice)
    count = there.sum(1)
    begin = torch.full((B,), T, device=runs.device)
    end = begin.clone()
    for e in range(T - 1, -1, -1):
        # Frames past a video's length are windows of their own.
        inside = e < count
        fresh = (e < begin) | ~inside
        end = torch.where(fresh, e, end)
        begin = torch.where(fresh, torch.where(inside, e - choice[:, e], e), begin)
        first[:, e], last[:, e] = begin, end
    return first, last
