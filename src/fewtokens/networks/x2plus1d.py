"""X(2+1)D-M for videos, with TokenLearner, a Vector Transformer and TokenFuser inside its bottlenecks.

The geometry of X3D-M (arXiv 2004.04730) with each 3-D convolution split into a 3x3 spatial and a 3 temporal one,
dense, without squeeze-and-excitation, with ReLU (TokenLearner, arXiv 2106.11297, section 6). The modules between the
two 1x1x1 convolutions of a unit are specified by names joined with "+":

    conv2d  conv1d  spatial  temporal  joint  tokenlearner

"conv2d+conv1d" is the baseline, "conv2d+tokenlearner" and "tokenlearner" are those of the paper.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from fewtokens.encoders.frames import normalize, to_unit
from fewtokens.networks.base import Model

PARTS = ("conv2d", "conv1d", "spatial", "temporal", "joint", "tokenlearner")
READINGS = ("paper_fit", "paper_text")


@dataclass(frozen=True)
class X2plus1dConfig:
    """Hyperparameters of the network; defaults are size M, as in the paper's tables.

    Attributes:
        stem: channels of the stem.
        depths, dims, inner: number of units, output channels and inner channels of each stage.
        last, hidden: channels of the last convolution and of the layer before the classifier.
        num_classes: number of outputs.
        module: modules of the replaced units, joined with "+".
        replaced: 0-based indices of the units of the last stage that use `module`. The paper's totals fit exactly
            three; it does not specify which, so the last three are the default.
        reading: interpretation of the TokenLearner module. "paper_fit" reproduces the parameters and FLOPs of the
            paper's tables (a value projection, 3x3 convolutions for both maps, mixing within a frame); "paper_text"
            follows the text (no value projection, one 1x1 convolution, mixing over the clip).
        num_tokens: number of tokens per frame.
        num_frames: frames per clip, which "paper_text" mixes.
        keys: channels of queries and keys in attention modules, over all heads.
        num_heads: heads of the attention modules.
        mean, std: normalization of pixels, RGB in 0..1.
    """

    stem: int = 24
    depths: tuple[int, ...] = (3, 5, 11, 7)
    dims: tuple[int, ...] = (24, 48, 96, 192)
    inner: tuple[int, ...] = (54, 108, 216, 432)
    last: int = 432
    hidden: int = 2048
    num_classes: int = 157
    module: str = "conv2d+tokenlearner"
    replaced: tuple[int, ...] = (4, 5, 6)
    reading: str = "paper_fit"
    num_tokens: int = 8
    num_frames: int = 64
    keys: int = 128
    num_heads: int = 8
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)

    def __post_init__(self) -> None:
        for name in ("depths", "dims", "inner", "replaced", "mean", "std"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if not 0 < len(self.depths) == len(self.dims) == len(self.inner):
            raise ValueError(
                f"depths, dims and inner must have one entry per stage, got {self.depths}, {self.dims}, {self.inner}"
            )
        counts = (
            self.stem,
            self.last,
            self.hidden,
            self.num_classes,
            self.num_tokens,
            self.num_frames,
            self.keys,
            self.num_heads,
        )
        if min(*self.depths, *self.dims, *self.inner, *counts) < 1 or min(self.std) <= 0:
            raise ValueError("channels, units, classes, tokens, frames, keys and heads must be at least 1, std above 0")
        if self.reading not in READINGS:
            raise ValueError(f"reading must be one of {', '.join(READINGS)}, got {self.reading!r}")
        if unknown := [part for part in self.module.split("+") if part not in PARTS]:
            raise ValueError(f"module must join {', '.join(PARTS)} with '+', got {' '.join(unknown)!r}")
        if any(not 0 <= unit < self.depths[-1] for unit in self.replaced):
            raise ValueError(f"replaced must be unit indices from 0 to {self.depths[-1] - 1}, got {self.replaced}")
        if self.keys % self.num_heads or self.inner[-1] % self.num_heads:
            raise ValueError(
                f"keys {self.keys} and inner {self.inner[-1]} must be multiples of num_heads {self.num_heads}"
            )

    @property
    def blocks(self) -> int:
        """Number of units in all stages."""
        return sum(self.depths)


class Conv2d(nn.Module):
    """A 3x3 spatial convolution on [B,C,T,H,W]."""

    def __init__(self, channels: int, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv3d(channels, channels, (1, 3, 3), (1, stride, stride), (0, 1, 1), bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class HalfSize(nn.Module):
    """2x2 spatial average pooling on [B,C,T,H,W], with a part of a window at the end, as strided convolutions have.

    Uses 2-D pooling, which supports all dtypes on CPU.
    """

    def forward(self, x: Tensor) -> Tensor:
        return F.avg_pool2d(x.flatten(1, 2), 2, ceil_mode=True).unflatten(1, x.shape[1:3])


class Conv1d(nn.Module):
    """A temporal convolution of size 3 on [B,C,T,H,W]."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv3d(channels, channels, (3, 1, 1), padding=(1, 0, 0), bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class GridAttention(nn.Module):
    """Multi-head attention over space, over time, or over both ("spatial", "temporal", "joint"); [B,C,T,H,W].

    As in the paper's tables: queries and keys have 128 channels over all heads, values have all channels; no biases and
    no output projection.
    """

    def __init__(self, channels: int, over: str, *, keys: int, num_heads: int) -> None:
        super().__init__()
        self.over, self.num_heads = over, num_heads
        self.q = nn.Linear(channels, keys, bias=False)
        self.k = nn.Linear(channels, keys, bias=False)
        self.v = nn.Linear(channels, channels, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        B, _, T, H, W = x.shape
        x = x.permute(0, 2, 3, 4, 1)  # [B,T,H,W,C]
        if self.over == "temporal":
            rows = x.flatten(2, 3).transpose(1, 2).flatten(0, 1)
        else:
            rows = x.reshape(B * T, H * W, -1) if self.over == "spatial" else x.flatten(1, 3)
        q, k, v = (
            layer(rows).unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for layer in (self.q, self.k, self.v)
        )
        rows = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        if self.over == "temporal":
            rows = rows.unflatten(0, (B, H * W)).transpose(1, 2)
        return rows.reshape(B, T, H, W, -1).permute(0, 4, 1, 2, 3)


class VectorAttention(nn.Module):
    """Attention with separate weights for each channel: softmax over j of f_q(z_i) * f_k(z_j), on tokens [B,N,C].

    Computed as multi-head attention with one head per channel and scale 1, so that a fused kernel does not store the
    [N,N,C] weights.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.q = nn.Linear(channels, channels, bias=False)
        self.k = nn.Linear(channels, channels, bias=False)
        self.v = nn.Linear(channels, channels, bias=False)

    def forward(self, z: Tensor) -> Tensor:
        q, k, v = (layer(z).transpose(1, 2)[..., None] for layer in (self.q, self.k, self.v))
        return F.scaled_dot_product_attention(q, k, v, scale=1.0)[..., 0].transpose(1, 2)


class TokenLearnerModule(nn.Module):
    """TokenLearner, Vector Transformer, TokenFuser on [B,C,T,H,W] (arXiv 2106.11297, section 6 and figure 9)."""

    def __init__(self, channels: int, *, num_tokens: int, num_frames: int, reading: str) -> None:
        super().__init__()
        fit = reading == "paper_fit"
        side = 3 if fit else 1
        self.num_tokens, self.num_frames, self.reading = num_tokens, num_frames, reading
        self.value = nn.Conv2d(channels, channels, 1, bias=False) if fit else nn.Identity()
        self.maps = nn.Conv2d(channels, num_tokens, side, padding=side // 2, bias=False)
        self.attention = VectorAttention(channels)
        mixed = num_tokens * (1 if fit else num_frames)
        self.mixing = nn.Linear(mixed, mixed, bias=False)
        self.gate = nn.Conv2d(channels, num_tokens, side, padding=side // 2, bias=False)
        nn.init.eye_(self.mixing.weight)

    def forward(self, x: Tensor) -> Tensor:
        B, C, T, H, W = x.shape
        if self.reading == "paper_text" and self.num_frames != T:
            raise ValueError(f"clips must have {self.num_frames} frames for reading='paper_text', got {T}")
        images = x.transpose(1, 2).flatten(0, 1)  # [B*T,C,H,W]
        maps = self.maps(images).flatten(2).sigmoid()  # [B*T,M,H*W]
        z = maps @ self.value(images).flatten(2).transpose(1, 2) / (H * W)  # the mean, as in the text
        z = self.attention(z.reshape(B, -1, C))
        if self.reading == "paper_fit":
            z = z.reshape(B * T, -1, C)
        z = self.mixing(z.transpose(1, 2)).transpose(1, 2).reshape(B * T, -1, C)
        gate = self.gate(images).flatten(2).sigmoid()  # [B*T,M,H*W]
        return (z.transpose(1, 2) @ gate).reshape(B, T, C, H, W).transpose(1, 2)


def make_part(name: str, channels: int, config: X2plus1dConfig) -> nn.Module:
    """Builds a module of a unit by name."""
    if name == "conv2d":
        return Conv2d(channels)
    if name == "conv1d":
        return Conv1d(channels)
    if name == "tokenlearner":
        return TokenLearnerModule(
            channels, num_tokens=config.num_tokens, num_frames=config.num_frames, reading=config.reading
        )
    return GridAttention(channels, name, keys=config.keys, num_heads=config.num_heads)


class Unit(nn.Module):
    """A bottleneck: 1x1x1 expansion, the modules, 1x1x1 projection, residual; batch norm after each, ReLU between."""

    def __init__(self, dim_in: int, dim: int, inner: int, stride: int, parts: Sequence[nn.Module]) -> None:
        super().__init__()
        self.up = nn.Conv3d(dim_in, inner, 1, bias=False)
        self.norm_up = nn.BatchNorm3d(inner)
        self.parts = nn.ModuleList(parts)
        self.norms = nn.ModuleList(nn.BatchNorm3d(inner) for _ in parts)
        self.down = nn.Conv3d(inner, dim, 1, bias=False)
        self.norm_down = nn.BatchNorm3d(dim)
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1 or dim_in != dim:
            self.shortcut = nn.Sequential(
                nn.Conv3d(dim_in, dim, 1, (1, stride, stride), bias=False), nn.BatchNorm3d(dim)
            )

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm_up(self.up(x)))
        for part, norm in zip(self.parts, self.norms, strict=True):
            y = F.relu(norm(part(y)))
        return F.relu(self.shortcut(x) + self.norm_down(self.down(y)))


def recomputed(unit: nn.Module, x: Tensor) -> Tensor:
    """Applies a unit with activation checkpointing; batch norms count its inputs once, as without."""
    norms = [module for module in unit.modules() if isinstance(module, nn.BatchNorm3d)]

    @contextmanager
    def frozen_statistics() -> Iterator[None]:
        momenta = [norm.momentum for norm in norms]
        counts = [norm.num_batches_tracked.clone() for norm in norms if norm.num_batches_tracked is not None]
        for norm in norms:
            norm.momentum = 0.0
        try:
            yield
        finally:
            for norm, momentum, count in zip(norms, momenta, counts, strict=True):
                norm.momentum = momentum
                norm.num_batches_tracked = count

    return checkpoint(unit, x, use_reentrant=False, context_fn=lambda: (nullcontext(), frozen_statistics()))


class X2plus1d(Model):
    """X(2+1)D; maps clips [B,T,3,H,W] (uint8, or float in 0..1) to logits [B,classes]."""

    kind = "x2plus1d"
    config_type = X2plus1dConfig
    config: X2plus1dConfig

    def __init__(self, config: X2plus1dConfig) -> None:
        super().__init__(config)
        stem = config.stem
        self.stem_space = nn.Conv3d(3, stem, (1, 3, 3), (1, 2, 2), (0, 1, 1), bias=False)
        self.stem_time = nn.Conv3d(stem, stem, (5, 1, 1), padding=(2, 0, 0), bias=False)
        self.stem_norm = nn.BatchNorm3d(stem)
        stages = []
        dim_in = stem
        for stage, (depth, dim, inner) in enumerate(zip(config.depths, config.dims, config.inner, strict=True)):
            units = []
            for unit in range(depth):
                stride = 2 if unit == 0 else 1
                last_stage = stage == len(config.depths) - 1
                parts: list[nn.Module]
                if last_stage and unit in config.replaced:
                    parts = [make_part(name, inner, config) for name in config.module.split("+")]
                    if stride == 2:
                        parts.insert(0, HalfSize())
                else:
                    parts = [Conv2d(inner, stride), Conv1d(inner)]
                units.append(Unit(dim_in, dim, inner, stride, parts))
                dim_in = dim
            stages.append(nn.Sequential(*units))
        self.stages = nn.ModuleList(stages)
        self.last = nn.Conv3d(dim_in, config.last, 1, bias=False)
        self.last_norm = nn.BatchNorm3d(config.last)
        self.hidden = nn.Linear(config.last, config.hidden)
        self.head = nn.Linear(config.hidden, config.num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv3d | nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif isinstance(module, Unit):
                # Each unit initially equals its shortcut.
                nn.init.zeros_(module.norm_down.weight)
        nn.init.normal_(self.head.weight, std=0.01)
        nn.init.zeros_(self.head.bias)
        self.checkpointing = False

    def features(self, frames: Tensor) -> Tensor:
        """Returns the input of the classifier, [B,hidden]."""
        if frames.ndim != 5 or frames.shape[2] != 3 or min(frames.shape[3:]) < 32:
            raise ValueError(f"clips must be [B,T,3,H,W] of at least 32 pixels, got {list(frames.shape)}")
        x = normalize(to_unit(frames), self.config.mean, self.config.std).to(self.stem_space.weight.dtype)
        x = F.relu(self.stem_norm(self.stem_time(self.stem_space(x.transpose(1, 2)))))
        for stage in self.stages:
            for unit in stage:  # type: ignore[attr-defined]
                x = recomputed(unit, x) if self.checkpointing and self.training else unit(x)
        x = F.relu(self.last_norm(self.last(x))).mean((2, 3, 4))
        return F.relu(self.hidden(x))

    def forward(self, frames: Tensor) -> Tensor:
        return self.head(self.features(frames))


__all__ = ["PARTS", "READINGS", "VectorAttention", "X2plus1d", "X2plus1dConfig"]
