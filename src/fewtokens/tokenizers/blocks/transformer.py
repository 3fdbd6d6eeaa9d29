"""Transformers over the cells of a video, with attention in space, in time or in both."""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from fewtokens.encoders.transformer import Attention, Mlp

KINDS = {
    "full": "all cells of the video",
    "block_causal": "the cells of the same frame and of earlier ones",
    "space": "the cells of the same frame",
    "window8": "the cells of the same window of 8 x 8 cells of a frame (or of another size)",
    "time": "the same position in the same frame and in earlier ones",
}
STYLES = ("vit", "llama", "bsq")

Past = tuple[Tensor, Tensor] | None
State = tuple[int, list[Past]]


class VideoTransformer(nn.Module):
    """Pre-norm transformer blocks over the features of all cells, [B,T,H,W,C], without a norm at the end.

    Args:
        dim: number of channels C.
        layers: kind of attention, a key of `KINDS`, and number of blocks of this kind, in their order, such as
            (("space", 4), ("time", 4)). A window that extends past the edge has fewer cells.
        heads: number of attention heads.
        positions: "rotary": rotary embeddings (arXiv 2104.09864) whose channels are divided between time, row and
            column, counted in cells, so that larger grids are extrapolated; "rotary4": the same with a fourth axis,
            the depth of 3-D assets (arXiv 2509.14476), which is 0 for videos; or T, H and W of the grid of learned
            embeddings, one per frame and one per place. Those of places are resized bilinearly to another grid. Those
            of frames are not resized, so that later frames do not change earlier ones; frames after the last
            embedding share it.
        style: "vit": LayerNorm, and an MLP with GELU and 4 * `dim` hidden channels; "llama": RMSNorm, no bias of
            queries, keys and values, and SwiGLU with about 8/3 * `dim` hidden channels; "bsq": as "vit", with another
            norm in front of the blocks, as in CLIP (arXiv 2103.00020) and BSQ-ViT (arXiv 2406.07548).

    Attributes:
        causal: whether no output depends on later frames; exact.

    Raises:
        ValueError: an argument is invalid.
    """

    def __init__(
        self,
        dim: int,
        layers: Sequence[tuple[str, int]],
        heads: int,
        *,
        positions: str | Sequence[int] = "rotary",
        style: str = "vit",
    ) -> None:
        super().__init__()
        if style not in STYLES:
            raise ValueError(f"style must be {' or '.join(STYLES)}, got {style!r}")
        if heads < 1 or dim < 1 or dim % heads:
            raise ValueError(f"heads must divide the number of channels, {dim}, got {heads}")
        kinds = [kind for kind, count in layers for _ in range(count)]
        for kind in kinds:
            if not re.fullmatch(r"full|block_causal|space|window[1-9]\d{0,3}|time", kind):
                raise ValueError(f"layers must be of the kinds {', '.join(KINDS)}, got {kind!r}")
        self.blocks = nn.ModuleList(Block(dim, heads, kind, style) for kind in kinds)
        self.norm = make_norm(dim, style) if style == "bsq" else nn.Identity()
        self.head_dim = dim // heads
        self.causal = "full" not in kinds
        self.axes, self.positions = 0, None
        if isinstance(positions, str):
            if positions not in ("rotary", "rotary4"):
                raise ValueError(f"positions must be rotary, rotary4 or T, H and W of a grid, got {positions!r}")
            self.axes = 4 if positions == "rotary4" else 3
            if self.head_dim % 2:
                raise ValueError(f"rotary positions require an even number of channels per head, got {self.head_dim}")
        else:
            self.positions = LearnedPositions(dim, positions)

    def forward(self, x: Tensor) -> Tensor:
        """Maps the features of all cells [B,T,H,W,C] to new ones."""
        return self.step(x)[0]

    def step(self, x: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """Maps the features of the next frames [B,T,H,W,C]; equal to those of the whole if causal, up to rounding.

        The state has the keys and values of all earlier frames in blocks with attention in time; it grows with them.
        """
        start, past = state or (0, [None] * len(self.blocks))
        angles = None
        T, H, W = x.shape[1:4]
        if self.positions is None:
            angles = rotary_angles(grid_positions(T, H, W, start, device=x.device), self.head_dim, self.axes)
        else:
            x = x + self.positions(T, H, W, start)
        x, states = self.norm(x), []
        for block, earlier in zip(self.blocks, past, strict=True):
            x, seen = block(x, angles, earlier)
            states.append(seen)
        return x, (start + T, states)


class LearnedPositions(nn.Module):
    """Learned embeddings of cells: the sum of one per place and one per frame.

    Those of places are resized bilinearly to another grid; a frame after the last one has the embedding of the last.

    Args:
        dim: number of channels C.
        grid: T, H and W.

    Raises:
        ValueError: the grid is not three counts.
    """

    def __init__(self, dim: int, grid: Sequence[int]) -> None:
        super().__init__()
        if len(grid) != 3 or min(grid) < 1:
            raise ValueError(f"positions must be T, H and W of a grid, got {tuple(grid)}")
        T, H, W = grid
        self.places = nn.Parameter(0.02 * torch.randn(H, W, dim))
        self.frames = nn.Parameter(0.02 * torch.randn(T, dim))

    def forward(self, T: int, H: int, W: int, start: int = 0) -> Tensor:
        """Returns the embeddings of frames start..start+T-1 of H x W cells, [T,H,W,C]."""
        places: Tensor = self.places
        if places.shape[:2] != (H, W):
            resized = F.interpolate(places.movedim(-1, 0)[None], (H, W), mode="bilinear", align_corners=False)
            places = resized[0].movedim(0, -1)
        index = torch.arange(start, start + T, device=places.device).clamp(max=len(self.frames) - 1)
        return self.frames[index][:, None, None] + places


def grid_positions(T: int, H: int, W: int, start: int = 0, *, device: torch.device) -> Tensor:
    """Time, row and column of the cells of T frames from frame `start` on, float32 [T*H*W,3]."""
    axes = [torch.arange(n, device=device, dtype=torch.float32) for n in (T, H, W)]
    axes[0] += start
    return torch.cartesian_prod(*axes)


def rotary_angles(positions: Tensor, head_dim: int, axes: int) -> Tensor:
    """The angles of rotary embeddings, [N,head_dim/2], of positions [N,D] on D <= `axes` axes.

    The pairs of channels are divided between the axes; pair i of the n pairs of an axis turns by 10000^(-i/n) per cell.
    Axes without positions do not turn.
    """
    angles = []
    for axis, pairs in enumerate(torch.arange(head_dim // 2, device=positions.device).tensor_split(axes)):
        rates = 10_000.0 ** (-torch.arange(len(pairs), device=positions.device) / max(1, len(pairs)))
        place = positions[:, axis] if axis < positions.shape[1] else positions.new_zeros(len(positions))
        angles.append(place[:, None] * rates)
    return torch.cat(angles, 1)


def rotate(x: Tensor, angles: Tensor) -> Tensor:
    """Rotates the pairs of channels (i, i + d/2) of x [...,N,d] by angles [N,d/2], in float32."""
    first, second = x.float().chunk(2, -1)
    cos, sin = angles.cos(), angles.sin()
    return torch.cat([first * cos - second * sin, second * cos + first * sin], -1).to(x.dtype)


class Block(nn.Module):
    """A pre-norm block: attention of some kind, then an MLP."""

    def __init__(self, dim: int, heads: int, kind: str, style: str) -> None:
        super().__init__()
        llama = style == "llama"
        self.kind = kind.rstrip("0123456789")
        self.size = int(kind[len(self.kind) :] or 0)
        self.norm1, self.norm2 = make_norm(dim, style), make_norm(dim, style)
        self.attention = Attention(dim, heads, qkv_bias=not llama)
        self.mlp = Mlp(dim, -(-8 * dim // 3) if llama else 4 * dim, gated=llama)

    def forward(self, x: Tensor, angles: Tensor | None, past: Past = None) -> tuple[Tensor, Past]:
        """Maps [B,T,H,W,C] to [B,T,H,W,C], and returns keys and values of all frames if later ones need them.

        Args:
            x: features of the cells.
            angles: [T*H*W,d/2] of rotary positions, or None.
            past: keys and values of earlier frames, each [B,heads,T',H,W,d].
        """
        q, k, v = self.attention.project(self.norm1(x).flatten(1, 3))
        if angles is not None:
            q, k = rotate(q, angles), rotate(k, angles)
        q, k, v = (part.unflatten(2, x.shape[1:4]) for part in (q, k, v))
        if self.kind in ("block_causal", "time"):
            if past is not None:
                k, v = torch.cat([past[0], k], 2), torch.cat([past[1], v], 2)
            past = k, v
        mixed = self._attend(q, k, v)
        x = x + self.attention.out(rearrange(mixed, "b n t h w d -> b t h w (n d)"))
        return x + self.mlp(self.norm2(x)), past

    def _attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attention of queries [B,heads,T,H,W,d] to keys and values, which may have earlier frames too."""
        T, H, W = q.shape[2:5]
        if self.kind == "full":
            q, k, v = (part.flatten(2, 4) for part in (q, k, v))
            return F.scaled_dot_product_attention(q, k, v).unflatten(2, (T, H, W))
        if self.kind == "block_causal":
            # One call per frame needs no mask, which would have as many entries as there are pairs of cells.
            ends = range(k.shape[2] - T + 1, k.shape[2] + 1)
            frames = [
                F.scaled_dot_product_attention(
                    q[:, :, i].flatten(2, 3), k[:, :, :end].flatten(2, 4), v[:, :, :end].flatten(2, 4)
                )
                for i, end in enumerate(ends)
            ]
            return torch.stack(frames, 2).unflatten(3, (H, W))
        if self.kind == "time":
            q, k, v = (rearrange(part, "b n t h w d -> (b h w) n t d") for part in (q, k, v))
            causal = torch.ones(T, k.shape[2], dtype=torch.bool, device=q.device).tril(k.shape[2] - T)
            mixed = F.scaled_dot_product_attention(q, k, v, causal)
            return rearrange(mixed, "(b h w) n t d -> b n t h w d", h=H, w=W)
        if self.kind == "space":
            q, k, v = (rearrange(part, "b n t h w d -> (b t) n (h w) d") for part in (q, k, v))
            mixed = F.scaled_dot_product_attention(q, k, v)
            return rearrange(mixed, "(b t) n (h w) d -> b n t h w d", t=T, h=H)
        return attend_in_windows(q, k, v, self.size)


def attend_in_windows(q: Tensor, k: Tensor, v: Tensor, size: int, bias: Tensor | None = None) -> Tensor:
    """Attention within windows of size x size cells of a frame; one that extends past the edge has fewer cells.

    Args:
        q, k, v: [B,heads,T,H,W,d].
        size: rows and columns of a window.
        bias: [heads,size^2,size^2], added to the logits of the cells of a window, or None.
    """
    T, H, W = q.shape[2:5]
    down, right = -H % size, -W % size
    q, k, v = (
        rearrange(
            F.pad(part, (0, 0, 0, right, 0, down)), "b n t (i p) (j q) d -> (b t) (i j) n (p q) d", p=size, q=size
        )
        for part in (q, k, v)
    )
    mask = bias
    if down or right:
        inside = F.pad(q.new_ones(H, W, dtype=torch.bool), (0, right, 0, down))
        mask = rearrange(inside, "(i p) (j q) -> (i j) 1 1 (p q)", p=size, q=size)
        mask = mask if bias is None else bias.masked_fill(~mask, -torch.inf)
    mixed = rearrange(
        F.scaled_dot_product_attention(q, k, v, mask),
        "(b t) (i j) n (p q) d -> b n t (i p) (j q) d", t=T, i=(H + down) // size, p=size,
    )  # fmt: skip
    return mixed[:, :, :, :H, :W]


def make_norm(dim: int, style: str) -> nn.Module:
    """The norm of a style: LayerNorm or RMSNorm."""
    return nn.RMSNorm(dim, eps=1e-6) if style == "llama" else nn.LayerNorm(dim, eps=1e-5 if style == "bsq" else 1e-6)


class TubeletEmbedding(nn.Module):
    """A linear layer from the pixels of each tubelet to its features, and another for the first frame if it is alone.

    Args:
        width: number of channels of a cell.
        stride: frames, rows and columns of a tubelet.
        first_frame: whether the first frame has cells of its rows and columns alone.
        channels: of the input, 3 for pixels.
        bias: whether the layers have one.
    """

    def __init__(
        self, width: int, stride: Sequence[int], first_frame: bool, *, channels: int = 3, bias: bool = True
    ) -> None:
        super().__init__()
        t, h, w = self.stride = (stride[0], stride[1], stride[2])
        self.first: nn.Module | None = nn.Linear(channels * h * w, width, bias) if first_frame else None
        self.rest: nn.Module = nn.Linear(channels * t * h * w, width, bias)

    def forward(self, x: Tensor, *, start: bool = True) -> Tensor:
        """Embeds frames [B,3,T,H,W] as cells [B,T',H',W',C]; `start` is whether they begin with the first frame."""
        parts = []
        if self.first is not None and start:
            parts.append(self.first(self._cells(x[:, :, :1], 1)))
            x = x[:, :, 1:]
        if x.shape[2]:
            parts.append(self.rest(self._cells(x, self.stride[0])))
        return torch.cat(parts, 1)

    def _cells(self, x: Tensor, t: int) -> Tensor:
        _, h, w = self.stride
        return rearrange(x, "b c (t p) (h q) (w r) -> b t h w (p q r c)", p=t, q=h, r=w)


class TubeletPixels(nn.Module):
    """The mirror of `TubeletEmbedding`: linear layers from the features of cells to the pixels of their tubelets."""

    def __init__(self, width: int, stride: Sequence[int], first_frame: bool, *, channels: int = 3) -> None:
        super().__init__()
        t, h, w = self.stride = (stride[0], stride[1], stride[2])
        self.first = nn.Linear(width, channels * h * w) if first_frame else None
        self.rest = nn.Linear(width, channels * t * h * w)

    def forward(self, x: Tensor, *, start: bool = True) -> Tensor:
        """Maps cells [B,T',H',W',C] to frames [B,3,T,H,W]; `start` is whether they begin with the first frame."""
        parts = []
        if self.first is not None and start:
            parts.append(self._frames(self.first(x[:, :1]), 1))
            x = x[:, 1:]
        if x.shape[1]:
            parts.append(self._frames(self.rest(x), self.stride[0]))
        return torch.cat(parts, 2)

    def _frames(self, x: Tensor, t: int) -> Tensor:
        _, h, w = self.stride
        return rearrange(x, "b t h w (p q r c) -> b c (t p) (h q) (w r)", p=t, q=h, r=w)


def checked_stride(stride: Sequence[int], first_frame: bool = False) -> tuple[int, int, int]:
    """The frames, rows and columns of a tubelet.

    Raises:
        ValueError: they are not three counts, or the first frame is alone although a tubelet has one frame.
    """
    if len(stride) != 3 or min(stride) < 1:
        raise ValueError(f"stride must be three counts of at least 1, got {tuple(stride)}")
    if first_frame and stride[0] == 1:
        raise ValueError(f"first_frame requires tubelets of several frames, got stride {tuple(stride)}")
    return stride[0], stride[1], stride[2]
