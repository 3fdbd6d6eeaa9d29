"""A decoder of tokens to the occupancy of space, by three planes of features."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fewtokens.core.tokens import Tokens
from fewtokens.tokenizers.blocks.transformer import Block
from fewtokens.tokenizers.parts import Decoder


class Triplane(Decoder):
    """A transformer over the tokens and the cells of three planes, xy, xz and yz, which are then enlarged.

    The decoder of VAT (arXiv 2412.02202). The features of a point are the sum of those where it is projected to the
    planes, bilinearly; an MLP gives the logit of its occupancy.

    Args:
        dim: number of channels of a token.
        width, depth, heads: channels, blocks and attention heads of the transformer.
        plane: side of a plane in cells; enlarged four times.
        features: channels of the planes.
        resolution: points per side of the grid that `decode` returns.
    """

    full_grid = False

    def __init__(
        self, dim: int = 32, *, width: int = 512, depth: int = 8, heads: int = 8, plane: int = 32, features: int = 32,
        resolution: int = 64,
    ) -> None:  # fmt: skip
        super().__init__()
        self.dim, self.width, self.depth, self.heads = dim, width, depth, heads
        self.plane, self.features, self.resolution = plane, features, resolution
        self.stride = (1, 1, 1)
        self.embed = nn.Linear(dim, width)
        self.positions = nn.Parameter(0.02 * torch.randn(3 * plane**2, width))
        self.blocks = nn.ModuleList(Block(width, heads, "full", "vit") for _ in range(depth))
        self.norm = nn.LayerNorm(width, 1e-6)
        self.enlarge = nn.Sequential(
            nn.ConvTranspose2d(width, features, 4, 2, 1), nn.SiLU(), nn.ConvTranspose2d(features, features, 4, 2, 1)
        )
        self.head = nn.Sequential(
            nn.Linear(features, 2 * features), nn.SiLU(), nn.Linear(2 * features, 2 * features), nn.SiLU(),
            nn.Linear(2 * features, 1),
        )  # fmt: skip

    def planes(self, tokens: Tokens) -> Tensor:
        """The three planes, [B,3,features,4*plane,4*plane]."""
        x = torch.cat([self.embed(tokens.features), self.positions.expand(tokens.B, -1, -1)], 1)[:, None, None]
        for block in self.blocks:
            x, _ = block(x, None)
        cells = self.norm(x[:, 0, 0, tokens.N :]).mT.unflatten(2, (3, self.plane, self.plane)).transpose(1, 2)
        enlarged: Tensor = self.enlarge(cells.flatten(0, 1)).unflatten(0, (-1, 3))
        return enlarged

    def field(self, planes: Tensor, points: Tensor) -> Tensor:
        """The logits of occupancy [B,P] at points [B,P,3] in -1..1."""
        projected = torch.stack([points[..., [0, 1]], points[..., [0, 2]], points[..., [1, 2]]], 1)
        sampled = F.grid_sample(
            planes.flatten(0, 1).float(), projected.flatten(0, 1)[:, None], padding_mode="border", align_corners=False
        )
        logits: Tensor = self.head(sampled[:, :, 0].unflatten(0, (-1, 3)).sum(1).mT.to(planes.dtype))
        return logits[..., 0]

    def forward(self, tokens: Tokens) -> Tensor:
        """Decodes tokens to logits [B,X,Y,Z] at the centers of a grid of voxels in -1..1."""
        centers = grid_centers(self.resolution, tokens.device).expand(tokens.B, -1, -1)
        planes = self.planes(tokens)
        logits = torch.cat([self.field(planes, part) for part in centers.split(1 << 17, 1)], 1)
        return logits.unflatten(1, (self.resolution,) * 3)


def grid_centers(side: int, device: torch.device) -> Tensor:
    """The centers of the voxels of the cube -1..1, [side^3,3], x counting slowest."""
    line = (2 * torch.arange(side, device=device) + 1) / side - 1
    return torch.cartesian_prod(line, line, line)
