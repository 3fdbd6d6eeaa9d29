"""The Inception network of FID, for weights in the layout of torch-fidelity and pytorch-fid."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Kernel = int | tuple[int, int]
# Suffix of the name, channels, kernel; stride 2 pads nothing.
Unit = tuple[str, int, Kernel, int]
# Units of one step are parallel, steps are a chain.
Chain = tuple[tuple[Unit, ...], ...]

_ACROSS, _DOWN = (1, 7), (7, 1)


class InceptionV3(nn.Module):
    """Features [n,2048] of uint8 images [n,3,H,W]: Inception v3 (arXiv 1512.00567) as ported from TensorFlow for FID.

    Differs from torchvision's: images are resized to 299x299 as TensorFlow 1 does (corners not aligned, no half-pixel
    offset), average pooling leaves the padding out, and the last block has max pooling. The names of parameters are
    those of `weights-inception-2015-12-05-6726825d.pth` of torch-fidelity; its classifier `fc` is not used.
    """

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = _Convolution(3, 32, 3, 2)
        self.Conv2d_2a_3x3 = _Convolution(32, 32, 3, 1, padded=False)
        self.Conv2d_2b_3x3 = _Convolution(32, 64, 3, 1)
        self.Conv2d_3b_1x1 = _Convolution(64, 80, 1, 1)
        self.Conv2d_4a_3x3 = _Convolution(80, 192, 3, 1, padded=False)
        self.Mixed_5b = _first(192, 32)
        self.Mixed_5c = _first(256, 64)
        self.Mixed_5d = _first(288, 64)
        self.Mixed_6a = _Block(
            288,
            {
                "branch3x3": _chain(("", 384, 3, 2)),
                "branch3x3dbl": _chain(("_1", 64, 1, 1), ("_2", 96, 3, 1), ("_3", 96, 3, 2)),
            },
        )
        self.Mixed_6b = _middle(128)
        self.Mixed_6c = _middle(160)
        self.Mixed_6d = _middle(160)
        self.Mixed_6e = _middle(192)
        self.Mixed_7a = _Block(
            768,
            {
                "branch3x3": _chain(("_1", 192, 1, 1), ("_2", 320, 3, 2)),
                "branch7x7x3": _chain(
                    ("_1", 192, 1, 1), ("_2", 192, _ACROSS, 1), ("_3", 192, _DOWN, 1), ("_4", 192, 3, 2)
                ),
            },
        )
        self.Mixed_7b = _last(1280, "avg")
        self.Mixed_7c = _last(2048, "max")

    def forward(self, images: Tensor) -> Tensor:
        x = (_resize(images.float(), 299) - 128) / 128
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(F.max_pool2d(x, 3, 2)))
        x = F.max_pool2d(x, 3, 2)
        for name, block in self.named_children():
            if name.startswith("Mixed"):
                x = block(x)
        return x.mean((2, 3))


class _Convolution(nn.Module):
    """Convolution, batch normalization, ReLU; "same" padding unless the stride is 2 or `padded` is False."""

    def __init__(self, inputs: int, outputs: int, kernel: Kernel, stride: int, *, padded: bool = True) -> None:
        super().__init__()
        size = (kernel, kernel) if isinstance(kernel, int) else kernel
        padding = (size[0] // 2, size[1] // 2) if padded and stride == 1 else 0
        self.conv = nn.Conv2d(inputs, outputs, size, stride=stride, padding=padding, bias=False)
        self.bn = nn.BatchNorm2d(outputs, eps=0.001)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)))


class _Block(nn.Module):
    """Parallel chains and a pooling, concatenated.

    Args:
        inputs: channels.
        chains: by the name of their units.
        pool: channels of the convolution after pooling; 0 for max pooling with stride 2 without one.
        kind: "avg" or "max" pooling before that convolution.
    """

    def __init__(self, inputs: int, chains: dict[str, Chain], pool: int = 0, kind: str = "avg") -> None:
        super().__init__()
        self.chains = {
            name: [[f"{name}{suffix}" for suffix, *_ in step] for step in chain] for name, chain in chains.items()
        }
        self.kind = kind
        for name, chain in chains.items():
            width = inputs
            for step in chain:
                for suffix, outputs, kernel, stride in step:
                    self.add_module(f"{name}{suffix}", _Convolution(width, outputs, kernel, stride))
                width = sum(outputs for _, outputs, _, _ in step)
        self.branch_pool = _Convolution(inputs, pool, 1, 1) if pool else None

    def forward(self, x: Tensor) -> Tensor:
        parts = []
        for chain in self.chains.values():
            y = x
            for step in chain:
                y = torch.cat([self.get_submodule(name)(y) for name in step], 1)
            parts.append(y)
        if self.branch_pool is None:
            parts.append(F.max_pool2d(x, 3, 2))
        elif self.kind == "max":
            parts.append(self.branch_pool(F.max_pool2d(x, 3, 1, 1)))
        else:
            parts.append(self.branch_pool(F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)))
        return torch.cat(parts, 1)


def _chain(*units: Unit) -> Chain:
    return tuple((unit,) for unit in units)


def _first(inputs: int, pool: int) -> _Block:
    chains = {
        "branch1x1": _chain(("", 64, 1, 1)),
        "branch5x5": _chain(("_1", 48, 1, 1), ("_2", 64, 5, 1)),
        "branch3x3dbl": _chain(("_1", 64, 1, 1), ("_2", 96, 3, 1), ("_3", 96, 3, 1)),
    }
    return _Block(inputs, chains, pool)


def _middle(width: int) -> _Block:
    chains = {
        "branch1x1": _chain(("", 192, 1, 1)),
        "branch7x7": _chain(("_1", width, 1, 1), ("_2", width, _ACROSS, 1), ("_3", 192, _DOWN, 1)),
        "branch7x7dbl": _chain(
            ("_1", width, 1, 1), ("_2", width, _DOWN, 1), ("_3", width, _ACROSS, 1), ("_4", width, _DOWN, 1),
            ("_5", 192, _ACROSS, 1),
        ),
    }  # fmt: skip
    return _Block(768, chains, 192)


def _last(inputs: int, kind: str) -> _Block:
    def split(number: int) -> tuple[Unit, ...]:
        return (f"_{number}a", 384, (1, 3), 1), (f"_{number}b", 384, (3, 1), 1)

    chains: dict[str, Chain] = {
        "branch1x1": _chain(("", 320, 1, 1)),
        "branch3x3": (*_chain(("_1", 384, 1, 1)), split(2)),
        "branch3x3dbl": (*_chain(("_1", 448, 1, 1), ("_2", 384, 3, 1)), split(3)),
    }
    return _Block(inputs, chains, 192, kind)


def _resize(x: Tensor, size: int) -> Tensor:
    """Bilinear as in TensorFlow 1: output pixel i reads position i * input / size, beyond the last pixel that one."""
    for dim in (2, 3):
        length = x.shape[dim]
        position = torch.arange(size, device=x.device) * (length / size)
        low = position.long()
        part = (position - low).view([-1 if axis == dim else 1 for axis in range(4)])
        a, b = x.index_select(dim, low), x.index_select(dim, (low + 1).clamp(max=length - 1))
        x = a + (b - a) * part
    return x
