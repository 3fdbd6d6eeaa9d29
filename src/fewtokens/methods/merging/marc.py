"""MARC: the events of a video that fit the question, each merged to one frame."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fewtokens.core.method import Reducer
from fewtokens.core.plan import Plan, top_mask
from fewtokens.core.tokens import Tokens
from fewtokens.methods.ops.scene_tilling import scene_cuts
from fewtokens.methods.ops.temporal import cosine


class Marc(Reducer):
    """Cuts a video into events, keeps those that fit the question, and averages each over time to one frame.

    MARC (arXiv 2510.07915), as far as its abstract tells: a retriever selects events, and a compressor leaves one
    frame's worth of tokens of each, 4.71 % of 64 frames: three events. How it cuts and merges is ours: SceneTilling
    (see `scene_changes`) on the mean features of frames; the relevance of an event is the highest cosine of its frames
    to the mean of the text, or to the mean of the video if there is no text; an event is averaged at each position,
    which is what merging neighbors in time comes to. The paper trains its retriever contrastively, and the language
    model by C-GRPO, for which see `fewtokens train video-llm --objective marc`.

    Args:
        events: maximum number of events to keep, at least 1. Default: 3.
        by: relevance of an event, "text" (default) or "typical" (similar to the whole video).
        alpha: a cut is deeper than the mean of the depths by this many standard deviations.
    """

    full_grid = True
    paper = "MARC: Memory-Augmented RL Token Compression for Efficient Video Understanding, arXiv 2510.07915"
    license = "written from the abstract; the code was not available"
    cost = "O(N C)"

    def __init__(self, events: int = 3, *, by: str = "text", alpha: float = 0.5) -> None:
        super().__init__()
        if isinstance(events, bool) or not isinstance(events, int) or events < 1:
            raise ValueError(f"events must be an integer of at least 1, got {events!r}")
        if by not in ("text", "typical"):
            raise ValueError(f"by must be 'text' or 'typical', got {by!r}")
        self.events, self.by, self.alpha = events, by, float(alpha)

    @property
    def needs(self) -> tuple[str, ...]:
        return ("text",) if self.by == "text" else ()

    def plan(self, tokens: Tokens, *, text: Tensor | None = None, **cues: Any) -> Plan:
        T, n = tokens.grid.T, tokens.grid.cells_per_frame
        frames = tokens.features.float().unflatten(1, (T, n)).mean(2)
        lengths = [grid.T for grid in tokens.grid.videos(tokens.B)]
        event = torch.stack([self._events(x[:length], T) for x, length in zip(frames, lengths, strict=True)])
        real = event >= 0
        query = text.float().mean(1, keepdim=True) if text is not None else _mean(frames, real)
        relevance = cosine(frames, query).masked_fill(~real, -torch.inf)
        best = torch.full_like(relevance, -torch.inf)
        best = best.scatter_reduce(1, event.clamp(min=0), relevance, "amax")
        used = best.isfinite()
        kept = top_mask(best, used.sum(1).clamp(max=self.events), used)
        label = event.masked_fill(~kept.gather(1, event.clamp(min=0)), -1).repeat_interleave(n, 1)
        place = torch.arange(tokens.N, device=tokens.device) % n
        return Plan.group((label * n + place).masked_fill(label < 0, -1), tokens, T * n)

    def _events(self, frames: Tensor, length: int) -> Tensor:
        """The event of each frame [t,C], int64 [length]; -1 after the last frame."""
        cuts = scene_cuts(cosine(frames[:-1], frames[1:]), alpha=self.alpha)
        starts = torch.zeros(len(frames), dtype=torch.int64, device=frames.device)
        starts[cuts + 1] = 1
        event = starts.new_full((length,), -1)
        event[: len(frames)] = starts.cumsum(0)
        return event


def _mean(frames: Tensor, real: Tensor) -> Tensor:
    """The mean of the real frames [B,T,C], [B,1,C]."""
    return (frames * real[..., None]).sum(1, keepdim=True) / real.sum(1)[:, None, None]
