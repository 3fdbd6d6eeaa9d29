"""VisionZip: the most attended tokens, and a few contextual tokens that stand for the rest."""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from fewtokens.core.method import Reducer
from fewtokens.core.plan import Plan
from fewtokens.core.tokens import Tokens
from fewtokens.methods.ops.segments import split_over_frames


class VisionZip(Reducer):
    """Keeps the most attended tokens; the rest merge into contextual tokens.

    VisionZip (arXiv 2412.04467). Dominant tokens are those with the most attention. Of the others every n-th is a
    contextual token, which the rest join by cosine of the attention keys. In the tower of a language model, attention
    and keys are those of the published code: the class token's row in the block whose output the model reads. The
    encoders of fewtokens return the mean over heads and queries of their last block.

    The published code adds the mean of its members to a contextual token, so that its norm grows; with normalize=True
    (the default) the token is their common mean instead, weighted by sizes. The budget of the video is split evenly
    over its frames; a frame with a budget of one token keeps one dominant token, and the rest of it is dropped.

    Args:
        keep: budget, a fraction of the cells (float), a count (int) or "8/frame". Default: 0.25.
        contextual: fraction of the budget for contextual tokens, in [0, 1). Default: 10/64, as in the paper.
        normalize: True (default) for the mean, False for the published sum.
        attention: which attention of the tower of a language model, such as "received" or "class@-2", see
            `AttentionRule`. Default: that of the class token, or the attention received if there is none, as published.
    """

    paper = "VisionZip: Longer is Better but Not Necessary in Vision Language Models, arXiv 2412.04467"
    license = "written from the description; reference code Apache-2.0"
    cost = "O(n^2 D) per frame of n cells"
    full_grid = True

    def __init__(
        self,
        keep: float | int | str = 0.25,
        *,
        contextual: float = 10 / 64,
        normalize: bool = True,
        attention: str | None = None,
    ) -> None:
        super().__init__()
        self.set_budget(keep)
        self.attention, self.attention_rule = attention, self.published_attention.override(attention)
        if not 0 <= contextual < 1:
            raise ValueError(f"contextual must be in [0, 1) (a fraction of the budget), got {contextual}")
        self.contextual, self.normalize = float(contextual), bool(normalize)

    @property
    def needs(self) -> tuple[str, ...]:
        return ("attention", "keys")

    def plan(self, tokens: Tokens, *, attention: Tensor, keys: Tensor) -> Plan:
        T, n = tokens.grid.T, tokens.grid.cells_per_frame
        ends = split_over_frames(tokens, self.counts(tokens))
        budget = ends.diff(dim=1)[..., None]  # [B,T,1]
        num_contextual = torch.minimum((budget * self.contextual).long(), budget - 1).clamp(min=0)
        num_dominant = budget - num_contextual
        rank = attention.float().unflatten(1, (T, n)).argsort(dim=2, descending=True, stable=True).argsort(dim=2)
        is_dominant = rank < num_dominant  # [B,T,n]
        # Of the other tokens, in order, every stride-th is a target, one for each contextual token.
        order = (~is_dominant).cumsum(2) - 1
        stride = ((n - num_dominant) // num_contextual.clamp(min=1)).clamp(min=1)
        target = ~is_dominant & (order % stride == 0) & (order // stride < num_contextual)
        keys = F.normalize(keys.float(), dim=2).unflatten(1, (T, n))
        similar = (keys @ keys.transpose(2, 3)).masked_fill(~target[:, :, None], -torch.inf)  # [B,T,n,n]
        # A target is assigned to itself; without a target in the frame, the rest is dropped.
        nearest = similar.argmax(3)
        own = torch.arange(n, device=tokens.device).expand_as(nearest)
        survives = is_dominant | target
        nearest = torch.where(survives, own, nearest)
        slot = survives.cumsum(2) - 1 + ends[:, :-1, None]
        dest = slot.gather(2, nearest).masked_fill(~survives & (num_contextual == 0), -1)
        dest, survives = dest.flatten(1).masked_fill(~tokens.mask, -1), survives.flatten(1)
        plan = Plan(self.counts(tokens), self.max_slots(tokens), dest)
        if self.normalize:
            return plan
        # As published: the target plus the mean of its members.
        members = replace(plan, dest=dest.masked_fill(survives, -1)).parts(torch.ones_like(tokens.sizes))[0]
        return replace(plan, shares=torch.where(survives, 1.0, members))
