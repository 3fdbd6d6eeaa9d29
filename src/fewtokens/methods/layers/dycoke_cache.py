"""DyCoke's second stage: while words are generated, caches hold the tokens that the latest word looks at."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fewtokens.core.budget import Budget
from fewtokens.core.layer_method import InsideMethod, check_layer
from fewtokens.llm.interface import layer_cache
from fewtokens.llm.layers.attention import attention_rows
from fewtokens.llm.layers.cache import FewerLayer, fewer_layer

if TYPE_CHECKING:
    from fewtokens.llm.layers.hooks import Inside, Run


class DyCokeCache(InsideMethod):
    """From one layer on, a cache holds the share of the video that the latest word attends to in the layer before.

    DyCoke (arXiv 2411.15024), its second stage (dynamic pruning). At every step the mean over heads of the attention of
    the word at hand in layer `layer` - 1 is computed, one row. Where it is less like the row of the step before than
    `similarity` (cosine), and at the first step, the tokens are chosen anew; otherwise the last choice stays (the
    published code reads all tokens in such a step).

    The reference keeps all entries where they are and gathers from them in every step, which saves no memory; here the
    others are moved to the host's memory and come back when they are chosen. With `revive=False` they are given up at
    the first step, which is a variant: the choice of the first word then stays. A prompt is read with all tokens.

    Args:
        keep: share of a prompt's video tokens; 0.3 in the paper's evaluation (0.2 in the code's own default).
        layer: the first layer whose cache is cut; 3 in the paper.
        similarity: 0.9 in the paper.
        revive: whether what goes may come back.
    """

    paper = "DyCoke: Dynamic Compression of Tokens, arXiv 2411.15024, section 3.3"
    license = "written from the description; reference Apache-2.0"
    cost = "one row of attention a step; moving entries where the choice changes"

    def __init__(self, keep: float = 0.3, *, layer: int = 3, similarity: float = 0.9, revive: bool = True) -> None:
        super().__init__()
        if not -1 <= similarity <= 1:
            raise ValueError(f"dycoke_cache: similarity is a cosine, in [-1, 1], got {similarity}")
        self.keep, self.layer = Budget.parse(keep, units=("share",)).value, check_layer(layer, "dycoke_cache")
        self.similarity, self.revive = float(similarity), bool(revive)

    def asked_layers(self, depth: int) -> list[int]:
        return [self.layer]

    def first_cut(self, depth: int) -> int:
        return self.layer

    def decode(self, number: int, layer: Any, inputs: dict[str, Any], inside: Inside, run: Run) -> None:
        cache: Any = layer_cache(inputs)
        cut = fewer_layer(cache, self.layer)
        # Several words at once are the next question, which is read with what is there.
        if cut is None or "video" not in cut.notes or inputs["hidden_states"].shape[1] != 1:
            return
        if number == self.layer - 1:
            run.active = self._choose(layer, inputs, cache, number, cut, run)
        elif number >= self.layer and run.active is not None:
            fewer = fewer_layer(cache, number)
            assert fewer is not None
            fewer.select(run.active, revive=self.revive)

    def _choose(
        self, layer: Any, inputs: dict[str, Any], cache: Any, number: int, cut: FewerLayer, run: Run
    ) -> Tensor | None:
        """The columns that the layers to come shall hold, bool [B,length]; None where nothing changes."""
        before = cut.notes.get("row")
        if before is not None and not self.revive:
            return None
        hidden, video = inputs["hidden_states"], cut.notes["video"]
        own = fewer_layer(cache, number)
        stored = cache.layers[number].keys
        every = torch.arange(stored.shape[2], device=hidden.device).expand(len(hidden), -1)
        columns = every if own is None else own.columns
        real = columns >= 0
        if run.real is not None:
            real = real & run.real.gather(1, columns.clamp(min=0))
        real = F.pad(real, (0, 1), value=True)
        queries = torch.zeros_like(columns[:, :1])
        found = attention_rows(layer, hidden, inputs["position_embeddings"], queries, real, keys=stored)[:, :-1]
        seen = (
            video.gather(1, columns.clamp(min=0, max=video.shape[1] - 1)) & (columns < video.shape[1]) & (columns >= 0)
        )
        spare = columns.masked_fill(~seen, video.shape[1])
        row = found.new_zeros(len(found), video.shape[1] + 1).scatter(1, spare, found)[:, :-1]
        there = video.new_zeros(len(found), video.shape[1] + 1).scatter(1, spare, True)[:, :-1]
        count = (video.sum(1).double() * self.keep + 1e-6).long().clamp(min=1)
        rank = row.masked_fill(~there, -torch.inf).argsort(dim=1, descending=True, stable=True).argsort(dim=1)
        active = (rank < count[:, None]) & there
        cut.notes["row"] = row
        if before is not None:
            anew = F.cosine_similarity(row, before, dim=1) < self.similarity
            if not bool(anew.any()):
                return None
            active = torch.where(anew[:, None], active, cut.notes["active"])
        cut.notes["active"] = active
        return F.pad(active | ~video, (0, cut.length - video.shape[1]), value=True)
