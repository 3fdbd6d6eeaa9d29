"""METok's first stage, approximated: events, key frames in the chosen ones, and pooling by what a frame is worth."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fewtokens.core.grid import Grid
from fewtokens.core.method import Reducer
from fewtokens.core.plan import Plan
from fewtokens.core.tokens import Tokens
from fewtokens.methods.ops.groups import merge_within, share_out
from fewtokens.methods.ops.segments import cut_where_frames_change, rank_within
from fewtokens.methods.ops.temporal import cosine

# Cells that one token of a frame stands for, by whether its event and the frame in it are key.
_STRIDES = {(True, True): 2, (True, False): 4, (False, True): 4, (False, False): 8}


class Metok(Reducer):
    """An approximation of METok's stage 1: frames in key events are pooled least, the others more.

    METok (arXiv 2506.02850). The video is cut into `events` at the frames least like the next one. The `key_events`
    with the most relevant frame are key; in every event so are its `key_frames` most relevant frames. Frames are
    average-pooled with the strides 2 (key frame of a key event), 4, 4 and 8. The paper takes relevance from the text
    tower of SigLIP; here it is the cosine of a frame's vector to the embedded query, or, without one, to the mean of
    the video. Its stages inside the language model are not here.

    Args:
        keep: a budget instead of the strides: places are dealt to frames in the same proportions, and the most similar
            tokens of a frame merge.
        by: "typical" (like the video's mean) or "text" (needs a query in the space of the frames' vectors).
        events, key_events, key_frames: 5, 3 and 6 in the paper.
    """

    paper = "approximation of METok, stage 1, arXiv 2506.02850"
    license = "written from the description; no licence found in the reference"
    cost = "O(NC), with a budget O(T n^2 C / 4)"
    full_grid = True

    def __init__(
        self,
        keep: float | int | str | None = None,
        *,
        by: str = "typical",
        events: int = 5,
        key_events: int = 3,
        key_frames: int = 6,
    ) -> None:
        super().__init__()
        self.keep = None
        if keep is not None:
            self.take_budget(keep)
        if by not in ("typical", "text"):
            raise ValueError(f"relevance is by 'typical' or 'text', not {by!r}")
        if min(events, key_events, key_frames) < 1:
            raise ValueError(f"events and key frames must be at least 1, got {events}, {key_events}, {key_frames}")
        self.by, self.events, self.key_events, self.key_frames = by, events, key_events, key_frames

    @property
    def needs(self) -> tuple[str, ...]:
        return ("frame_global", "text") if self.by == "text" else ()

    def fewest(self, grid: Grid) -> int:
        return grid.T

    def _strides(self, tokens: Tokens, vectors: Tensor, relevance: Tensor) -> Tensor:
        """How coarsely each frame is pooled, int64 [B,T]."""
        T = tokens.grid.T
        there = tokens.mask.unflatten(1, (T, -1))[..., 0]
        lengths = there.sum(1)
        first, _ = cut_where_frames_change(cosine(vectors[:, :-1], vectors[:, 1:]), lengths, self.events, -2.0)
        event = first.masked_fill(~there, -1)
        best = torch.full_like(relevance, -torch.inf).scatter_reduce(
            1, first, relevance.masked_fill(~there, -torch.inf), "amax"
        )
        rank = best.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
        key_event = rank.gather(1, first) < self.key_events
        key_frame = rank_within(-relevance, event, T) < self.key_frames
        strides = torch.empty_like(first)
        for (of_event, of_frame), stride in _STRIDES.items():
            strides[(key_event == of_event) & (key_frame == of_frame)] = stride
        return strides

    def plan(self, tokens: Tokens, **cues: Any) -> Plan:
        T, n, W = tokens.grid.T, tokens.grid.cells_per_frame, tokens.grid.W
        x = tokens.require_full_grid(self.name).features.float()
        there = tokens.mask.unflatten(1, (T, n))[..., 0]
        if self.by == "text":
            vectors = cues["frame_global"].float()
            query = cues["text"].float().mean(1, keepdim=True)
        else:
            vectors = x.unflatten(1, (T, n)).mean(2)
            query = (vectors * there[..., None]).sum(1, keepdim=True) / there.sum(1)[:, None, None]
        strides = self._strides(tokens, vectors, cosine(vectors, query))
        frame = tokens.frame.masked_fill(~tokens.mask, -1)
        if self.budget is not None:
            worth = strides.float().pow(-2)
            return merge_within(tokens, frame, share_out(self.counts(tokens), there * n, worth))
        y, column = tokens.cell % n // W, tokens.cell % W
        stride = strides.repeat_interleave(n, 1)
        label = frame * n + (y // stride) * W + column // stride
        return Plan.group(label.masked_fill(~tokens.mask, -1), tokens, T * n)
