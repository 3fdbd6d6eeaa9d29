"""Convolutions over frames, rows and columns that are causal in time, and caches to process a video in chunks."""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# The last inputs of each layer of a network, which its next outputs depend on. It is empty before the first chunk.
Cache = dict[nn.Module, Tensor]
Fill = Literal["first", "zeros"]
Three = tuple[int, int, int]
# Of a convolution: frames, rows and columns, or 1x3x3 and then 3x1x1.
Kernel = Three | Literal["factorized"]


class CausalConv3d(nn.Conv3d):
    """A 3-D convolution whose output at a frame depends on no later frame.

    With the stride s in time, 1 + m s frames become 1 + m, where the first output sees only the first frame; or, if not
    `first_frame`, m s frames become m. Rows and columns are padded with zeros, and divided by their stride.

    Args:
        dim, out: channels of input and output.
        kernel, stride: frames, rows and columns.
        first_frame: whether the first frame has a separate output.
        fill: what stands before the first frame: "first" repeats it, "zeros" are zeros.
        causal: whether all padding in time is in front. If False, it is symmetric and zero.
        centered: whether rows and columns have k // 2 zeros on both sides. If False, they have k - s in total, of which
            the larger half is at the end. They differ only for a stride above 1.
        bias: whether a learned constant is added.
    """

    def __init__(
        self,
        dim: int,
        out: int,
        kernel: Three = (3, 3, 3),
        *,
        stride: Three = (1, 1, 1),
        first_frame: bool = True,
        fill: Fill = "first",
        causal: bool = True,
        centered: bool = False,
        bias: bool = True,
    ) -> None:
        super().__init__(dim, out, kernel, stride, bias=bias)
        self.fill, self.causal = fill, causal
        self.front = kernel[0] - 1 if first_frame else kernel[0] - stride[0]
        # Of an odd sum, the larger half is at the end.
        totals = [2 * (k // 2) if centered else k - s for k, s in zip(kernel[:0:-1], stride[:0:-1], strict=True)]
        self.edges = [n for total in totals for n in (total // 2, (total + 1) // 2)]
        if not causal:
            self.edges += [self.front // 2, (self.front + 1) // 2]

    def forward(self, x: Tensor, cache: Cache | None = None) -> Tensor:
        if self.causal:
            x = with_past(self, x, self.front, self.kernel_size[0], self.stride[0], cache, self.fill)
        before, after = self.edges[::2], self.edges[1::2]
        padding = [0, 0, 0]
        if before == after:
            padding[3 - len(before) :] = before[::-1]
        else:
            x = F.pad(x, self.edges)
        convolved: Tensor
        # On CPUs, convolutions over some of the axes are faster as 2-D ones; but in channels-last, gradients of those
        # that read several frames are slow.
        train = torch.is_grad_enabled() and (x.requires_grad or self.weight.requires_grad) and x.device.type == "cpu"
        if self.kernel_size[0] == self.stride[0] == 1:
            frames = x.transpose(1, 2).flatten(0, 1)
            convolved = F.conv2d(frames, self.weight[:, :, 0], self.bias, self.stride[1:], padding[1:])
            return convolved.unflatten(0, (x.shape[0], -1)).transpose(1, 2)
        if self.kernel_size[1:] == self.stride[1:] == (1, 1):
            if train:
                return _linear_over_time(x, self.weight[..., 0, 0], self.bias, self.stride[0], padding[0])
            columns = x.movedim(1, -1).flatten(2, 3).movedim(-1, 1)
            convolved = F.conv2d(columns, self.weight[..., 0], self.bias, (self.stride[0], 1), (padding[0], 0))
            return convolved.unflatten(3, x.shape[3:])
        if train:
            x = x.contiguous()
        convolved = F.conv3d(x, self.weight, self.bias, self.stride, padding)
        return convolved


def _linear_over_time(x: Tensor, weight: Tensor, bias: Tensor | None, stride: int, padding: int) -> Tensor:
    """A convolution of x [B,C,T,H,W] over frames as a linear layer of neighboring frames; weight: [out,C,kernel]."""
    frames = F.pad(x.movedim(1, -1), (0, 0) * 3 + (padding,) * 2)
    neighbors = frames.unfold(1, weight.shape[-1], stride).movedim(-1, -2).flatten(-2)
    return F.linear(neighbors, weight.transpose(1, 2).flatten(1), bias).movedim(-1, 1)


def with_past(
    layer: nn.Module,
    x: Tensor,
    front: int,
    kernel: int,
    stride: int = 1,
    cache: Cache | None = None,
    fill: Fill = "first",
) -> Tensor:
    """Puts in front of x the earlier frames that a causal layer reads.

    Args:
        layer: the layer; its frames have this key in the cache.
        x: [B,C,T,H,W], a whole video if there is no cache, else the next chunk.
        front: frames that stand before the first frame of a video.
        kernel, stride: frames of the layer.
        cache: frames of the previous chunks; receives those that the next chunk reads.
        fill: what stands before the first frame, see `CausalConv3d`.
    """
    if cache is not None and layer in cache:
        x = torch.cat([cache[layer], x], 2)
    elif front:
        first = x[:, :, :1]
        # Not expanded, so that the result has the memory format of x.
        x = torch.cat([first if fill == "first" else torch.zeros_like(first)] * front + [x], 2)
    if cache is not None:
        outputs = (x.shape[2] - kernel) // stride + 1
        # A copy, so that the chunk itself can be freed.
        cache[layer] = x[:, :, outputs * stride :].clone()
    return x


class Chain(nn.Sequential):
    """Layers one after another, each called with the cache."""

    def forward(self, x: Tensor, cache: Cache | None = None) -> Tensor:
        for layer in self:
            x = layer(x, cache)
        return x


class FactorizedConv3d(Chain):
    """A convolution over rows and columns, then one over frames. Options: of `CausalConv3d`."""

    def __init__(self, dim: int, out: int, **options: Any) -> None:
        super().__init__(CausalConv3d(dim, out, (1, 3, 3), **options), CausalConv3d(out, out, (3, 1, 1), **options))


class DepthToSpace(nn.Module):
    """A causal convolution to more channels, which become frames, rows and columns.

    1 + m frames become 1 + m s: of the first s, only one remains, in MAGVIT-v2 (arXiv 2310.05737) the last, in the code
    of Open-MAGVIT2 (arXiv 2409.04410) the first.

    Args:
        dim, out: channels of input and output.
        factor: s for frames, rows and columns.
        kernel: of the convolution.
        first_frame: whether the first frame becomes one frame. If False, it becomes s like the others.
        remains: which of the first s frames remains if it does.
        fill, causal: see `CausalConv3d`.
    """

    def __init__(
        self,
        dim: int,
        out: int,
        factor: Three,
        *,
        kernel: Three = (3, 3, 3),
        first_frame: bool = True,
        remains: Literal["first", "last"] = "last",
        fill: Fill = "first",
        causal: bool = True,
    ) -> None:
        super().__init__()
        self.factor, self.drop, self.remains = factor, factor[0] - 1 if first_frame else 0, remains
        self.conv = CausalConv3d(dim, out * factor[0] * factor[1] * factor[2], kernel, fill=fill, causal=causal)

    def forward(self, x: Tensor, cache: Cache | None = None) -> Tensor:
        start = cache is None or self.conv not in cache
        p, q, r = self.factor
        B, _, T, H, W = x.shape
        spread = self.conv(x, cache).unflatten(1, (-1, p, q, r)).permute(0, 1, 5, 2, 6, 3, 7, 4)
        spread = spread.reshape(B, -1, T * p, H * q, W * r)
        if not start or not self.drop:
            return spread
        if self.remains == "last":
            return spread[:, :, self.drop :]
        return torch.cat([spread[:, :, :1], spread[:, :, p:]], 2)


class Repeat(nn.Module):
    """Repeats each cell `factor` times along frames, rows and columns."""

    def __init__(self, factor: Three) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor, cache: Cache | None = None) -> Tensor:
        for axis, count in enumerate(self.factor, 2):
            x = x.repeat_interleave(count, axis) if count > 1 else x
        return x


def convolution(dim: int, out: int, kernel: Kernel, **options: Any) -> nn.Module:
    """A causal convolution with a kernel. Options: of `CausalConv3d`."""
    if kernel == "factorized":
        return FactorizedConv3d(dim, out, **options)
    return CausalConv3d(dim, out, kernel, **options)


def check_counts(**counts: int) -> None:
    """Raises ValueError if a count is below 1."""
    for name, count in counts.items():
        if count < 1:
            raise ValueError(f"{name} must be at least 1, got {count}")
