"""The decoder of MAGVIT-v2."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from torch import Tensor, nn

from fewtokens.tokenizers.blocks.causal_conv import Cache, CausalConv3d, Chain, DepthToSpace, check_counts
from fewtokens.tokenizers.blocks.levels import kernel_of, level_strides, residual_blocks
from fewtokens.tokenizers.blocks.residual import ConvNorm
from fewtokens.tokenizers.blocks.streaming import StreamingDecoder


class Magvit2(StreamingDecoder):
    """MAGVIT-v2 (arXiv 2310.05737): depth-to-space, and normalization conditioned on the tokens at each level.

    In the form of Open-MAGVIT2 (arXiv 2409.04410), whose code keeps the first of the frames that the first row of cells
    becomes; the paper keeps the last.

    Args:
        dim: channels of a token.
        width, mult, strides, depth: as in the encoder.
        norm: as in the encoder; scale and shift of a normalization depend on the tokens of the row of cells of a
            "frame", or on those of the "clip".
    """

    def __init__(
        self,
        dim: int = 18,
        *,
        width: int = 128,
        mult: Sequence[int] = (1, 2, 2, 4),
        strides: Sequence[Sequence[int]] = ((1, 2, 2), (2, 2, 2), (2, 2, 2)),
        depth: int = 4,
        norm: Literal["frame", "clip"] = "frame",
    ) -> None:
        super().__init__()
        check_counts(dim=dim, width=width, depth=depth)
        triples, self.stride = level_strides(strides, len(mult))
        self.dim, self.width, self.mult, self.strides, self.depth = dim, width, tuple(mult), strides, depth
        self.norm, self.causal, self.first_frame = norm, norm == "frame", self.stride[0] > 1
        kernel, wide = kernel_of(self.stride), width * mult[-1]
        self.enter = Chain(
            CausalConv3d(dim, wide, kernel, fill="zeros"),
            *residual_blocks(wide, wide, depth, kernel=kernel, norm=norm, fill="zeros", bias=False),
        )
        self.norms, self.levels = nn.ModuleList(), nn.ModuleList()
        frames = 1
        for i, factor in reversed(list(enumerate(mult))):
            self.norms.append(ConditionedNorm(wide, dim, frames, norm))
            level = Chain(
                *residual_blocks(wide, width * factor, depth, kernel=kernel, norm=norm, fill="zeros", bias=False)
            )
            wide = width * factor
            if i > 0:
                level.append(DepthToSpace(wide, wide, triples[i - 1], kernel=kernel, remains="first", fill="zeros"))
                frames *= triples[i - 1][0]
            self.levels.append(level)
        self.leave = Chain(ConvNorm(wide, norm), CausalConv3d(wide, 3, kernel, fill="zeros"))

    def decode(self, latents: Tensor, cache: Cache | None = None) -> Tensor:
        start = not cache
        x = self.enter(latents, cache)
        for norm, level in zip(self.norms, self.levels, strict=True):
            x = level(norm(x, latents, start), cache)
        frames: Tensor = self.leave(x, cache)
        return frames


class ConditionedNorm(nn.Module):
    """Normalizes each frame or clip; deviation and mean of its cells give scale and shift of the channels.

    Args:
        dim: channels that are normalized.
        cells: channels of the cells.
        frames: frames of a row of cells, except the first, which has one.
        kind: whether the cells are those of the row of the frame, or of the clip.
    """

    def __init__(self, dim: int, cells: int, frames: int, kind: Literal["frame", "clip"]) -> None:
        super().__init__()
        self.norm, self.frames = ConvNorm(dim, kind, act=False, affine=False), frames if kind == "frame" else 1
        self.scale, self.shift = nn.Linear(cells, dim), nn.Linear(cells, dim)
        nn.init.ones_(self.scale.bias)

    def forward(self, x: Tensor, cells: Tensor, start: bool) -> Tensor:
        rows = cells.flatten(3) if self.norm.kind == "frame" else cells.flatten(2)[:, :, None]
        # A single cell has no deviation. The constant is for rows without one, whose gradient would not be finite.
        variance = rows.var(3, unbiased=rows.shape[3] > 1)
        scale = self.scale((variance + 1e-6).sqrt().transpose(1, 2))
        shift = self.shift(rows.mean(3).transpose(1, 2))
        drop = self.frames - 1 if start else 0
        scale, shift = (
            value.repeat_interleave(self.frames, 1)[:, drop:].transpose(1, 2)[..., None, None]
            for value in (scale, shift)
        )
        return self.norm(x) * scale + shift
