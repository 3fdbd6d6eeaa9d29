"""The columns of visual tokens in a shortened prompt, for methods that act inside the language model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from fewtokens.core.layer_method import VideoPlacement
from fewtokens.core.shapes import shape_repr


def prompt_columns(prompt: dict[str, Any]) -> Tensor:
    """The columns before the answer, bool [B,L]: no padding, and nothing from the first label on."""
    ids, mask, labels = prompt["input_ids"], prompt.get("attention_mask"), prompt.get("labels")
    columns = torch.ones_like(ids, dtype=torch.bool) if mask is None else mask.bool()
    return columns if labels is None else columns & ((labels != -100).long().cumsum(1) == 0)


@dataclass
class Layout:
    """The columns of prompts [B,L].

    Attributes:
        visual: bool [B,L], rows of an encoder: of images, of videos and of the tails of videos.
        ends: int64 [B], the last column of each question: before the first label if there are labels, otherwise the
            last one that is not padding.
        videos: in the order of `Compressed.tokens`.
    """

    visual: Tensor
    ends: Tensor
    videos: list[VideoPlacement]

    __repr__ = shape_repr

    def video(self) -> Tensor:
        """The columns of video tokens, bool [B,L]."""
        marks = self.visual.new_zeros(self.visual.shape)
        for video in self.videos:
            marks[video.row, video.columns] = True
        return marks

    def question(self) -> Tensor:
        """The columns of text after the last visual and up to the end of the question, bool [B,L]."""
        column = torch.arange(self.visual.shape[1], device=self.visual.device)
        last = torch.where(self.visual, column, -1).amax(1, keepdim=True)
        return (column > last) & (column <= self.ends[:, None])

    def expand(self, rows: int, length: int) -> Layout:
        """Repeats each prompt (beams) and appends text columns (a pass that includes generated tokens)."""
        repeats = rows // len(self.visual)
        visual = F.pad(self.visual, (0, length - self.visual.shape[1])).repeat_interleave(repeats, 0)
        videos = [
            VideoPlacement(video.row * repeats + copy, video.columns, video.tokens)
            for video in self.videos
            for copy in range(repeats)
        ]
        return Layout(visual, self.ends.repeat_interleave(repeats), videos)
