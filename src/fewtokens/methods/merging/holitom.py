"""HoliTom, outer part: cuts the video into windows that merge the most over time, then prunes and merges by frame."""

from __future__ import annotations

import torch
from torch import Tensor

from fewtokens.core.method import Reducer
from fewtokens.core.plan import Plan
from fewtokens.core.tokens import Tokens
from fewtokens.methods.ops.density import density_peaks, nearest_center
from fewtokens.methods.ops.groups import average, packs
from fewtokens.methods.ops.segments import proportional_order, rank_within
from fewtokens.methods.ops.temporal import cosine


class HoliTom(Reducer):
    """Merges positions that stay the same over a window of frames, then prunes.

    HoliTom (arXiv 2505.21334), the part before the language model. A position is static in a window if the cosine of
    each pair of consecutive frames exceeds tau; a window of l frames with c static positions saves (l-1)*c tokens, and
    the cut into windows that saves the most is found exactly, by dynamic programming. Static positions are averaged
    over their window and then clustered around density peaks (by default 0.6 of the center and 0.4 of the mean of its
    members); of the other tokens, those that receive the most attention are kept.

    The budget is split over frames and windows in proportion to their tokens (Sainte-Lague's method), so the count is
    exact; the published code rounds each part up or to the nearest, and overshoots by up to one token for each.

    Args:
        keep: budget, a fraction of the cells (float), a count (int) or "8/frame". Default: 0.25.
        tau: cosine above which a position is static, in [-1, 1]. Default: 0.8, as in the paper (0.65 at a budget of
            0.1).
        center: weight of a cluster's center, in [0, 1]; 1 returns the center unchanged. Default: 0.6.
        neighbors: number of nearest tokens that define the density. Default: 7.
        attention: which attention of the tower of a language model, such as "received" or "class@-2", see
            `AttentionRule`. Default: that of the class token, or the attention received if there is none, as published.
    """

    paper = "HoliTom: Holistic Token Merging for Fast Video Large Language Models, arXiv 2505.21334"
    license = "written from the description; reference code Apache-2.0"
    cost = "O(T^2 + TnC + T n^2 C) with n cells per frame; a T x T table of counts"
    full_grid = True

    def __init__(
        self,
        keep: float | int | str = 0.25,
        *,
        tau: float = 0.8,
        center: float = 0.6,
        neighbors: int = 7,
        attention: str | None = None,
    ) -> None:
        super().__init__()
        self.set_budget(keep)
        self.attention, self.attention_rule = attention, self.published_attention.override(attention)
        if not -1 <= tau <= 1 or not 0 <= center <= 1 or neighbors < 1:
            raise ValueError(
                f"tau must be in [-1, 1], center in [0, 1] and neighbors at least 1, got {tau}, {center}, {neighbors}"
            )
        self.tau, self.center, self.neighbors = float(tau), float(center), neighbors

    @property
    def needs(self) -> tuple[str, ...]:
        return ("attention",)

    def plan(self, tokens: Tokens, *, attention: Tensor) -> Plan:
        B, T, n = tokens.B, tokens.grid.T, tokens.grid.cells_per_frame
        x = tokens.features.float().unflatten(1, (T, n))
        real_frames = tokens.mask.unflatten(1, (T, n))[..., 0]  # [B,T]
        similar = cosine(x[:, 1:], x[:, :-1])
        runs = _runs(similar > self.tau, real_frames)
        first, last = best_windows(runs, real_frames)
        steps = (last - first)[..., None]  # [B,T,1]
        static = (runs.gather(1, last[..., None].expand(-1, -1, n)) >= steps) & (steps > 0)
        begins = (first == torch.arange(T, device=x.device))[..., None]
        counts = self.counts(tokens)
        static &= begins | ~_least_similar(similar, static & ~begins, counts - tokens.count)
        # A static position is represented in the first frame of its window, by its mean over the window.
        at_first = static & begins
        window = first[..., None].expand(-1, -1, n)
        length = torch.zeros(B, T, n, device=x.device).scatter_add_(1, window, static.float()).gather(1, window)
        position = torch.arange(n, device=x.device)
        first_cell = (window * n + position).flatten(1)
        means, mean_at = average(tokens.features, first_cell.masked_fill(~static.flatten(1), -1))
        t = torch.arange(T, device=x.device)[:, None].expand(B, -1, n)
        windows = list(packs(t.masked_fill(~at_first, -1).flatten(1), T))
        peaks = means.new_zeros(B * T * n)
        for pack in windows:
            pack.write(peaks, density_peaks(pack.rows(means, mean_at), pack.real, self.neighbors))

        dynamic = ~static & real_frames[..., None]
        # Groups: t for the dynamic tokens of frame t, T + t for the static tokens of the window that starts at t.
        group = torch.where(dynamic, t, torch.where(at_first, T + t, -1)).flatten(1)
        score = torch.where(dynamic.flatten(1), attention.float(), peaks.unflatten(0, (B, T * n)))
        size = torch.cat([dynamic.sum(2), at_first.sum(2)], 1).float()
        order = proportional_order(rank_within(-score, group, 2 * T), size.gather(1, group.clamp(min=0)))
        candidates = group >= 0
        order = order.masked_fill(~candidates, torch.inf)
        selected = (order.argsort(dim=1, stable=True).argsort(dim=1) < counts[:, None]).unflatten(1, (T, n))

        # Static tokens that are not centers join the nearest center of their window.
        centers = selected & at_first
        center_cell = torch.arange(T * n, device=x.device).repeat(B)
        for pack in windows:
            rows, is_center = pack.rows(means, mean_at), centers.flatten()[pack.index] & pack.real
            kept = Plan.keep(is_center, max(1, int(is_center.sum(1).max())))
            assert kept.representative is not None
            nearest = nearest_center(rows, kept.copy(rows), kept.mask)
            nearest = pack.index.gather(1, kept.representative.gather(1, nearest)) % (T * n)
            pack.write(center_cell, torch.where(is_center, pack.index % (T * n), nearest))
        slot = (selected.flatten(1).cumsum(1) - 1).masked_fill(~selected.flatten(1), -1)
        static_slot = slot.gather(1, center_cell.unflatten(0, (B, T * n)).gather(1, first_cell))
        # The static positions of a window without a center are dropped.
        has_center = centers.any(2).gather(1, first)[..., None].expand(-1, -1, n).flatten(1)
        dest = torch.where(static.flatten(1), static_slot.masked_fill(~has_center, -1), slot)
        dest = dest.masked_fill(~tokens.mask, -1)

        is_center = centers.gather(1, window).flatten(1) & static.flatten(1)
        members = torch.zeros(B, int(counts.max()) + 1, device=x.device)
        outside = static.flatten(1) & ~is_center & (dest >= 0)
        members.scatter_add_(1, dest.masked_fill(~outside, int(counts.max())), outside.float())
        num_members = members.gather(1, dest.clamp(min=0))  # of other positions in the same cluster, over all frames
        frames = length.flatten(1).clamp(min=1)
        alone = num_members == 0
        part = torch.where(
            is_center, torch.where(alone, 1.0, self.center) / frames, (1 - self.center) / num_members.clamp(min=1)
        )
        part = torch.where(static.flatten(1), part, 1.0)
        return Plan(counts, int(counts.max()), dest, shares=part).sort_by_position(tokens)


def _least_similar(similar: Tensor, later: Tensor, spare: Tensor) -> Tensor:
    """Cells that remain separate tokens because the budget exceeds what merging leaves, bool [B,T,n].

    Of the cells `later` [B,T,n], which would merge into the first frame of their window, selects those least similar to
    the previous frame, as many as the budget allows.

    Args:
        spare: [B], the budget minus all cells of the video; adding the merged cells gives the remaining budget.
    """
    value = (
        torch.cat([torch.zeros_like(later[:, :1], dtype=similar.dtype), similar], 1)
        .masked_fill(~later, torch.inf)
        .flatten(1)
    )
    remaining = spare + later.flatten(1).sum(1)
    rank = value.argsort(dim=1, stable=True).argsort(dim=1)
    return (rank < remaining[:, None]).unflatten(1, later.shape[1:]) & later


def _runs(same: Tensor, real_frames: Tensor) -> Tensor:
    """The number of consecutive steps back over which each position has stayed the same, int64 [B,T,n].

    Args:
        same: bool [B,T-1,n], whether a position is similar to the previous frame.
        real_frames: bool [B,T].
    """
    same = (
        torch.cat([torch.zeros_like(real_frames[:, :1, None]).expand(-1, -1, same.shape[2]), same], 1)
        & real_frames[..., None]
    )
    t = torch.arange(same.shape[1], device=same.device)[:, None].expand(same.shape)
    return t - t.masked_fill(same, 0).cummax(1).values


def best_windows(runs: Tensor, real_frames: Tensor) -> tuple[Tensor, Tensor]:
    """The cut into windows that saves the most tokens: first and last frame of each frame's window, int64 [B,T].

    Exact, by dynamic programming over the frames. Ties go to the shortest last window, as in the published code.

    Args:
        runs: [B,T,n], see `_runs`.
        real_frames: bool [B,T], real frames first.
    """
    B, T, _ = runs.shape
    # static[b,e,l]: positions the same for at least l steps at frame e; a histogram summed from its end.
    histogram = torch.zeros(B, T, T + 1, device=runs.device).scatter_add_(
        2, runs, torch.ones_like(runs, dtype=torch.float32)
    )
    static = histogram.flip(2).cumsum(2).flip(2)[..., :T]
    steps = torch.arange(T, device=runs.device)
    gain = steps * static  # tokens saved by a window of l steps that ends at e
    best = torch.zeros(B, T + 1, device=runs.device)  # best[e + 1]: up to frame e
    best_steps = torch.zeros(B, T, dtype=torch.int64, device=runs.device)
    for e in range(T):
        # A window of l steps starts at e - l.
        total = best[:, : e + 1].flip(1) + gain[:, e, : e + 1]
        value, _ = total.max(1)
        # Ties go to the shortest.
        best_steps[:, e] = torch.where(total == value[:, None], steps[: e + 1], T).amin(1)
        best[:, e + 1] = value
    first, last = torch.empty_like(best_steps), torch.empty_like(best_steps)
    count = real_frames.sum(1)
    begin = torch.full((B,), T, device=runs.device)
    end = begin.clone()
    for e in range(T - 1, -1, -1):
        # Each frame past a video's length is a separate window.
        inside = e < count
        new_window = (e < begin) | ~inside
        end = torch.where(new_window, e, end)
        begin = torch.where(new_window, torch.where(inside, e - best_steps[:, e], e), begin)
        first[:, e], last[:, e] = begin, end
    return first, last
