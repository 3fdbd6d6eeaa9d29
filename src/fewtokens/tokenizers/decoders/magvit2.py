"""The decoder of MAGVIT-v2."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from fewtokens.tokenizers.blocks.causal_conv import Cache, CausalConv3d, Chain, DepthToSpace, check_counts
from fewtokens.tokenizers.blocks.levels import level_strides, residual_blocks
from fewtokens.tokenizers.blocks.residual import ConvNorm
from fewtokens.tokenizers.blocks.streaming import StreamingDecoder


class Magvit2(StreamingDecoder):
    """MAGVIT-v2 (arXiv 2310.05737): depth-to-space, and normalization conditioned on the tokens at each level.

    Its statistics are those of a frame, and the conditions those of its row of cells, where Open-MAGVIT2 (arXiv
    2409.04410) pools over the clip, which is not causal.

    Args:
        dim: channels of a token.
        width, mult, strides, depth: as in the encoder.
    """

    causal = True
    first_frame = True

    def __init__(
        self,
        dim: int = 18,
        *,
        width: int = 128,
        mult: Sequence[int] = (1, 2, 2, 4),
        strides: Sequence[Sequence[int]] = ((1, 2, 2), (2, 2, 2), (2, 2, 2)),
        depth: int = 4,
    ) -> None:
        super().__init__()
        check_counts(dim=dim, width=width, depth=depth)
        triples, self.stride = level_strides(strides, len(mult))
        self.dim, self.width, self.mult, self.strides, self.depth = dim, width, tuple(mult), strides, depth
        wide = width * mult[-1]
        self.enter = Chain(
            CausalConv3d(dim, wide, fill="zeros"), *residual_blocks(wide, wide, depth, norm="frame", fill="zeros")
        )
        self.norms, self.levels = nn.ModuleList(), nn.ModuleList()
        frames = 1
        for i, factor in reversed(list(enumerate(mult))):
            self.norms.append(ConditionedNorm(wide, dim, frames))
            level = Chain(*residual_blocks(wide, width * factor, depth, norm="frame", fill="zeros"))
            wide = width * factor
            if i > 0:
                level.append(DepthToSpace(wide, wide, triples[i - 1], fill="zeros"))
                frames *= triples[i - 1][0]
            self.levels.append(level)
        self.leave = Chain(ConvNorm(wide, "frame"), CausalConv3d(wide, 3, fill="zeros"))

    def decode(self, latents: Tensor, cache: Cache | None = None) -> Tensor:
        start = not cache
        x = self.enter(latents, cache)
        for norm, level in zip(self.norms, self.levels, strict=True):
            x = level(norm(x, latents, start), cache)
        frames: Tensor = self.leave(x, cache)
        return frames


class ConditionedNorm(nn.Module):
    """Normalizes each frame; the deviation and mean of its row of cells give scale and shift of the channels.

    Args:
        dim: channels that are normalized.
        cells: channels of the cells.
        frames: frames of a row of cells, except the first, which has one.
    """

    def __init__(self, dim: int, cells: int, frames: int) -> None:
        super().__init__()
        self.norm, self.frames = ConvNorm(dim, "frame", act=False), frames
        self.scale, self.shift = nn.Linear(cells, dim), nn.Linear(cells, dim)

    def forward(self, x: Tensor, cells: Tensor, start: bool) -> Tensor:
        rows = cells.flatten(3)
        # A constant row has no deviation, whose gradient would not be finite.
        scale = 1 + self.scale((rows.var(3, unbiased=False) + 1e-6).sqrt().transpose(1, 2))
        shift = self.shift(rows.mean(3).transpose(1, 2))
        drop = self.frames - 1 if start else 0
        scale, shift = (
            value.repeat_interleave(self.frames, 1)[:, drop:].transpose(1, 2)[..., None, None]
            for value in (scale, shift)
        )
        return self.norm(x) * scale + shift
