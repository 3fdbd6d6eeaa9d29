"""PVC: causal attention over time with the time step in every norm, then fewer tokens for each frame."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fewtokens.core.grid import Grid
from fewtokens.core.method import Resampled, Resampler, load_weights
from fewtokens.core.tokens import Tokens
from fewtokens.methods.ops.per_frame import check_dim, resample_frames
from fewtokens.methods.ops.resample import Attention, check_counts, feed_forward, masked_features, split_heads

# Channels of the sines and cosines of a time step, as in the paper.
_WAVES = 256


class Pvc(Resampler):
    """Encodes each frame with what earlier frames have shown, then compresses `pool` x `pool` cells to one token.

    Progressive Visual Token Compression (arXiv 2412.09613). Each block computes x + temporal attention, x + spatial
    attention and x + MLP. The temporal attention is causal, among the cells at one position; the spatial one is within
    a frame. Every norm is adaptive: scale, shift and the gate of its branch are linear in an embedding of the time step
    (256 sines and cosines, then an MLP). Then the channels of pool x pool cells are concatenated (pixel shuffle), and
    a last adaptive norm and an MLP map them to one token. With 32 x 32 patches a frame, the default gives the paper's
    64 tokens. An image is a static video: a video of one frame is repeated `repeat` times, and each repetition may add
    details that the earlier ones left out. Gates, scales and shifts start at zero, and so does the last layer: an
    untrained `pvc` is average pooling.

    Differences from the paper: the blocks follow the encoder, whose layers are unchanged (there temporal attention is
    added to the last layers of the encoder); a time step is the index of a frame, not a fraction of the video, so that
    no later frame changes a token; and the mean of the cells is added to the output of the MLP. Tokens do not depend on
    later frames, but the keys of all earlier ones would have to be stored, so `step` is not supported.

    Attribution: a token is attributed equally to its cells; attention is not followed. Cells beyond the edge of the
    grid are zeros to the MLP and not part of the mean.

    Args:
        pool: rows and columns of cells that become one token. Default: 4.
        repeat: number of times that a video of one frame is repeated. Default: 4, as in the paper.
        num_layers: number of blocks.
        heads: maximum number of attention heads; the largest number up to this that divides `dim` is used.
        dim: channels of the features.
        checkpoint: path of a safetensors file with trained parameters; None initializes them randomly.
    """

    learned = True
    full_grid = True
    paper = "PVC, arXiv 2412.09613"
    license = "written from summaries of the paper; its repository has no code of the model"
    cost = "per block: N*C*(16*C + 2*H*W + T) MACs; compression N*C*4*C + 4*C*C per token"

    def __init__(
        self,
        pool: int = 4,
        *,
        repeat: int = 4,
        num_layers: int = 2,
        heads: int = 8,
        dim: int = 384,
        checkpoint: str | None = None,
    ) -> None:
        super().__init__()
        check_counts(pool=pool, repeat=repeat, num_layers=num_layers, heads=heads)
        self.pool, self.repeat, self.num_layers = pool, repeat, num_layers
        self.heads, self.dim, self.checkpoint = heads, dim, checkpoint
        self.time = nn.Sequential(nn.Linear(_WAVES, dim), nn.SiLU(), nn.Linear(dim, dim), nn.SiLU())
        self.layers = nn.ModuleList(Layer(dim, heads) for _ in range(num_layers))
        block = pool * pool * dim
        self.norm = AdaptiveNorm(block, dim)
        self.mlp = nn.Sequential(nn.Linear(block, 4 * dim), nn.GELU(), _zero(nn.Linear(4 * dim, dim)))
        load_weights(self, checkpoint)

    def resample(self, tokens: Tokens, **cues: Any) -> Resampled:
        check_dim(self.name, tokens.C, self.dim)
        B, (T, H, W) = tokens.B, tokens.grid.shape
        lengths = [grid.T for grid in tokens.grid.videos(B)]
        x = masked_features(tokens, self.norm.modulation.weight.dtype).reshape(B, T, H * W, -1)
        if 1 in lengths and self.repeat > 1:
            single = torch.tensor(lengths, device=x.device) == 1
            steps = torch.tensor([self.repeat if length == 1 else length for length in lengths], device=x.device)
            source = torch.arange(max(self.repeat, T), device=x.device).clamp(max=T - 1)
            source = source.masked_fill(single[:, None], 0)  # the frame of each step, [B,S]
            x = x[torch.arange(B, device=x.device)[:, None], source]
            features, maps = self.compress(self.encode(x), H, W)
            weights = F.one_hot(source, T).to(maps.dtype)[:, :, None, :, None] * maps[:, None]  # [B,S,m,T,n]
            return Resampled(features.flatten(1, 2), weights.flatten(3).flatten(1, 2), len(maps) * steps)
        features, maps = self.compress(self.encode(x), H, W)
        return resample_frames(tokens, maps.expand(B * T, -1, -1), features.flatten(0, 1))

    def encode(self, x: Tensor) -> Tensor:
        """Runs the blocks over videos [B,T,n,C] of n cells a frame; a frame is encoded from those up to it."""
        time = self.embed_time(x)
        for layer in self.layers:
            x = layer(x, time)
        return x

    def compress(self, x: Tensor, H: int, W: int) -> tuple[Tensor, Tensor]:
        """Compresses frames [B,T,H*W,C] to tokens [B,T,m,C]; returns them and the weights [m,H*W] of the means."""
        p = self.pool
        rows, columns = -(-H // p), -(-W // p)
        padding = (0, 0, 0, columns * p - W, 0, rows * p - H)
        blocks = F.pad(x.unflatten(2, (H, W)), padding).unflatten(3, (columns, p)).unflatten(2, (rows, p))
        blocks = blocks.transpose(3, 4).flatten(4).flatten(2, 3)  # [B,T,m,p*p*C]
        index = torch.arange(H * W, device=x.device)
        block = index // W // p * columns + index % W // p
        maps = F.one_hot(block, rows * columns).T.to(x.dtype)
        maps = maps / maps.sum(1, keepdim=True)
        normed, _ = self.norm(blocks, self.embed_time(x))
        return maps @ x + self.mlp(normed), maps

    def embed_time(self, x: Tensor) -> Tensor:
        """Embeddings [T,1,C] of the time steps of videos [B,T,n,C]."""
        rates = 10_000.0 ** (-torch.arange(_WAVES // 2, device=x.device) / (_WAVES // 2))
        angles = torch.arange(x.shape[1], device=x.device)[:, None] * rates
        return self.time(torch.cat([angles.cos(), angles.sin()], 1).to(x.dtype))[:, None]

    def planned_count(self, grid: Grid) -> int:
        frames = self.repeat if grid.T == 1 else grid.T
        return frames * math.ceil(grid.H / self.pool) * math.ceil(grid.W / self.pool)


class AdaptiveNorm(nn.Module):
    """LayerNorm with a scale and a shift that depend on the time step, and a gate; all are zero at the start.

    Args:
        dim: channels of the features.
        width: channels of the embedding of the time step.
        gate: channels of the gate; 0 for none.
    """

    def __init__(self, dim: int, width: int, gate: int = 0) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim, elementwise_affine=False)
        self.sizes = [dim, dim, gate]
        self.modulation = _zero(nn.Linear(width, sum(self.sizes)))

    def forward(self, x: Tensor, time: Tensor) -> tuple[Tensor, Tensor]:
        """Returns (1 + scale) * LayerNorm(x) + shift and the gate for x [B,T,n,C] and embeddings [T,1,width]."""
        scale, shift, gate = self.modulation(time).split(self.sizes, -1)
        return self.norm(x) * (1 + scale) + shift, gate


class Layer(nn.Module):
    """Temporal attention, spatial attention and an MLP, each with an adaptive norm and a gate."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.temporal, self.spatial, self.mlp = Attention(dim, heads), Attention(dim, heads), feed_forward(dim)
        self.norms = nn.ModuleList(AdaptiveNorm(dim, dim, dim) for _ in range(3))

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """Maps [B,T,n,C] to [B,T,n,C]."""
        branches: tuple[Callable[[Tensor], Tensor], ...] = (self._over_time, self._over_space, self.mlp)
        for norm, branch in zip(self.norms, branches, strict=True):
            normed, gate = norm(x, time)
            x = x + gate * branch(normed)
        return x

    def _over_time(self, x: Tensor) -> Tensor:
        """Causal attention among the cells at one position; padded frames come last, so that no real one sees them."""
        B, attention = len(x), self.temporal
        rows = x.transpose(1, 2).flatten(0, 1)  # [B*n,T,C]
        q, k, v = (
            split_heads(layer(rows), attention.heads) for layer in (attention.query, attention.key, attention.value)
        )
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return attention.out(mixed.transpose(1, 2).flatten(2)).unflatten(0, (B, -1)).transpose(1, 2)

    def _over_space(self, x: Tensor) -> Tensor:
        frames = x.flatten(0, 1)
        return self.spatial(frames, frames).unflatten(0, x.shape[:2])


def _zero(layer: nn.Linear) -> nn.Linear:
    """Sets the weights and biases of a layer to zero."""
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer
