"""VisionZip: the tokens that draw attention, and a few that stand for the rest."""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from fewtokens.core.method import Reducer
from fewtokens.core.plan import Plan
from fewtokens.core.tokens import Tokens


class VisionZip(Reducer):
    """Of each frame the tokens that receive most attention stay; the rest merges into evenly spread ones of its own.

    VisionZip (arXiv 2412.04467). The dominant tokens are those with the most attention in the encoder's last block.
    Of the others every n-th is a contextual token, to which the rest goes by cosine of the attention keys. The
    published code takes keys and attention of the last block but one, and of the attention what the class token pays;
    here it is the cue "attention", the mean over heads and queries.

    The published code adds to a contextual token the mean of its members, so that its norm grows;
    with normalize=True (the default) it is their common mean instead, weighted by sizes.

    The budget of the video is dealt out evenly over its frames; a frame whose part is one token has a dominant one
    alone, and what is left of it is dropped.

    Args:
        keep: share of the cells (float) or count (int).
        contextual: share of the budget that goes to contextual tokens; 10 of 64 in the paper.
        normalize: mean, or the published sum.
    """

    paper = "VisionZip: Longer is Better but Not Necessary in Vision Language Models, arXiv 2412.04467"
    license = "written from the description; reference Apache-2.0"
    cost = "O(n^2 D) a frame"
    full_grid = True

    def __init__(self, keep: float | int | str = 0.25, *, contextual: float = 10 / 64, normalize: bool = True) -> None:
        super().__init__()
        self.take_budget(keep)
        if not 0 <= contextual < 1:
            raise ValueError(f"contextual is a share of the budget in [0, 1), got {contextual}")
        self.contextual, self.normalize = float(contextual), bool(normalize)

    @property
    def needs(self) -> tuple[str, ...]:
        return ("attention", "keys")

    def plan(self, tokens: Tokens, *, attention: Tensor, keys: Tensor) -> Plan:
        B, T, n = tokens.B, tokens.grid.T, tokens.grid.cells_per_frame
        tokens.require_full_grid(self.name)
        lengths = torch.tensor([grid.T for grid in tokens.grid.videos(B)], device=tokens.device)[:, None]
        total = self.counts(tokens)[:, None]
        t = torch.arange(T + 1, device=tokens.device).minimum(lengths)
        ends = t * total // lengths  # [B,T+1]
        budget = ends.diff(dim=1)[..., None]  # [B,T,1]
        few = torch.minimum((budget * self.contextual).long(), budget - 1).clamp(min=0)
        dominant = budget - few
        rank = attention.float().unflatten(1, (T, n)).argsort(dim=2, descending=True, stable=True).argsort(dim=2)
        chosen = rank < dominant  # [B,T,n]
        # The others in their order; every stride-th of them is a target, as many as there are contextual tokens.
        order = (~chosen).cumsum(2) - 1
        stride = ((n - dominant) // few.clamp(min=1)).clamp(min=1)
        target = ~chosen & (order % stride == 0) & (order // stride < few)
        keys = F.normalize(keys.float(), dim=2).unflatten(1, (T, n))
        similar = (keys @ keys.transpose(2, 3)).masked_fill(~target[:, :, None], -torch.inf)  # [B,T,n,n]
        # A target is its own; with no target in the frame the rest is dropped.
        nearest = similar.argmax(3)
        own = torch.arange(n, device=tokens.device).expand_as(nearest)
        stays = chosen | target
        nearest = torch.where(stays, own, nearest)
        slot = stays.cumsum(2) - 1 + ends[:, :-1, None]
        dest = slot.gather(2, nearest).masked_fill(~stays & (few == 0), -1)
        dest, stays = dest.flatten(1).masked_fill(~tokens.mask, -1), stays.flatten(1)
        plan = Plan(self.counts(tokens), self.max_slots(tokens), dest)
        if self.normalize:
            return plan
        # The published sum: the target itself plus the mean of its members.
        members = replace(plan, dest=dest.masked_fill(stays, -1)).parts(torch.ones_like(tokens.sizes))[0]
        return replace(plan, shares=torch.where(stays, 1.0, members))
