"""Scalar quantization at several depths: each finer one is quantized given the decoded coarser ones."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fewtokens.core.grid import Grid
from fewtokens.core.method import Quantized, Quantizer, load_weights
from fewtokens.methods.ops.codes import library, straight_through

Three = tuple[int, int, int]


class HierarchicalFsq(Quantizer):
    """Quantizes cells, and blocks of cells at greater depths, from coarse to fine; FSQ at each depth.

    The rule of VQ-VAE-2 (arXiv 1906.00446), as HiTVideo (arXiv 2503.11513) has it for videos: h_1 are the tokens,
    h_(l+1) = E_l(h_l), and from the deepest on q_l = FSQ(W_l [h_l, Up d_(l+1)]), d_l = D_l [q_l, Up d_(l+1)]. The
    result is d_1. Depths, sizes and layers of HiTVideo are not published: here E, W and D are 3x3 convolutions within a
    frame, cells of a block are averaged before E, and the levels are those of Cosmos.

    A token has one code per depth, the finest first. The codes of a depth of n blocks are in raster order in the first
    n tokens of the video; the others have -1. For the content of the deeper depths alone, set the finer codes to -1.

    Args:
        levels: levels of each channel, as in `fsq`, at each depth.
        dim: channels of the tokens.
        strides: frames, rows and columns of cells of a block, relative to the depth above. Default: 4x8x8 cells become
            8x16x16, then 8x32x32.
        hidden: channels of the convolutions.
        first_frame: whether the first row of cells is a block in time alone, as in causal tokenizers. Default: True.
        dropout: fraction of the videos of a training batch that drop the codes of the finest depth, or of more, up to
            all but the coarsest. Without it the finest codes also determine the coarse content. Default: 0.
        checkpoint: path of a safetensors file with trained parameters; None initializes them randomly.
    """

    learned = True
    full_grid = True
    paper = "Generating Diverse High-Fidelity Images with VQ-VAE-2, arXiv 1906.00446; HiTVideo, arXiv 2503.11513"
    license = "written from the paper"
    cost = "O(N hidden^2)"

    def __init__(
        self,
        levels: Sequence[int] = (8, 8, 8, 5, 5, 5),
        *,
        dim: int = 384,
        strides: Sequence[Sequence[int]] = ((2, 2, 2), (1, 2, 2)),
        hidden: int = 64,
        first_frame: bool = True,
        dropout: float = 0.0,
        checkpoint: str | None = None,
    ) -> None:
        super().__init__()
        if not levels or min(levels) < 3 or math.prod(levels) >= 2**31:
            raise ValueError(f"levels must be at least 3 each, with fewer than 2**31 combinations, got {tuple(levels)}")
        if not strides or any(len(stride) != 3 or min(stride) < 1 for stride in strides):
            raise ValueError(f"strides must be frames, rows and columns of each greater depth, got {strides}")
        if hidden < 1:
            raise ValueError(f"hidden must be at least 1, got {hidden}")
        if not 0 <= dropout <= 1:
            raise ValueError(f"dropout must be in [0, 1], got {dropout}")
        self.levels, self.dim, self.strides, self.hidden = tuple(levels), dim, tuple(strides), hidden
        self.first_frame, self.dropout, self.checkpoint = first_frame, dropout, checkpoint
        self.scalars = library().FSQ(list(levels), return_indices=False)
        depths, channels = len(strides) + 1, len(levels)
        self.encoders = nn.ModuleList(_conv(dim if i == 0 else hidden, hidden) for i in range(depths))
        self.heads = nn.ModuleList(_conv(2 * hidden if i < depths - 1 else hidden, channels) for i in range(depths))
        self.decoders = nn.ModuleList(
            _conv(channels + (hidden if i < depths - 1 else 0), hidden) for i in range(depths)
        )
        self.out = nn.Linear(hidden, dim)
        load_weights(self, checkpoint)

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        return (math.prod(self.levels),) * len(self.encoders)

    @property
    def causal(self) -> bool:
        # A block of frames is quantized as a whole, and its codes are not next to its tokens.
        return False

    def shapes(self, grid: Grid) -> list[Three]:
        """Returns frames, rows and columns of the blocks of each depth in a grid, the finest first."""
        shapes, first = [grid.shape], int(self.first_frame)
        for t, y, x in self.strides:
            T, H, W = shapes[-1]
            shapes.append((first - (first - T) // t, -(-H // y), -(-W // x)))
        return shapes

    def planned_bits(self, grid: Grid, tokens: int) -> float:
        return sum(map(math.prod, self.shapes(grid))) * math.log2(self.codebook_sizes[0])

    def quantize(self, features: Tensor, mask: Tensor | None, grid: Grid) -> Quantized:
        B, N = features.shape[:2]
        real = features.new_ones(B, 1, *grid.shape, dtype=torch.float32)
        if mask is not None:
            real = mask.float().reshape(real.shape)
        with torch.autocast(features.device.type, enabled=False):
            x = features.float().transpose(1, 2).reshape(B, -1, *grid.shape)
            hidden, masks = [_apply(self.encoders[0], x)], [real]
            for encoder, stride in zip(self.encoders[1:], self.strides, strict=True):
                x, real = self._mean(hidden[-1], masks[-1], stride)
                hidden.append(_apply(encoder, F.silu(x)))
                masks.append(real)
            codes = torch.full((B, N, len(hidden)), -1, device=features.device)
            dropped = self._num_dropped(B, features.device)
            coarse = None
            for depth in reversed(range(len(hidden))):
                context: list[Tensor] = (
                    [] if coarse is None else [self._enlarged(coarse, depth, hidden[depth].shape[2:])]
                )
                head = _apply(self.heads[depth], F.silu(torch.cat([hidden[depth], *context], 1)))
                bounded = self.scalars.quantize(head.movedim(1, -1)[..., None, :])
                found = self.scalars.codes_to_indices(bounded.double()).long()[..., 0]  # [B,T,H,W]
                kept = (dropped <= depth)[:, None, None, None]
                found = found.masked_fill((masks[depth][:, 0] == 0) | ~kept, -1).flatten(1)
                codes[:, : found.shape[1], depth] = found
                values = self._values(found, hidden[depth].shape[2:])
                values = straight_through(values, bounded[..., 0, :].movedim(-1, 1) * kept[:, None])
                coarse = self._decoded(values, context, depth)
            assert coarse is not None
            return Quantized(self._output(coarse), codes, {})

    def lookup(self, codes: Tensor, grid: Grid) -> Tensor:
        coarse = None
        with torch.autocast(codes.device.type, enabled=False):
            for depth, shape in reversed(list(enumerate(self.shapes(grid)))):
                context: list[Tensor] = [] if coarse is None else [self._enlarged(coarse, depth, shape)]
                values = self._values(codes[:, : math.prod(shape), depth], shape)
                coarse = self._decoded(values, context, depth)
            assert coarse is not None
            return self._output(coarse)

    def _num_dropped(self, batch: int, device: torch.device) -> Tensor:
        """The number of depths, from the finest on, that each video drops, int64 [B]."""
        none = torch.zeros(batch, dtype=torch.int64, device=device)
        if not self.training or self.dropout == 0:
            return none
        some = torch.randint(1, len(self.encoders), (batch,), device=device)
        return torch.where(torch.rand(batch, device=device) < self.dropout, some, none)

    def _values(self, codes: Tensor, shape: Sequence[int]) -> Tensor:
        """The values [B,D,T,H,W] of codes [B,T*H*W]; 0 for -1."""
        values = self.scalars._indices_to_codes(codes.clamp(min=0)[..., None])[..., 0, :].float()
        return values.masked_fill(codes[..., None] < 0, 0).transpose(1, 2).unflatten(2, tuple(shape))

    def _decoded(self, values: Tensor, context: list[Tensor], depth: int) -> Tensor:
        return F.silu(_apply(self.decoders[depth], torch.cat([values, *context], 1)))

    def _output(self, x: Tensor) -> Tensor:
        """Features [B,N,C] of the decoded finest depth."""
        cells = x.flatten(2).transpose(1, 2)
        features: Tensor = self.out(cells.to(self.out.weight.dtype))
        return features.float()

    def _mean(self, x: Tensor, real: Tensor, stride: Sequence[int]) -> tuple[Tensor, Tensor]:
        """The mean over the real cells of each block, and which blocks have any."""
        front = stride[0] - 1 if self.first_frame else 0
        sizes = [front + x.shape[2], *x.shape[3:]]
        back = [-size % step for size, step in zip(sizes, stride, strict=True)]
        edges = (0, back[2], 0, back[1], front, back[0])
        total = F.avg_pool3d(F.pad(x * real, edges), tuple(stride))
        share = F.avg_pool3d(F.pad(real, edges), tuple(stride))
        return total / share.clamp(min=1e-6), (share > 0).float()

    def _enlarged(self, x: Tensor, depth: int, shape: Sequence[int]) -> Tensor:
        """The blocks of the next depth, repeated to the shape of this one."""
        stride = self.strides[depth]
        for axis, step in enumerate(stride, 2):
            x = x.repeat_interleave(step, axis)
        front = stride[0] - 1 if self.first_frame else 0
        return x[:, :, front : front + shape[0], : shape[1], : shape[2]]


def _conv(dim: int, out: int) -> nn.Conv3d:
    """A 3x3 convolution within each frame; edges are replicated, so that a constant frame remains constant."""
    return nn.Conv3d(dim, out, (1, 3, 3), padding=(0, 1, 1), padding_mode="replicate")


def _apply(layer: nn.Module, x: Tensor) -> Tensor:
    """Applies a convolution in the dtype of its weights; returns float32."""
    convolved: Tensor = layer(x.to(next(layer.parameters()).dtype))
    return convolved.float()
