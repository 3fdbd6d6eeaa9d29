"""Where the visual tokens of a shortened prompt stand, for methods that act inside the language model."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional as F

from fewtokens.core.tokens import Tokens


@dataclass
class Video:
    """One video of a prompt.

    Attributes:
        row: the prompt of the batch it stands in.
        columns: int64 [n], where each of its tokens stands.
        tokens: what the language model was given of it, one video.
    """

    row: int
    columns: Tensor
    tokens: Tokens


@dataclass
class Layout:
    """The columns of prompts [B,L].

    Attributes:
        visual: bool [B,L], rows of an encoder: of images, of videos and what follows a video's cells.
        ends: int64 [B], the last column of each question: before the first label where there are labels, otherwise the
            last one that is no padding.
        videos: in the order of `Compressed.tokens`.
    """

    visual: Tensor
    ends: Tensor
    videos: list[Video]

    def video(self) -> Tensor:
        """The tokens of videos, bool [B,L]."""
        found = self.visual.new_zeros(self.visual.shape)
        for video in self.videos:
            found[video.row, video.columns] = True
        return found

    def fitted(self, rows: int, length: int) -> Layout:
        """The same for every prompt repeated (beams), with text after it (a pass over what was generated too)."""
        times = rows // len(self.visual)
        visual = F.pad(self.visual, (0, length - self.visual.shape[1])).repeat_interleave(times, 0)
        videos = [
            Video(video.row * times + again, video.columns, video.tokens)
            for video in self.videos
            for again in range(times)
        ]
        return Layout(visual, self.ends.repeat_interleave(times), videos)
