"""Deformable queries: learned queries that sample a few places of each frame by deformable attention."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fewtokens.core.method import Resampled, Resampler, load_weights
from fewtokens.core.tokens import Tokens
from fewtokens.methods.ops.per_frame import check_dim, resample_frames, to_frames
from fewtokens.methods.ops.resample import check_counts, feed_forward, fitting_heads


class DeformableQueries(Resampler):
    """Resamples each frame to learned queries, which sample its features at a few learned places.

    The encoder of VFMTok (arXiv 2507.08441) with the deformable attention of Deformable DETR (arXiv 2010.04159). The
    channels of a token are those of several layers of an image encoder, one after another; each layer has an MLP and a
    LayerNorm. In each layer of the method, a head of a query samples all of them bilinearly at `points` places around
    the query's place and sums the samples with learned weights. An MLP follows. Queries do not attend to one another,
    so that a token depends only on the features at its samples.

    Differs from Deformable DETR: samples outside the frame take the value at its edge instead of 0. Not stated by the
    paper and chosen here: the places of queries are learned and begin as a regular grid.

    Attribution: the mean over layers, heads and levels of the bilinear weights of the samples.

    Args:
        keep: number of tokens per frame, written "256/frame".
        dim: channels of the features.
        width: channels of the new tokens. Default: None, `dim` / `levels`.
        levels: number of equal groups of channels, each of a layer of the encoder. Default: 1; VFMTok has 4.
        layers: number of layers.
        heads: maximum number of attention heads; the largest number up to this that divides the width is used.
        points: number of samples of a head in each group of channels.
        checkpoint: path of a safetensors file with trained parameters; None initializes them randomly.
    """

    learned = True
    full_grid = True
    paper = "Vision Foundation Models as Effective Visual Tokenizers for Autoregressive Generation, arXiv 2507.08441"
    license = "written from the papers; reference code Apache-2.0"
    cost = "per frame: H*W*C*(hidden MLPs) + per layer 4*M*points*levels*width for M queries"

    def __init__(
        self,
        keep: int | str = "256/frame",
        *,
        dim: int = 384,
        width: int | None = None,
        levels: int = 1,
        layers: int = 6,
        heads: int = 8,
        points: int = 4,
        checkpoint: str | None = None,
    ) -> None:
        super().__init__()
        self.set_budget(keep, units=("per frame",))
        assert self.budget is not None
        check_counts(levels=levels, layers=layers, heads=heads, points=points)
        if dim % levels:
            raise ValueError(f"levels must divide the number of channels, {dim}, got {levels}")
        width = dim // levels if width is None else width
        check_counts(width=width)
        self.dim, self.width, self.levels, self.layers = dim, width, levels, layers
        self.heads, self.points, self.checkpoint = heads, points, checkpoint
        count = int(self.budget.value)
        self.queries = nn.Parameter(torch.randn(count, width))
        self.places = nn.Parameter(_regular(count))
        self.inputs = nn.ModuleList(
            nn.Sequential(
                nn.Linear(dim // levels, width), nn.GELU(), nn.Linear(width, width), nn.LayerNorm(width, 1e-6)
            )
            for _ in range(levels)
        )  # fmt: skip
        self.stack = nn.ModuleList(_Layer(width, fitting_heads(width, heads), levels, points) for _ in range(layers))
        self.norm = nn.LayerNorm(width, 1e-6)
        load_weights(self, checkpoint)

    @property
    def out_dim(self) -> int:
        """The number of channels of the new tokens."""
        return self.width

    def resample(self, tokens: Tokens, **cues: Any) -> Resampled:
        check_dim(self.name, tokens.C, self.dim)
        x = to_frames(tokens).to(self.queries.dtype)
        levels = [layer(part) for layer, part in zip(self.inputs, x.chunk(self.levels, -1), strict=True)]
        features = torch.stack(levels, 1)  # [F,levels,H,W,width]
        queries = self.queries.expand(len(x), -1, -1)
        maps = x.new_zeros(len(x), len(self.queries), math.prod(x.shape[1:3]))
        for layer in self.stack:
            queries = layer(queries, self.places, features, maps)
        return resample_frames(tokens, maps / self.layers, self.norm(queries))


def _regular(count: int) -> Tensor:
    """x and y in 0..1 of a regular grid of at least `count` cells, the first ones in raster order, [count,2]."""
    columns = math.ceil(math.sqrt(count))
    rows = -(-count // columns)
    index = torch.arange(count)
    return torch.stack([(index % columns + 0.5) / columns, (index // columns + 0.5) / rows], 1)


class _Layer(nn.Module):
    """Deformable attention from queries to the features of a frame, and an MLP."""

    def __init__(self, width: int, heads: int, levels: int, points: int) -> None:
        super().__init__()
        self.norm1, self.attention = nn.LayerNorm(width, 1e-6), DeformableAttention(width, heads, levels, points)
        self.norm2, self.mlp = nn.LayerNorm(width, 1e-6), feed_forward(width)

    def forward(self, queries: Tensor, places: Tensor, features: Tensor, maps: Tensor) -> Tensor:
        queries = queries + self.attention(self.norm1(queries), places, features, maps)
        updated: Tensor = queries + self.mlp(self.norm2(queries))
        return updated


class DeformableAttention(nn.Module):
    """Multi-scale deformable attention (Deformable DETR, arXiv 2010.04159, section 4.1), with levels of equal size.

    Args:
        width: channels of queries, features and output.
        heads, levels, points: see `DeformableQueries`.
    """

    def __init__(self, width: int, heads: int, levels: int, points: int) -> None:
        super().__init__()
        self.heads, self.levels, self.points = heads, levels, points
        self.value, self.out = nn.Linear(width, width), nn.Linear(width, width)
        # x and y in cells.
        self.offsets = nn.Linear(width, heads * levels * points * 2)
        self.weights = nn.Linear(width, heads * levels * points)
        nn.init.zeros_(self.offsets.weight)
        nn.init.zeros_(self.weights.weight)
        nn.init.zeros_(self.weights.bias)
        # Each head begins in another direction, and its points at growing distances.
        angle = 2 * math.pi * torch.arange(heads) / heads
        direction = torch.stack([angle.cos(), angle.sin()], 1)
        direction = direction / direction.abs().amax(1, keepdim=True)
        distance = torch.arange(1, points + 1)[:, None].float()
        start = (direction[:, None, None] * distance).expand(heads, levels, points, 2)
        with torch.no_grad():
            self.offsets.bias.copy_(start.flatten())

    def forward(self, queries: Tensor, places: Tensor, features: Tensor, maps: Tensor | None = None) -> Tensor:
        """Samples features around the places of queries.

        Args:
            queries: [F,M,width].
            places: [M,2] or [F,M,2], x and y in 0..1.
            features: [F,levels,H,W,width].
            maps: [F,M,H*W], to which the bilinear weights of all samples, averaged over heads, are added in place.

        Returns:
            [F,M,width].
        """
        frames, count, _ = queries.shape
        levels, H, W = features.shape[1:4]
        size = queries.new_tensor([W, H])
        shape = (frames, count, self.heads, levels, self.points)
        offsets = self.offsets(queries).reshape(*shape, 2)
        weights = self.weights(queries).reshape(frames, count, self.heads, -1).softmax(-1).reshape(shape)
        places = places[..., None, None, None, :] + offsets / size
        value = self.value(features).unflatten(-1, (self.heads, -1)).permute(0, 4, 1, 5, 2, 3).flatten(0, 2)
        grid = (2 * places - 1).permute(0, 2, 3, 1, 4, 5).flatten(0, 2)  # [F*heads*levels,M,points,2]
        samples = F.grid_sample(value, grid, padding_mode="border", align_corners=False)
        samples = samples.unflatten(0, (frames, self.heads, levels))  # [F,heads,levels,d,M,points]
        mixed = torch.einsum("fhldmp,fmhlp->fmhd", samples, weights).flatten(2)
        if maps is not None:
            _add_bilinear(maps, places.detach(), weights.detach() / self.heads, size)
        output: Tensor = self.out(mixed)
        return output


def _add_bilinear(maps: Tensor, places: Tensor, weights: Tensor, size: Tensor) -> None:
    """Adds weights [F,M,...] of samples at places [F,M,...,2] in 0..1 to the four cells around each, [F,M,H*W]."""
    pixel = (places * size - 0.5).clamp(min=0).minimum(size - 1)
    corner = pixel.floor()
    part = pixel - corner
    for right in (0, 1):
        for down in (0, 1):
            x, y = (corner + corner.new_tensor([right, down])).minimum(size - 1).long().unbind(-1)
            share = (part[..., 0] if right else 1 - part[..., 0]) * (part[..., 1] if down else 1 - part[..., 1])
            index = (y * int(size[0]) + x).flatten(2)
            maps.scatter_add_(2, index, (weights * share).flatten(2).to(maps.dtype))
