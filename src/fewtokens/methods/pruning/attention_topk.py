"""FasterVLM: the tokens that receive the most attention in the encoder."""

from __future__ import annotations

from torch import Tensor

from fewtokens.core.method import Reducer
from fewtokens.core.plan import Plan, readable, top_mask
from fewtokens.core.tokens import Tokens
from fewtokens.methods.ops.segments import rank_within, split_over_frames


class AttentionTopk(Reducer):
    """Keeps the tokens of each frame that receive the most attention in the encoder.

    FasterVLM (arXiv 2412.01818). The score is the attention that the class token pays to each patch, or, in an encoder
    without a class token, the mean attention that a patch receives. It is published for images; the budget of a video
    is split over its frames in proportion to their tokens. VisionZip's dominant tokens are the same selection.

    Args:
        keep: budget, a fraction of the cells (float), a count (int) or "8/frame". Default: 0.25.
        attention: which attention of the tower of a language model, such as "received" or "class@-2", see
            `AttentionRule`. Default: that of the class token, as published, or the attention received if there is none.
    """

    paper = "[CLS] Attention is All You Need for Training-Free Visual Token Pruning (FasterVLM), arXiv 2412.01818"
    license = "written from the description; reference code Apache-2.0"
    cost = "O(N log N)"

    def __init__(self, keep: float | int | str = 0.25, *, attention: str | None = None) -> None:
        super().__init__()
        self.set_budget(keep)
        self.attention, self.attention_rule = attention, self.published_attention.override(attention)

    @property
    def needs(self) -> tuple[str, ...]:
        return ("attention",)

    def plan(self, tokens: Tokens, *, attention: Tensor) -> Plan:
        T = tokens.grid.T
        budget = split_over_frames(tokens, self.counts(tokens)).diff(dim=1)  # [B,T]
        if readable(tokens.mask) and tokens.has_full_grid():
            # One short sort per frame, where the tokens of all frames would be sorted twice.
            scores, mask = (values.reshape(tokens.B * T, -1) for values in (attention.float(), tokens.mask))
            kept = top_mask(scores, budget.flatten(), mask).reshape(tokens.B, -1)
        else:
            frame = tokens.frame.masked_fill(~tokens.mask, -1)
            rank = rank_within(-attention.float(), frame, T)
            kept = (rank < budget.gather(1, frame.clamp(min=0))) & tokens.mask
        return Plan.keep(kept, self.max_slots(tokens))
