"""SparseVLM: a few question tokens score the video tokens, and the dropped ones are recycled."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fewtokens.core.budget import Budget
from fewtokens.core.layer_method import (
    LayerDecision,
    LayerMethod,
    LayerState,
    PrunePoint,
    check_layer,
    counts,
    highest,
    top,
)
from fewtokens.core.plan import Plan, mask_indices, take_rows
from fewtokens.methods.ops.density import cluster_around_peaks


class SparseVlm(LayerMethod):
    """After each of several layers, keeps the video tokens that relevant question tokens attend to, and recycles some.

    SparseVLM (arXiv 2410.04417). Raters are the question tokens (those after the last video) whose embeddings match the
    video's more than the average question token does: the softmax over the question of the products with each video
    token, averaged over these. The score of a video token is its attention from the raters, mean over heads. Of the n
    dropped tokens, the floor(recycle * n) + 1 with the highest scores are clustered around density peaks, a tenth as
    many clusters (rounded down) plus one, and each peak continues with the mean of its cluster.

    Differences from the published code: it breaks ties of densities by noise, so that its result differs from run to
    run; here the first token wins. It puts recycled tokens after the kept ones; here they stay in the columns of their
    peaks. The paper derives the numbers of kept tokens from the rank of the attention; the code, as here, lists them.

    Args:
        keep: fraction (float in (0, 1]) or number (int) of tokens kept after each layer, without the recycled ones.
            Default: (300, 200, 110), for 576 tokens.
        layers: the layers whose attention scores the tokens, ascending, each the last one with all of its tokens.
            Default: (2, 6, 15), as published.
        recycle: fraction of the dropped tokens that are clustered, in [0, 1); 0 recycles none. Default: 0.3.
    """

    paper = "SparseVLM: Visual Token Sparsification for Efficient Vision-Language Model Inference, arXiv 2410.04417"
    license = "written from a description; reference code Apache-2.0"
    cost = "one row of attention per rater, and O(m^2 C) for m recycled tokens, at each of the layers"
    scoring_queries = "text"

    def __init__(
        self,
        keep: Sequence[float | int] = (300, 200, 110),
        *,
        layers: Sequence[int] = (2, 6, 15),
        recycle: float = 0.3,
    ) -> None:
        if isinstance(keep, (int, float)) or not keep or len(keep) != len(layers):
            raise ValueError(
                f"sparsevlm: keep must have one budget for each of the {len(layers)} layers, such as "
                f"keep=(0.5, 0.25), layers=(2, 6), got {keep!r}"
            )
        self.keep = tuple(Budget.parse(part, units=("fraction", "count")).value for part in keep)
        self.layers = tuple(layers)
        for layer in self.layers:
            check_layer(layer + 1, "sparsevlm")
        if list(self.layers) != sorted(set(self.layers)):
            raise ValueError(f"sparsevlm: layers must be in ascending order, got {self.layers}")
        if not 0 <= recycle < 1:
            raise ValueError(f"sparsevlm: recycle must be in [0, 1) (a fraction of the dropped tokens), got {recycle}")
        self.recycle = float(recycle)

    def prune_points(self, depth: int) -> list[PrunePoint]:
        return [PrunePoint(layer + 1, layer) for layer in self.layers]

    def named_layers(self, depth: int) -> list[tuple[int, int]]:
        return [(layer, layer + 1) for layer in self.layers]

    def raters(self, embeddings: Tensor, video: Tensor, question: Tensor) -> Tensor:
        columns = mask_indices(question)
        real = question.gather(1, columns)
        x = embeddings.detach().float()
        logits = x @ take_rows(x, columns).transpose(1, 2)  # [B,L,Q]
        match = logits.masked_fill(~real[:, None], -torch.inf).softmax(2).nan_to_num()
        match = (match * video[..., None]).sum(1) / video.sum(1, keepdim=True).clamp(min=1)  # [B,Q]
        mean = match.sum(1, keepdim=True) / real.sum(1, keepdim=True).clamp(min=1)
        chosen = (match > mean) & real
        # If all match equally, such as a single token, all are raters.
        chosen = torch.where(chosen.any(1, keepdim=True), chosen, real)
        return torch.zeros_like(question).scatter(1, columns, chosen) & question

    def choose(self, state: LayerState, index: int) -> LayerDecision:
        assert state.scores is not None
        kept = top(state, counts(state, self.keep[index]))
        rest = state.video & ~kept
        number = rest.sum(1)
        if not self.recycle or not bool(number.any()):
            return LayerDecision(kept)
        # The tolerance is for products such as 0.3 * 10, which is just below 3.
        recycled = torch.where(number > 0, (number.double() * self.recycle + 1e-9).long() + 1, 0).minimum(number)
        clusters = torch.where(number > 0, recycled // 10 + 1, 0)
        candidates = highest(state.scores, rest, recycled)
        hidden = state.hidden
        # Density depends on the number of clusters, so prompts with equal numbers are processed together.
        for count in clusters.unique().tolist():
            row = (clusters == count).nonzero()[:, 0]
            if count:
                column, mean, real = _cluster(hidden[row], candidates[row], count)
                prompt = row[:, None].expand_as(column)[real]
                kept = kept.index_put((prompt, column[real]), torch.ones_like(prompt, dtype=torch.bool))
                hidden = hidden.index_put((prompt, column[real]), mean[real].to(hidden.dtype))
        return LayerDecision(kept, hidden)


def _cluster(hidden: Tensor, candidates: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Clusters the candidates bool [B,M] of hidden states [B,M,D] around `count` density peaks.

    Returns:
        The columns of the peaks, int64 [B,count], the means of their clusters [B,count,D], and which of them exist.
    """
    column = mask_indices(candidates)
    real = candidates.gather(1, column)
    x = take_rows(hidden, column).masked_fill(~real[..., None], 0)
    label, peaks = cluster_around_peaks(x, real, real.new_full((len(x),), count, dtype=torch.int64), count)
    assert peaks.representative is not None
    means = Plan(peaks.count, peaks.num_slots, label.masked_fill(~real, -1)).move(x)
    return column.gather(1, peaks.representative), means, peaks.mask
