"""A decoder of single patches from their coordinates, which reads three planes of tokens."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from fewtokens.core.tokens import Tokens
from fewtokens.tokenizers.blocks.transformer import Block, checked_stride, grid_positions, make_norm, rotary_angles
from fewtokens.tokenizers.parts import Decoder


class Coordinates(Decoder):
    """Decodes patches of one frame from their coordinates (t,y,x), with features read bilinearly from three planes.

    The decoder of CoordTok (arXiv 2411.14762). Tokens are the cells of the planes (y,x), (y,t) and (x,t), in this order
    and each in raster order; any encoder that makes H*W + H*T + W*T tokens fits. The three features of a coordinate are
    concatenated, embedded with sines of its position, and go through transformer blocks.

    In training, the loss is the mean squared error of a few random coordinates, so that the cost does not grow with the
    video. If coordinates attend to each other, as in the paper, a patch depends on which others are decoded with it, so
    a subset of coordinates differs from the same patches of the whole video; otherwise they are equal.

    Args:
        dim: channels of a token.
        width: channels of the transformer.
        stride: frames, rows and columns of pixels of a cell of the encoder; a patch has these rows and columns.
        planes: T, H and W, the sides of the planes in cells.
        num_layers: number of blocks, pre-norm with 4 * `width` hidden channels.
        heads: attention heads; must divide `width`.
        attend: whether coordinates attend to each other. Default: True.
        samples: coordinates per video in training. Default: 1024.
    """

    full_grid = False

    def __init__(
        self,
        dim: int = 8,
        *,
        width: int = 384,
        stride: Sequence[int] = (4, 8, 8),
        planes: Sequence[int] = (32, 16, 16),
        num_layers: int = 12,
        heads: int = 6,
        attend: bool = True,
        samples: int = 1024,
    ) -> None:
        super().__init__()
        if len(planes) != 3 or min(planes) < 1:
            raise ValueError(f"planes must be T, H and W of at least 1, got {tuple(planes)}")
        if num_layers < 1 or samples < 1:
            raise ValueError(f"num_layers and samples must be at least 1, got {num_layers} and {samples}")
        if heads < 1 or width % heads or width % 2:
            raise ValueError(f"width must be even and a multiple of heads, got {width} and {heads}")
        self.dim, self.width, self.planes, self.num_layers = dim, width, planes, num_layers
        self.heads, self.attend, self.samples = heads, attend, samples
        self.stride = checked_stride(stride)
        self.embed = nn.Linear(3 * dim, width)
        # Each coordinate is a frame of one cell, so that attention within a frame is none between coordinates.
        kind = "full" if attend else "space"
        self.blocks = nn.ModuleList(Block(width, heads, kind, "vit") for _ in range(num_layers))
        self.norm, self.pixels_of_patch = make_norm(width, "vit"), nn.Linear(width, 3 * stride[1] * stride[2])

    @property
    def num_tokens(self) -> int:
        """The number of tokens of the three planes."""
        T, H, W = self.planes
        return H * W + H * T + W * T

    def forward(self, tokens: Tokens) -> Tensor:
        T, H, W = tokens.grid.shape
        every = grid_positions(T * self.stride[0], H, W, device=tokens.device).expand(tokens.B, -1, -1)
        return rearrange(self.patches(tokens, every), "b (t h w) c p q -> b t c (h p) (w q)", h=H, w=W)

    def losses(self, tokens: Tokens, frames: Tensor) -> dict[str, Tensor]:
        T, H, W = tokens.grid.shape
        every = grid_positions(T * self.stride[0], H, W, device=tokens.device)
        scores = torch.rand(tokens.B, len(every), device=tokens.device)
        index = scores.topk(min(self.samples, len(every)), 1).indices
        _, p, q = self.stride
        cells = rearrange(frames, "b t c (h p) (w q) -> b (t h w) c p q", p=p, q=q)
        target = cells[torch.arange(len(cells), device=index.device)[:, None], index]
        return {"coordinates": (self.patches(tokens, every[index]) - target).square().mean()}

    def patches(self, tokens: Tokens, coordinates: Tensor) -> Tensor:
        """Decodes the patches at some coordinates.

        Args:
            tokens: the tokens of the planes.
            coordinates: float [B,K,3], frame, row and column of patches, counted from 0 to those of the video.

        Returns:
            [B,K,3,rows,columns] of pixels, about -1..1.

        Raises:
            ValueError: the number of tokens is not that of the planes.
        """
        if self.num_tokens != tokens.N:
            raise ValueError(f"{self.name} reads planes of {self.num_tokens} tokens, got {tokens.N}; set planes")
        x = self.embed(self._read(tokens, coordinates))
        angles = rotary_angles(coordinates.flatten(0, 1), self.width, 3)
        positions = torch.cat([angles.sin(), angles.cos()], 1).unflatten(0, coordinates.shape[:2])
        x = (x + positions.to(x.dtype))[:, :, None, None]
        for block in self.blocks:
            x, _ = block(x, None)
        pixels: Tensor = self.pixels_of_patch(self.norm(x[:, :, 0, 0]))
        return rearrange(pixels, "b k (c p q) -> b k c p q", p=self.stride[1], q=self.stride[2])

    def _read(self, tokens: Tokens, coordinates: Tensor) -> Tensor:
        """The bilinear features of the three planes at coordinates [B,K,3], [B,K,3*C]."""
        T, H, W = self.planes
        grid = tokens.grid
        sizes = coordinates.new_tensor([grid.T * self.stride[0], grid.H, grid.W])
        t, y, x = ((coordinates + 0.5) / sizes * 2 - 1).unbind(-1)
        parts = tokens.features.split([H * W, H * T, W * T], 1)
        read = []
        for part, sides, column, row in zip(parts, ((H, W), (H, T), (W, T)), (x, t, t), (y, y, x), strict=True):
            plane = part.mT.unflatten(2, sides)
            place = torch.stack([column, row], -1)[:, None].to(plane.dtype)
            read.append(F.grid_sample(plane, place, padding_mode="border", align_corners=False)[:, :, 0].mT)
        return torch.cat(read, -1)
