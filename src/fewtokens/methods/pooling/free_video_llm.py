"""Free Video-LLM: frames and regions of frames that are similar to the question, at three temporal resolutions."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fewtokens.core.grid import Grid
from fewtokens.core.method import Resampled, Resampler
from fewtokens.core.plan import top_mask
from fewtokens.core.tokens import Tokens
from fewtokens.methods.ops.per_frame import separable_maps, to_frames
from fewtokens.methods.ops.resample import check_counts, check_text, to_float32
from fewtokens.methods.ops.temporal import cosine


class FreeVideoLlm(Resampler):
    """Reduces a few frames to the region around the cells that are relevant to the question, and all to a coarse grid.

    Free Video-LLM (arXiv 2410.10441), without training. Three streams: the `slow` frames most similar to the text; the
    `middle` frames, evenly spaced; and the `fast` frames most similar to the text (usually all), each average-pooled to
    side x side tokens. Frames of the first two are max-pooled over pairs of columns and cropped to a box, whose sides
    are sqrt(roi) of those of the pooled frame. A frame of several streams has the tokens of each, so that the number
    of tokens is fixed: 2,648 for 50 frames of 24 x 24 cells.

    Similarity is the cosine to the mean of the text. The published code compares CLIP's projected patches and class
    tokens with CLIP's text; the cue `text` of a video language model is in the space of its visual tokens, and the
    vector of a frame is the mean of its cells. In CLIP, the similarity of patches is inverted (see `cdpruner`):
    relevance="negative" changes its sign for the boxes.

    Differences from the published code. It centers the box on the mean of the top cells, a share `roi` of all, rounded
    down, which is nearly the center of the frame whatever the question (center="mean"); by default, the center is
    weighted by how far a cell's similarity is above the mean. It pools the cells in raster order, which pairs columns
    only if their number is even, and reads the result as half the rows and all columns, where pairs of columns leave
    all rows and half the columns. It concatenates the streams; here the tokens are ordered by time, and
    those of a frame by stream: fast, middle, slow.

    Attribution: a pooled token is attributed equally to the cells that it pools. There is a T x m x n array of weights,
    for n cells per frame and the m tokens that a frame has if it is in all streams.

    Args:
        slow, middle, fast: number of frames of each stream, at least 1. Default: 3, 5 and 50, as published.
        side: rows and columns of a frame in the fast stream, at most those of the grid. Default: 4.
        roi: area of the box as a share of the frame, in (0, 1]. Default: 0.8.
        center: "score" (default, ours) or "mean" (as published).
        relevance: sign of the similarity of cells, "text" (default) or "negative".
    """

    full_grid = True
    paper = "Free Video-LLM: Prompt-guided Visual Perception for Efficient Training-free Video LLMs, arXiv 2410.10441"
    license = "written from a description of its code, MIT"
    cost = "O(N C), and T*m*n weights for the m tokens of a frame of n cells"

    def __init__(
        self,
        slow: int = 3,
        *,
        middle: int = 5,
        fast: int = 50,
        side: int = 4,
        roi: float = 0.8,
        center: str = "score",
        relevance: str = "text",
    ) -> None:
        super().__init__()
        check_counts(slow=slow, middle=middle, fast=fast, side=side)
        if not 0 < roi <= 1:
            raise ValueError(f"roi must be a share of the frame in (0, 1], got {roi!r}")
        if center not in ("score", "mean"):
            raise ValueError(f"center must be 'score' or 'mean', got {center!r}")
        if relevance not in ("text", "negative"):
            raise ValueError(f"relevance must be 'text' or 'negative', got {relevance!r}")
        self.slow, self.middle, self.fast, self.side = slow, middle, fast, side
        self.roi, self.center, self.relevance = roi, center, relevance

    @property
    def needs(self) -> tuple[str, ...]:
        return ("text",)

    def planned_count(self, grid: Grid) -> int:
        rows, columns = box_sides(grid.H, -(-grid.W // 2), self.roi)
        boxes = min(self.slow, grid.T) + min(self.middle, grid.T)
        coarse = min(self.side, grid.H) * min(self.side, grid.W)
        return boxes * rows * columns + min(self.fast, grid.T) * coarse

    def resample(self, tokens: Tokens, **cues: Any) -> Resampled:
        check_text(self.name, cues["text"], tokens, tokens.C)
        B, (T, H, W) = tokens.B, tokens.grid.shape
        columns = -(-W // 2)
        frames = to_frames(tokens).unflatten(0, (B, T))  # [B,T,H,W,C]
        text = cues["text"].float().mean(1)[:, None, None, None]
        with torch.no_grad():
            streams = self._streams(tokens, cosine(frames.float().mean((2, 3)), text[:, 0, 0]))
        # The last column of an odd number is paired with itself.
        pairs = F.pad(frames.flatten(0, 2).transpose(1, 2), (0, 2 * columns - W), mode="replicate")
        pooled = pairs.unflatten(2, (columns, 2)).amax(3).transpose(1, 2).reshape(B, T, H * columns, -1)
        with torch.no_grad():
            scores = cosine(pooled.float(), text[:, 0])
            scores = -scores if self.relevance == "negative" else scores
            weight = relevance_weights(scores, self.roi, self.center)
            corner = box_corner(weight, H, columns, self.roi, self.center)
            box = box_cells(corner, H, columns, self.roi)  # [B,T,b]
        eye = torch.eye(W, device=tokens.device)
        pair = F.avg_pool1d(eye, 2, ceil_mode=True).T
        of_pairs = separable_maps(torch.eye(H, device=tokens.device), pair)[box]  # [B,T,b,n]
        in_box = pooled.gather(2, box[..., None].expand(-1, -1, -1, tokens.C))
        rows_of, columns_of = (
            F.adaptive_avg_pool1d(torch.eye(n, device=tokens.device), min(self.side, n)).T for n in (H, W)
        )
        coarse, wide = separable_maps(rows_of, columns_of), to_float32(pooled[:0]).dtype
        means = (coarse.to(wide) @ frames.flatten(2, 3).to(wide)).to(pooled.dtype)
        weights = torch.cat([coarse.expand(B, T, -1, -1), of_pairs, of_pairs], 2)
        features = torch.cat([means, in_box, in_box], 2).flatten(1, 2)
        sizes = torch.tensor([len(coarse), box.shape[2], box.shape[2]], device=tokens.device)
        kept = streams.repeat_interleave(sizes, 2)  # [B,T,m]
        count = tokens.mask.unflatten(1, (T, -1)).any(2).sum(1) * kept.shape[2]
        return Resampled(features, weights * kept[..., None], count, kept.flatten(1))

    def _streams(self, tokens: Tokens, similarity: Tensor) -> Tensor:
        """Whether each frame is in the fast, middle and slow stream, bool [B,T,3], by its similarity [B,T]."""
        T = tokens.grid.T
        real = tokens.mask.unflatten(1, (T, -1)).any(2)
        length = real.sum(1, keepdim=True)
        fast, slow = (top_mask(similarity, length.squeeze(1).clamp(max=most), real) for most in (self.fast, self.slow))
        frame = torch.arange(T, device=tokens.device)
        even = length.clamp(max=self.middle)
        # Frame t is one of floor(i * length / even), i = 0, 1, ...
        middle = ((frame + 1) * even + length - 1) // length > (frame * even + length - 1) // length
        return torch.stack([fast, middle & real, slow], 2)


def box_sides(rows: int, columns: int, share: float) -> tuple[int, int]:
    """Returns the sides of a box with a share of the area of rows x columns cells; at least one cell."""
    root = math.sqrt(share)
    return max(1, round(rows * root)), max(1, round(columns * root))


def relevance_weights(scores: Tensor, share: float, by: str) -> Tensor:
    """Returns the weight of each cell in the center of a box, float64 [...,n], for scores [...,n].

    By "mean", that is 1 for the share of cells with the highest scores; by "score", how far they are above the mean.
    """
    flat = scores.reshape(-1, scores.shape[-1])
    if by == "mean":
        count = torch.full((len(flat),), max(1, int(flat.shape[1] * share)), device=scores.device)
        weight = top_mask(flat, count, torch.ones_like(flat, dtype=torch.bool)).double()
    else:
        weight = (flat - flat.mean(1, keepdim=True)).clamp(min=0).double()
        weight = weight.masked_fill(flat.amax(1, keepdim=True) - flat.amin(1, keepdim=True) < 1e-5, 1)
    return weight.reshape(scores.shape)


def box_corner(weight: Tensor, rows: int, columns: int, share: float, by: str) -> Tensor:
    """Returns the first cell of a box around weighted cells, int64 [...,2], (row, column); it may be outside the frame.

    Args:
        weight: float64 [...,rows*columns], in raster order.
        share: area of the box.
        by: "mean" rounds the center down, as published; "score" rounds the corner to the nearest.
    """
    cell = torch.arange(rows * columns, device=weight.device)
    places = torch.stack([cell // columns, cell % columns], 1).double()
    center = weight / weight.sum(-1, keepdim=True) @ places + 1e-4  # means that differ by rounding are equal
    sides = torch.tensor(box_sides(rows, columns, share), device=weight.device)
    return (center.floor() - sides // 2 if by == "mean" else (center + 1 - sides / 2).floor()).long()


def box_cells(corner: Tensor, rows: int, columns: int, share: float) -> Tensor:
    """Returns the cells of a box, moved inside the frame, int64 [...,b] in raster order, for its corner [...,2]."""
    height, width = box_sides(rows, columns, share)
    last = torch.tensor([rows - height, columns - width], device=corner.device)
    top, left = corner.clamp(min=0).minimum(last)[..., None].unbind(-2)
    cell = torch.arange(height * width, device=corner.device)
    return (top + cell // width) * columns + left + cell % width
