"""METok's first stage, approximated: events, key frames, and pooling by the relevance of a frame."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fewtokens.core.grid import Grid
from fewtokens.core.method import Reducer
from fewtokens.core.plan import Plan
from fewtokens.core.tokens import Tokens
from fewtokens.methods.ops.groups import allocate, merge_within
from fewtokens.methods.ops.segments import cut_where_frames_change, rank_within
from fewtokens.methods.ops.temporal import cosine

# Pooling stride of a frame, by whether its event and the frame itself are key.
_STRIDES = {(True, True): 2, (True, False): 4, (False, True): 4, (False, False): 8}


class Metok(Reducer):
    """Pools each frame with a stride set by its relevance (approximates METok).

    METok (arXiv 2506.02850). The video is cut into `events` segments at the frames least similar to the next one. The
    `key_events` events with the most relevant frame are key events; in every event the `key_frames` most relevant
    frames are key frames. Strides are 2 for a key frame of a key event, 4 if only one of them is key, and 8 otherwise.
    The paper takes relevance from SigLIP's text tower; here it is the cosine between a frame's vector and the embedded
    query, or the mean of the video if there is no query. METok's stages inside the language model are not implemented.

    Args:
        keep: budget in place of the fixed strides, a fraction of the cells (float), a count (int) or "8/frame"; split
            over the frames in the same proportions, and the most similar tokens of each frame are merged. Default:
            None.
        by: relevance, "typical" (cosine to the video's mean, the default) or "text" (requires a query embedded in the
            same space as the frames' vectors).
        events, key_events, key_frames: at least 1. Default: 5, 3 and 6, as in the paper.
    """

    paper = "approximation of METok, stage 1, arXiv 2506.02850"
    license = "written from the description; no license found in the reference code"
    cost = "O(NC); with a budget O(T n^2 C / 4), with n cells per frame"
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
            self.set_budget(keep)
        if by not in ("typical", "text"):
            raise ValueError(f"by must be 'typical' or 'text', got {by!r}")
        if min(events, key_events, key_frames) < 1:
            raise ValueError(
                f"events, key_events and key_frames must be at least 1, got {events}, {key_events}, {key_frames}"
            )
        self.by, self.events, self.key_events, self.key_frames = by, events, key_events, key_frames

    @property
    def needs(self) -> tuple[str, ...]:
        return ("frame_global", "text") if self.by == "text" else ()

    def min_count(self, grid: Grid) -> int:
        return grid.T

    def _strides(self, tokens: Tokens, vectors: Tensor, relevance: Tensor) -> Tensor:
        """The pooling stride of each frame, int64 [B,T]."""
        T = tokens.grid.T
        real_frames = tokens.mask.unflatten(1, (T, -1))[..., 0]
        lengths = real_frames.sum(1)
        first, _ = cut_where_frames_change(cosine(vectors[:, :-1], vectors[:, 1:]), lengths, self.events, -2.0)
        event = first.masked_fill(~real_frames, -1)
        best = torch.full_like(relevance, -torch.inf).scatter_reduce(
            1, first, relevance.masked_fill(~real_frames, -torch.inf), "amax"
        )
        rank = best.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
        key_event = rank.gather(1, first) < self.key_events
        key_frame = rank_within(-relevance, event, T) < self.key_frames
        strides = torch.empty_like(first)
        for (event_is_key, frame_is_key), stride in _STRIDES.items():
            strides[(key_event == event_is_key) & (key_frame == frame_is_key)] = stride
        return strides

    def plan(self, tokens: Tokens, **cues: Any) -> Plan:
        T, n, W = tokens.grid.T, tokens.grid.cells_per_frame, tokens.grid.W
        x = tokens.features.float()
        real_frames = tokens.mask.unflatten(1, (T, n))[..., 0]
        if self.by == "text":
            vectors = cues["frame_global"].float()
            query = cues["text"].float().mean(1, keepdim=True)
        else:
            vectors = x.unflatten(1, (T, n)).mean(2)
            query = (vectors * real_frames[..., None]).sum(1, keepdim=True) / real_frames.sum(1)[:, None, None]
        strides = self._strides(tokens, vectors, cosine(vectors, query))
        frame = tokens.frame.masked_fill(~tokens.mask, -1)
        if self.budget is not None:
            weight = strides.float().pow(-2)
            return merge_within(tokens, frame, allocate(self.counts(tokens), real_frames * n, weight))
        y, column = tokens.cell % n // W, tokens.cell % W
        stride = strides.repeat_interleave(n, 1)
        label = frame * n + (y // stride) * W + column // stride
        return Plan.group(label.masked_fill(~tokens.mask, -1), tokens, T * n)
