"""Where the visual tokens of a shortened prompt stand, for methods that act inside the language model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from fewtokens.core.layer_method import PlacedVideo
from fewtokens.core.shapes import by_shape


def asked_columns(prompt: dict[str, Any]) -> Tensor:
    """Columns before the answer, bool [B,L]: no padding, and nothing from the first label on."""
    ids, mask, labels = prompt["input_ids"], prompt.get("attention_mask"), prompt.get("labels")
    asked = torch.ones_like(ids, dtype=torch.bool) if mask is None else mask.bool()
    return asked if labels is None else asked & ((labels != -100).long().cumsum(1) == 0)


@dataclass
class Layout:
    """The columns of prompts [B,L].

    Attributes:
        visual: bool [B,L], rows of an encoder: of images, of videos and what follows a video's cells.
        ends: int64 [B], the last column of each question: before the first label if there are labels, otherwise the
            last one that is no padding.
        videos: in the order of `Compressed.tokens`.
    """

    visual: Tensor
    ends: Tensor
    videos: list[PlacedVideo]

    __repr__ = by_shape

    def video(self) -> Tensor:
        """The tokens of videos, bool [B,L]."""
        marks = self.visual.new_zeros(self.visual.shape)
        for video in self.videos:
            marks[video.row, video.columns] = True
        return marks

    def fitted(self, rows: int, length: int) -> Layout:
        """The same for every prompt repeated (beams), with text after it (a pass over what was generated too)."""
        times = rows // len(self.visual)
        visual = F.pad(self.visual, (0, length - self.visual.shape[1])).repeat_interleave(times, 0)
        videos = [
            PlacedVideo(video.row * times + again, video.columns, video.tokens)
            for video in self.videos
            for again in range(times)
        ]
        return Layout(visual, self.ends.repeat_interleave(times), videos)
