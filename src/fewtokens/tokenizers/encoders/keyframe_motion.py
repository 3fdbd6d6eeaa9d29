"""Tokens of a keyframe and of the motion of the frames after it."""

from __future__ import annotations

from typing import Literal

import torch
from einops import rearrange
from torch import Tensor, nn

from fewtokens.core.grid import Grid
from fewtokens.tokenizers.blocks.motion_transformer import STRIDE, MotionEncoder
from fewtokens.tokenizers.blocks.motion_vectors import BLOCK, codec_vectors, match_blocks, normalize
from fewtokens.tokenizers.parts import VideoEncoder
from fewtokens.tokenizers.registry import build_part


class KeyframeMotion(VideoEncoder):
    """Encodes the first frame by an encoder of images, and the motion vectors of 8 k further ones by a transformer.

    Video-LaVIT (arXiv 2402.03161). A cell is a square of 64 pixels: its first rows in time are the tokens of the first
    frame there, in raster order, 16 if the encoder of images has patches of 16 pixels; then follows one token for
    every 8 further frames.

    Args:
        keyframe: the encoder of the first frame, as a spec such as "conv_down(32)"; the side of its patches divides 64.
        channels: channels of a token; linear layers and a small MLP lead to them.
        width, depth, heads: channels, blocks per stage and attention heads of the transformer.
        vectors: "blocks" for block matching, up to 7 pixels; "mpeg4" for those of the codec, as in the paper.
    """

    first_frame = True

    def __init__(
        self,
        keyframe: str = "conv_down(32)",
        *,
        channels: int = 32,
        width: int = 512,
        depth: int = 3,
        heads: int = 8,
        vectors: Literal["blocks", "mpeg4"] = "blocks",
    ) -> None:
        super().__init__()
        self.image: VideoEncoder = build_part("encoders", keyframe)
        self.stride = (STRIDE[0], BLOCK * STRIDE[1], BLOCK * STRIDE[2])
        self.slots = keyframe_slots(self.image.stride, self.stride)
        self.keyframe, self.channels, self.vectors = keyframe, channels, vectors
        self.width, self.depth, self.heads = width, depth, heads
        self.join = nn.Linear(self.image.dim, channels)
        self.motion = MotionEncoder(channels, width=width, depth=depth, heads=heads)

    @property
    def dim(self) -> int:
        return self.channels

    def cells(self, frames: int, height: int, width: int) -> tuple[int, int, int]:
        T, H, W = super().cells(frames, height, width)
        return T - 1 + self.slots, H, W

    def pixels(self, grid: Grid) -> tuple[int, int, int]:
        return super().pixels(Grid(grid.T + 1 - self.slots, grid.H, grid.W))

    def first_frames(self, rows: int) -> Tensor:
        slots = torch.zeros(self.slots, dtype=torch.int64)
        return torch.cat([slots, super().first_frames(rows - self.slots + 1)[1:]])

    def fields(self, frames: Tensor) -> Tensor:
        """The normalized motion vectors [B,T-1,2,H,W] of frames [B,T,3,height,width] in -1..1; without a gradient."""
        with torch.no_grad():
            unit = (frames + 1) / 2
            found = match_blocks(unit) if self.vectors == "blocks" else codec_vectors(unit)
            return normalize(found, *frames.shape[-2:])

    def latents(self, x: Tensor) -> Tensor:
        image = self.image.latents(x[:, :, :1]).movedim(1, -1)[:, 0]
        side = self.stride[1] // self.image.stride[1]
        first = rearrange(self.join(image), "b (h p) (w q) c -> b c (p q) h w", p=side, q=side)
        if x.shape[2] == 1:
            return first
        motion = self.motion(self.fields(x.transpose(1, 2)))
        return torch.cat([first, motion.movedim(-1, 1)], 2)


def keyframe_slots(patch: tuple[int, int, int], stride: tuple[int, int, int]) -> int:
    """The tokens of the keyframe in a cell.

    Raises:
        ValueError: patches of several frames, or that do not divide a cell.
    """
    if patch[0] != 1 or patch[1] != patch[2] or stride[1] % patch[1]:
        raise ValueError(f"the keyframe must have square patches whose side divides {stride[1]}, got {patch}")
    return (stride[1] // patch[1]) ** 2
