"""The networks of CDT (arXiv 2503.03708): causal levels of convolutions down and up, and a U-Net that reads maps."""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fewtokens.tokenizers.blocks.causal_conv import Cache, CausalConv3d, DepthToSpace, Three

STRIDE: Three = (4, 8, 8)
# Channels of the levels of the maps and of the U-Net, as multiples of a width. Level 0 has the size of the frames. If
# the entry of a level in HALVE is True, the next level has half its rows and columns, with HALVE_TIME half its frames.
MAP_LEVELS, UNET_LEVELS = (1, 2, 3, 4), (1, 2, 3, 4, 5, 6)
HALVE = (False, True, True, True, True, False)
HALVE_TIME = (False, False, True, True, False, False)
# Channels of the map that the first level reads.
FIRST_MAP = 16


class ChannelNorm(nn.LayerNorm):
    """Layer normalization of the channels of features [B,C,T,H,W]."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)


class ConvBlock(nn.Module):
    """A causal convolution, a norm of the channels and ReLU."""

    def __init__(self, dim: int, out: int, kernel: Three = (3, 3, 3)) -> None:
        super().__init__()
        self.conv = CausalConv3d(dim, out, kernel, fill="zeros")
        self.norm = ChannelNorm(out)

    def forward(self, x: Tensor, cache: Cache | None = None) -> Tensor:
        return F.relu(self.norm(self.conv(x, cache)))


class ResBlock(nn.Module):
    """Two `ConvBlock`s and a shortcut; a level embedding [B,level_dim] is added between them."""

    def __init__(self, dim: int, out: int, *, level_dim: int = 0, kernel: Three = (3, 3, 3)) -> None:
        super().__init__()
        self.first, self.second = ConvBlock(dim, out, kernel), ConvBlock(out, out)
        self.level = nn.Linear(level_dim, out) if level_dim else None
        self.shortcut = nn.Conv3d(dim, out, 1) if dim != out else nn.Identity()

    def forward(self, x: Tensor, level: Tensor | None = None, cache: Cache | None = None) -> Tensor:
        h = self.first(x, cache)
        if self.level is not None:
            assert level is not None
            h = h + self.level(F.leaky_relu(level, 0.2))[:, :, None, None, None]
        summed: Tensor = self.shortcut(x) + self.second(h, cache)
        return summed


class Down(nn.Module):
    """Halves rows and columns, and frames in some levels: 1 + 2 m become 1 + m."""

    def __init__(self, dim: int, *, space: bool, time: bool) -> None:
        super().__init__()
        self.space = nn.Conv3d(dim, dim, (1, 3, 3), (1, 2, 2), (0, 1, 1)) if space else None
        self.time = CausalConv3d(dim, dim, (3, 1, 1), stride=(2, 1, 1), fill="zeros") if time else None

    def forward(self, x: Tensor, cache: Cache | None = None) -> Tensor:
        x = x if self.space is None else self.space(x)
        return x if self.time is None else self.time(x, cache)


class Up(nn.Module):
    """The inverse of `Down` in size."""

    def __init__(self, dim: int, *, space: bool, time: bool) -> None:
        super().__init__()
        self.space = nn.Conv3d(dim, dim, (1, 5, 5), padding=(0, 2, 2)) if space else None
        self.time = DepthToSpace(dim, dim, (2, 1, 1), kernel=(1, 1, 1)) if time else None

    def forward(self, x: Tensor, cache: Cache | None = None) -> Tensor:
        if self.space is not None:
            x = self.space(F.interpolate(x, scale_factor=(1, 2, 2), mode="nearest-exact"))
        return x if self.time is None else self.time(x, cache)


class FrameAttention(nn.Module):
    """Adds linear attention (arXiv 1812.01243) over the cells of each frame, whose cost is linear in their number."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = ChannelNorm(dim)
        self.qkv, self.out = nn.Conv3d(dim, 3 * dim, 1, bias=False), nn.Conv3d(dim, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm(x)).transpose(1, 2).flatten(3).chunk(3, 2)  # [B,T,C,H*W]
        q, k = q.softmax(2) * q.shape[2] ** -0.5, k.softmax(3)
        mixed = (v @ k.transpose(2, 3)) @ q
        attended: Tensor = x + self.out(mixed.unflatten(3, x.shape[-2:]).transpose(1, 2))
        return attended


class Maps(nn.Module):
    """Maps latents to features of the sizes of the first four levels of the U-Net.

    Args:
        dim: channels of the latents.
        width: channels of the levels, times `MAP_LEVELS`.
    """

    def __init__(self, dim: int, width: int) -> None:
        super().__init__()
        dims = [level * width for level in MAP_LEVELS]
        self.direct = nn.Conv3d(dim, dims[-1], 1)
        self.widen = nn.Conv3d(dim, dims[0], 1)
        self.refine = nn.ModuleList(ResBlock(a, b) for a, b in pairwise(dims))
        self.levels = nn.ModuleList(ResBlock(a, b) for a, b in zip(dims[:0:-1], dims[-2::-1], strict=True))
        self.ups = nn.ModuleList(
            Up(b, space=space, time=time)
            for b, space, time in zip(dims[-2::-1], HALVE[3:0:-1], HALVE_TIME[3:0:-1], strict=True)
        )
        self.last = nn.ModuleList([ResBlock(dims[0], dims[0]), ResBlock(dims[0], FIRST_MAP)])

    def forward(self, latents: Tensor, cache: Cache | None = None) -> list[Tensor]:
        """Returns the maps of latents [B,C,T',H',W'], of the largest size first."""
        x = self.widen(latents)
        for block in self.refine:
            x = block(x, cache=cache)
        x = x + self.direct(latents)
        maps = []
        for block, up in zip(self.levels, self.ups, strict=True):
            x = up(block(x, cache=cache), cache)
            maps.append(x)
        for block in self.last:
            x = block(x, cache=cache)
        return [x, *maps[::-1]]

    @staticmethod
    def dims(width: int) -> list[int]:
        """Returns the channels of the maps."""
        return [FIRST_MAP, *(level * width for level in MAP_LEVELS[:-1])]


class Level(nn.Module):
    """Two residual blocks and attention; then the size may change."""

    def __init__(self, dim: int, out: int, width: int, resize: nn.Module | None, kernel: Three = (3, 3, 3)) -> None:
        super().__init__()
        self.first = ResBlock(dim, out, level_dim=width, kernel=kernel)
        self.second = ResBlock(out, out, level_dim=width)
        self.attention = FrameAttention(out)
        self.resize = resize

    def forward(self, x: Tensor, level: Tensor, cache: Cache | None) -> tuple[Tensor, Tensor]:
        """Returns the features before and after the size changes."""
        x = self.attention(self.second(self.first(x, level, cache), level, cache))
        return x, x if self.resize is None else self.resize(x, cache)


class Unet(nn.Module):
    """Predicts clean frames from noised ones; an untrained network predicts 0.

    Args:
        width: channels of the levels, times `UNET_LEVELS`.
        maps: channels of the maps that the first levels read, by concatenation.
    """

    def __init__(self, width: int, maps: list[int]) -> None:
        super().__init__()
        dims = [level * width for level in UNET_LEVELS]
        self.level = nn.Sequential(nn.Linear(1, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        self.down = nn.ModuleList()
        for i, (a, b) in enumerate(pairwise([3, *dims])):
            read = maps[i] if i < len(maps) else 0
            down = Down(b, space=HALVE[i], time=HALVE_TIME[i])
            self.down.append(Level(a + read, b, width, down, (3, 7, 7) if i == 0 else (3, 3, 3)))
        top = dims[-1]
        self.before, self.attention = ResBlock(top, top, level_dim=width), FrameAttention(top)
        self.after = ResBlock(top, top, level_dim=width)
        self.up = nn.ModuleList(
            Level(2 * b, a, width, Up(a, space=HALVE[i], time=HALVE_TIME[i]))
            for i, (a, b) in reversed(list(enumerate(pairwise(dims))))
        )
        self.norm = ChannelNorm(dims[0])
        self.output = CausalConv3d(dims[0], 3, (3, 7, 7), fill="zeros")
        nn.init.zeros_(self.output.weight)
        if self.output.bias is not None:
            nn.init.zeros_(self.output.bias)

    def forward(self, x: Tensor, s: Tensor, maps: list[Tensor], cache: Cache | None = None) -> Tensor:
        """Predicts frames from noised ones [B,3,T,H,W] at levels [B]."""
        level = self.level(s[:, None].to(x.dtype))
        skips = []
        for i, block in enumerate(self.down):
            skip, x = block(torch.cat([x, maps[i]], 1) if i < len(maps) else x, level, cache)
            skips.append(skip)
        x = self.after(self.attention(self.before(x, level, cache)), level, cache)
        for block, skip in zip(self.up, skips[:0:-1], strict=True):
            if x.shape[2:] != skip.shape[2:]:  # an odd number of rows or columns was halved
                x = F.interpolate(x, skip.shape[2:], mode="nearest")
            _, x = block(torch.cat([x, skip], 1), level, cache)
        predicted: Tensor = self.output(self.norm(x), cache)
        return predicted
