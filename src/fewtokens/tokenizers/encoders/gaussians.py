"""2-D Gaussians that sample a map of features and move to where they are needed."""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor, nn

from fewtokens.methods.learned.deformable_queries import DeformableAttention
from fewtokens.methods.ops.resample import feed_forward
from fewtokens.tokenizers.blocks.splat import GEOMETRY
from fewtokens.tokenizers.parts import VideoEncoder
from fewtokens.tokenizers.registry import build_part


class Gaussians(VideoEncoder):
    """Describes each frame by 2-D Gaussians: features, and a geometry of five scalars in 0..1, the last channels.

    The encoder of GaussianToken (arXiv 2501.15619). An encoder of images gives a map of features. One Gaussian begins
    in each square of `share` x `share` cells of it. In each round it samples the map around its place by deformable
    attention, an MLP follows, and a linear layer refines its geometry before the sigmoid. Gaussians do not attend to
    one another.

    Differs from the paper, whose first Gaussians are 256 learned ones: ours begin equal, on a regular grid, so that
    frames may have any size.

    Args:
        network: the encoder of images, as a spec such as "conv2d(64)".
        share: rows and columns of the map for each Gaussian.
        rounds: number of rounds.
        heads: attention heads; must divide the channels of the map.
        points: samples of a head.

    Raises:
        ValueError: an argument is out of range, or the network is not of images.
    """

    def __init__(
        self,
        network: str = "conv2d(64, mult=(1, 2, 2, 4))",
        *,
        share: int = 2,
        rounds: int = 3,
        heads: int = 4,
        points: int = 4,
    ) -> None:
        super().__init__()
        self.image: VideoEncoder = build_part("encoders", network)
        self.network, self.share, self.rounds, self.heads, self.points = network, share, rounds, heads, points
        width, (t, y, x) = self.image.dim, self.image.stride
        if t != 1 or min(share, rounds, points) < 1:
            raise ValueError("network must encode each frame separately, and share, rounds and points be at least 1")
        if heads < 1 or width % heads:
            raise ValueError(f"heads must divide the channels of the map, {width}, got {heads}")
        self.stride, self.causal = (1, share * y, share * x), self.image.causal
        self.query, self.shape = nn.Parameter(torch.randn(width)), nn.Parameter(torch.zeros(GEOMETRY - 2))
        self.stack = nn.ModuleList(_Round(width, heads, points) for _ in range(rounds))
        self.norm = nn.LayerNorm(width, 1e-6)

    @property
    def dim(self) -> int:
        return self.image.dim + GEOMETRY

    def latents(self, x: Tensor) -> Tensor:
        maps = rearrange(self.image.latents(x), "b c t h w -> (b t) 1 h w c")
        H, W = maps.shape[2] // self.share, maps.shape[3] // self.share
        rows, columns = ((torch.arange(n, device=x.device, dtype=maps.dtype) + 0.5) / n for n in (H, W))
        down, right = torch.meshgrid(rows.logit(), columns.logit(), indexing="ij")
        places = torch.stack([right, down], -1).flatten(0, 1)
        geometry = torch.cat([places, self.shape.expand(H * W, -1)], 1).expand(len(maps), -1, -1)
        queries = self.query.expand(len(maps), H * W, -1)
        for layer in self.stack:
            queries, geometry = layer(queries, geometry, maps)
        gaussians = torch.cat([self.norm(queries), geometry.sigmoid()], -1)
        return rearrange(gaussians, "(b t) (h w) c -> b c t h w", b=len(x), h=H)


class _Round(nn.Module):
    """Deformable attention from Gaussians to the map, an MLP, and a refinement of the geometry before the sigmoid."""

    def __init__(self, width: int, heads: int, points: int) -> None:
        super().__init__()
        self.embed = nn.Linear(GEOMETRY, width)
        self.norm1, self.attention = nn.LayerNorm(width, 1e-6), DeformableAttention(width, heads, 1, points)
        self.norm2, self.mlp = nn.LayerNorm(width, 1e-6), feed_forward(width)
        self.norm3, self.refine = nn.LayerNorm(width, 1e-6), nn.Linear(width, GEOMETRY)

    def forward(self, queries: Tensor, geometry: Tensor, maps: Tensor) -> tuple[Tensor, Tensor]:
        query = self.norm1(queries + self.embed(geometry))
        queries = queries + self.attention(query, geometry[..., :2].sigmoid(), maps)
        queries = queries + self.mlp(self.norm2(queries))
        return queries, geometry + self.refine(self.norm3(queries))
