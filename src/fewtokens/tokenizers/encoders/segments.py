"""One vector for each segment of an image, from the sequence of its pixels."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fewtokens.core.grid import Grid
from fewtokens.methods.ops.resample import feed_forward
from fewtokens.tokenizers.blocks.segments import assign, relative_sines, softmax, spread, superpixels, total
from fewtokens.tokenizers.parts import VideoEncoder


class Segments(VideoEncoder):
    """Encodes the pixels of each segment, with positions relative to its box, to one vector.

    The encoder of Subobject tokenization (arXiv 2402.14327), at linear cost: in each round the pixels of a segment are
    summarized by their mean and by learned queries that attend to them, and an MLP updates each pixel with the summary.
    A vector depends on the colors and the shape of its segment, and not on where it is, on its label or on other
    segments.

    `latents` takes the segments of `superpixels`, and gives each pixel the vector of its segment; `vectors` takes any.

    Args:
        channels: of a vector.
        width: channels of a pixel; must be a multiple of 4 and of `heads`.
        depth: number of rounds.
        heads: number of queries.
        side: side of a superpixel in pixels.

    Raises:
        ValueError: an argument is out of range.
    """

    stride = (1, 1, 1)

    def __init__(
        self, channels: int = 256, *, width: int = 256, depth: int = 4, heads: int = 8, side: int = 16
    ) -> None:
        super().__init__()
        if min(channels, width, depth, heads, side) < 1 or width % heads or width % 4:
            raise ValueError(
                "channels, depth and side must be at least 1, and width a multiple of 4 and of heads, got "
                f"{channels}, {depth}, {side}, {width} and {heads}"
            )
        self.channels, self.width, self.depth, self.heads, self.side = channels, width, depth, heads, side
        self.embed = nn.Linear(3, width)
        self.rounds = nn.ModuleList(_Round(width) for _ in range(depth))
        self.pools = nn.ModuleList(_Pool(width, heads) for _ in range(depth + 1))
        self.norm, self.out = nn.LayerNorm(width, 1e-6), nn.Linear(width, channels)

    @property
    def dim(self) -> int:
        return self.channels

    def latents(self, x: Tensor) -> Tensor:
        assignment, count = assign(superpixels((x.transpose(1, 2) + 1) / 2, self.side))
        vectors = self.vectors(x, assignment, int(count.max()))
        return spread(vectors, assignment).transpose(1, 2).unflatten(2, x.shape[2:])

    def vectors(self, x: Tensor, assignment: Tensor, count: int) -> Tensor:
        """Encodes segments.

        Args:
            x: frames [B,3,T,H,W] in -1..1.
            assignment: int64 [B,T*H*W], the segment of each pixel.
            count: largest number of segments of a video.

        Returns:
            [B,count,C]; those of segments without pixels have no meaning.
        """
        grid = Grid(*x.shape[2:])
        pixels = self.embed(x.flatten(2).transpose(1, 2))
        pixels = pixels + relative_sines(assignment, grid, count, self.width).to(pixels.dtype)
        *pools, last = self.pools
        for pool, layer in zip(pools, self.rounds, strict=True):
            pixels = layer(pixels, spread(pool(pixels, assignment, count), assignment))
        vectors: Tensor = self.out(self.norm(last(pixels, assignment, count)))
        return vectors


class _Pool(nn.Module):
    """Summarizes the pixels [B,S,C] of each segment by their mean and by learned queries, [B,N,C]."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, 1e-6)
        self.logits, self.value, self.out = (
            nn.Linear(width, heads),
            nn.Linear(width, width),
            nn.Linear(2 * width, width),
        )

    def forward(self, pixels: Tensor, assignment: Tensor, count: int) -> Tensor:
        x = self.norm(pixels)
        weights = softmax(self.logits(x), assignment, count)
        read = (self.value(x).unflatten(2, (weights.shape[2], -1)) * weights[..., None]).flatten(2)
        size = total(torch.ones_like(x[..., :1]), assignment, count).clamp(min=1)
        both = torch.cat([total(x, assignment, count) / size, total(read, assignment, count)], 2)
        summary: Tensor = self.out(both)
        return summary


class _Round(nn.Module):
    """An MLP over each pixel [B,S,C] and the summary of its segment."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.mlp = nn.LayerNorm(width, 1e-6), feed_forward(width)

    def forward(self, pixels: Tensor, summary: Tensor) -> Tensor:
        updated: Tensor = pixels + self.mlp(self.norm(pixels + summary))
        return updated
