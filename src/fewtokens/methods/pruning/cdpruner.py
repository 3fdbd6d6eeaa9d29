"""CDPruner: tokens that are relevant to the question and differ from each other."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fewtokens.core.method import Reducer
from fewtokens.core.plan import Plan, group_count, group_sum
from fewtokens.core.tokens import Tokens
from fewtokens.methods.ops.groups import allocate, split_groups

_RELEVANCE = ("text", "negative", "none")
# Below this part of a unit volume, a further token adds nothing but rounding errors.
_NO_VOLUME = 1e-6


class CdPruner(Reducer):
    """Keeps relevant and diverse tokens of each frame: greedy maximization of a determinantal point process (DPP).

    CDPruner (arXiv 2506.10967). The kernel is L = diag(r) S diag(r) of the cosines S of a frame's tokens and their
    relevance r to the text, scaled to 0..1; greedily, the token that increases det(L) of the kept ones most is added,
    as long as there is one that does; then the most relevant ones. With relevance="none" it is the plain DPP.

    Relevance is the mean cosine of a token and the text. The published code, which compares CLIP's projected patches
    with CLIP's text vectors, takes its negative, because there the similarity is inverted: relevance="negative". The
    cue `text` of a video language model is the embedded question in the space of its visual tokens, with the positive
    sign, as in OpenVINO's version for Qwen2.5-VL: relevance="text".

    The published code scales relevance by the range of the full batch, so that samples affect each other; here it is
    that of each video. It selects a token twice when the kernel has no volume left (duplicates); here never. It is
    published for images; the budget of a video is split over its frames in proportion to their sums of relevance.

    Args:
        keep: budget, a fraction of the cells (float), a count (int) or "8/frame". Default: 0.25.
        relevance: "text" (default), "negative" or "none".
    """

    paper = "Beyond Attention or Similarity: Maximizing Conditional Diversity for Token Pruning (CDPruner), 2506.10967"
    license = "written from the description; reference code Apache-2.0"
    cost = "O(n^2 (C + k)) per frame of n cells that keeps k; an n x n kernel per frame"

    def __init__(self, keep: float | int | str = 0.25, *, relevance: str = "text") -> None:
        super().__init__()
        self.set_budget(keep)
        if relevance not in _RELEVANCE:
            raise ValueError(f"relevance must be one of {', '.join(_RELEVANCE)}, got {relevance!r}")
        self.relevance = relevance

    @property
    def needs(self) -> tuple[str, ...]:
        return () if self.relevance == "none" else ("text",)

    def plan(self, tokens: Tokens, *, text: Tensor | None = None) -> Plan:
        frame, frames = tokens.frame.masked_fill(~tokens.mask, -1), tokens.grid.T
        with torch.no_grad():
            relevance = self._relevance(tokens, text)
            weight = group_sum(relevance[..., None], frame, frames)[..., 0]
            budget = allocate(self.counts(tokens), group_count(frame, frames), weight).flatten()  # of each of R frames
            parts, slot = split_groups(tokens, frame, frames)
            part_relevance = relevance.new_zeros(tokens.B, frames * parts.N).scatter_add(1, slot, relevance)
            kept = greedy_dpp(parts.features, part_relevance.reshape(parts.mask.shape), parts.mask, budget)
        return Plan.keep(kept.reshape(tokens.B, -1).gather(1, slot) & (frame >= 0), self.max_slots(tokens))

    def _relevance(self, tokens: Tokens, text: Tensor | None) -> Tensor:
        """The relevance of each token in 0..1, float32 [B,N]; 0 in padded slots."""
        if text is None:
            return tokens.mask.float()
        if text.shape[2] != tokens.C:
            raise ValueError(f"{self.name}: the cue text has {text.shape[2]} channels, the tokens have {tokens.C}")
        query = F.normalize(text.float(), dim=2).mean(1, keepdim=True)  # [B,1,C]
        score = (F.normalize(tokens.features.float(), dim=2) * query).sum(2)
        score = -score if self.relevance == "negative" else score
        low = score.masked_fill(~tokens.mask, torch.inf).amin(1, keepdim=True)
        high = score.masked_fill(~tokens.mask, -torch.inf).amax(1, keepdim=True)
        spread = high - low
        scaled = (score - low + _NO_VOLUME) / spread.clamp(min=_NO_VOLUME)
        return torch.where(spread < _NO_VOLUME, 1.0, scaled).masked_fill(~tokens.mask, 0)


def greedy_dpp(features: Tensor, relevance: Tensor, mask: Tensor, count: Tensor) -> Tensor:
    """Greedy maximization of the determinant of the kernel of the selected rows, in exact Cholesky updates.

    Args:
        features: [R,n,C].
        relevance: float32 [R,n], at least 0.
        mask: bool [R,n], the rows to select from.
        count: int64 [R], number of rows to select, at most those that there are.

    Returns:
        The selected rows, bool [R,n]; ties go to the first.
    """
    x = F.normalize(features.float(), dim=2) * relevance[..., None]
    R, n, _ = x.shape
    kernel = x @ x.transpose(1, 2)
    # The square of the volume that each row would add. Rounding in the diagonal would decide between equal rows.
    gain = relevance.square()
    floor = _NO_VOLUME * gain.amax(1, keepdim=True)
    steps = int(count.max()) if len(count) else 0
    factor = x.new_zeros(R, steps, n)
    selected = torch.zeros_like(mask)
    row = torch.arange(R, device=x.device)
    for step in range(steps):
        # Without volume, a row ranks below all others, by relevance.
        value = torch.where(gain > floor, gain, relevance / (1 + relevance) - 1)
        best = value.masked_fill(selected | ~mask, -torch.inf).argmax(1)
        active = step < count
        selected[row, best] |= active
        known = factor[:, :step]
        update = kernel[row, best] - (known[row, :, best][:, None] @ known).squeeze(1)
        volume = gain[row, best][:, None]
        update = torch.where(volume > floor, update / volume.clamp(min=1e-30).sqrt(), 0.0)
        factor[:, step] = update
        gain = gain - update.square()
    return selected & mask
