"""VisPruner: the most attended tokens of each frame, and a diverse selection of the others."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fewtokens.core.method import Reducer
from fewtokens.core.plan import Plan
from fewtokens.core.tokens import Tokens
from fewtokens.methods.ops.segments import split_over_frames


class VisPruner(Reducer):
    """Keeps the most attended tokens, and of the others those that have no duplicate.

    VisPruner (arXiv 2412.01818). A fraction `important` of the budget goes to the tokens with the most attention. The
    others, ordered by attention, are split alternately into two groups. Of the first group, the tokens most similar to
    some token of the second are dropped, at most `drop` of them; what remains, the most similar first and then the
    second group, is split again, until the budget is reached.

    The budget of the video is split evenly over its frames, each of which is reduced separately; the published code
    accepts single images. It cannot split an odd number of tokens, of which the first group gets one more here.

    Args:
        keep: budget, a fraction of the cells (float), a count (int) or "8/frame". Default: 0.25.
        important: fraction of the budget for the most attended tokens, in [0, 1]. Default: 0.5, as in the paper.
        drop: maximum number of tokens dropped at a time. Default: 8, as published.
        attention: which attention of the tower of a language model, such as "received" or "class@-2", see
            `AttentionRule`. Default: that of the class token, as published, or the attention received if there is none.
    """

    paper = (
        "VisPruner: Beyond Text-Visual Attention: Exploiting Visual Cues for Effective Token Pruning, arXiv 2412.01818"
    )
    license = "written from the description; reference code Apache-2.0"
    cost = "O(n^2 C + n^3 / drop) per frame of n cells"
    full_grid = True

    def __init__(
        self,
        keep: float | int | str = 0.25,
        *,
        important: float = 0.5,
        drop: int = 8,
        attention: str | None = None,
    ) -> None:
        super().__init__()
        self.set_budget(keep)
        self.attention, self.attention_rule = attention, self.published_attention.override(attention)
        if not 0 <= important <= 1 or drop < 1:
            raise ValueError(f"important must be in [0, 1] and drop at least 1, got {important} and {drop}")
        self.important, self.drop = float(important), drop

    @property
    def needs(self) -> tuple[str, ...]:
        return ("attention",)

    def plan(self, tokens: Tokens, *, attention: Tensor) -> Plan:
        T, n = tokens.grid.T, tokens.grid.cells_per_frame
        budget = split_over_frames(tokens, self.counts(tokens)).diff(dim=1).flatten()  # [B*T]
        order = attention.float().reshape(-1, n).argsort(dim=1, descending=True, stable=True)
        num_important = (budget * self.important).long()
        place = torch.arange(n, device=tokens.device)
        kept = torch.zeros_like(order, dtype=torch.bool).scatter(1, order, place < num_important[:, None])
        # The others in order, first; the rest of each row is not used.
        others = order.gather(1, (place + num_important[:, None]) % n)
        x = F.normalize(tokens.features.detach().float(), dim=2).reshape(-1, n, tokens.C)
        num_diverse = budget - num_important
        remaining = (n - num_important).masked_fill(num_diverse == 0, 0)
        kept |= _distinct(x @ x.transpose(1, 2), others, remaining, num_diverse, self.drop)
        return Plan.keep(kept.reshape(-1, T * n) & tokens.mask, self.max_slots(tokens))


def _distinct(similar: Tensor, order: Tensor, remaining: Tensor, budget: Tensor, drop: int) -> Tensor:
    """The tokens that remain after duplicates are dropped, a few at a time; bool [F,n].

    Args:
        similar: [F,n,n], similarity of tokens.
        order: int64 [F,n], the tokens to select from, of which the first `remaining` count.
        remaining: int64 [F].
        budget: int64 [F], the number of tokens to select.
        drop: maximum number of tokens dropped at a time.
    """
    n = order.shape[1]
    # The number of tokens of every frame is known after each round, without reading the result of the round before.
    sizes, targets = remaining.tolist(), budget.tolist()
    while sizes != targets:
        excess = [min(drop, size - target, -(-size // 2)) for size, target in zip(sizes, targets, strict=True)]
        width = max(sizes)
        dropped = torch.tensor(excess, device=order.device)
        first, second = order[:, :width:2], order[:, 1:width:2]
        place = torch.arange(n, device=order.device)
        in_first = 2 * place[: first.shape[1]] < remaining[:, None]
        in_second = 2 * place[: second.shape[1]] + 1 < remaining[:, None]
        pairs = similar.gather(1, first[..., None].expand(-1, -1, n)).gather(
            2, second[:, None].expand(-1, first.shape[1], -1)
        )
        score = pairs.masked_fill(~in_second[:, None], -torch.inf).amax(2) if second.shape[1] else similar[:, :1, 0]
        rank = score.masked_fill(~in_first, -torch.inf).argsort(dim=1, descending=True, stable=True).argsort(dim=1)
        # Sorted: the first group from the most similar on, then the second group, then what is dropped or not used.
        stays = in_first & (rank >= dropped[:, None])
        key = torch.cat(
            [rank.masked_fill(~stays, 3 * n), (n + place[: second.shape[1]]).masked_fill(~in_second, 3 * n)], 1
        )
        order = torch.cat([first, second], 1).gather(1, key.argsort(dim=1, stable=True))
        remaining = remaining - dropped
        sizes = [size - count for size, count in zip(sizes, excess, strict=True)]
    selected = torch.arange(order.shape[1], device=order.device) < budget[:, None]
    return torch.zeros(similar.shape[:2], dtype=torch.bool, device=order.device).scatter(1, order, selected)
