"""LLaMA-VID: one text-guided context token and a few content tokens per frame."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fewtokens.core.grid import Grid
from fewtokens.core.method import Resampled, Resampler, load_weights
from fewtokens.core.tokens import Tokens
from fewtokens.methods.ops.per_frame import check_dim, resample_frames, separable_maps, tokens_per_frame
from fewtokens.methods.ops.resample import attention_weights, check_text, masked_features


class LlamaVid(Resampler):
    """Reduces each frame to a text-guided context token and g x g average-pooled content tokens.

    LLaMA-VID (arXiv 2311.17043). The context token is the mean over text queries q of softmax(q (W_k X)^T / sqrt(C)) X,
    projected by W_v; the content tokens are adaptive average pooling of X to g x g, projected. Differences from the
    paper: queries are a linear projection of the embedded text instead of the output of a Q-Former over text and frame,
    so any text encoder works; and if a side is no multiple of g, windows are those of adaptive pooling instead of a
    fixed stride rounded down. Every row of the text counts, so remove padding.

    Attribution: the context token has the attention, averaged over the queries, as soft weights; content tokens have
    those of the pooling. Tokens of a frame are in this order: context, then content in raster order.

    Args:
        keep: tokens per frame, written "2/frame", or a fraction of the cells (float in (0, 1]): one context token and
            the largest square of content tokens that fits, at least one. Default: "2/frame".
        dim: channels of the features.
        text_dim: channels of the cue "text" [B,L,D]; None for `dim`.
        checkpoint: path of a safetensors file with trained parameters; None initializes them randomly.
    """

    learned = True
    full_grid = True
    paper = "LLaMA-VID, arXiv 2311.17043"
    license = "written from the paper; reference code Apache-2.0"
    cost = "per frame: (L + 1 + g*g)*H*W*C + (1 + g*g)*C*C MACs for L rows of text; L*C*(C + text_dim) per video"

    def __init__(
        self,
        keep: float | str = "2/frame",
        *,
        dim: int = 384,
        text_dim: int | None = None,
        checkpoint: str | None = None,
    ) -> None:
        super().__init__()
        self.set_budget(keep, units=("per frame", "fraction"))
        self.dim, self.text_dim, self.checkpoint = dim, text_dim, checkpoint
        self.query = nn.Linear(text_dim or dim, dim, bias=False)
        self.key = nn.Linear(dim, dim, bias=False)
        self.context, self.content = nn.Linear(dim, dim), nn.Linear(dim, dim)
        for layer in (self.query, self.key):
            nn.init.xavier_uniform_(layer.weight)
        load_weights(self, checkpoint)

    @property
    def needs(self) -> tuple[str, ...]:
        return ("text",)

    def resample(self, tokens: Tokens, **cues: Any) -> Resampled:
        text = cues["text"]
        check_dim(self.name, tokens.C, self.dim)
        check_text(self.name, text, tokens, self.text_dim or self.dim)
        B, (T, H, W) = tokens.B, tokens.grid.shape
        x = masked_features(tokens, self.key.weight.dtype).reshape(B, T, H * W, -1)
        # q (W x) = (q W) x, so W is applied to the few queries instead of to all patches.
        queries = (self.query(text.to(x.dtype)) @ self.key.weight)[:, None]  # [B,1,L,C]
        # The mean over queries is linear, so it can precede the sum over patches.
        attention = attention_weights(queries, x).mean(2, keepdim=True)  # [B,T,1,H*W]
        side = self._side(tokens.grid)
        pools = separable_maps(_pooling(H, side, x), _pooling(W, side, x)).expand(B, T, -1, -1)
        context = self.context(attention.to(x.dtype) @ x)
        features = torch.cat([context, self.content(pools @ x)], 2)
        maps = torch.cat([attention, pools.to(attention.dtype)], 2)
        return resample_frames(tokens, maps.flatten(0, 1), features.flatten(0, 1))

    def _side(self, grid: Grid) -> int:
        """Rows (and columns) of content tokens per frame."""
        assert self.budget is not None
        return max(1, math.isqrt(tokens_per_frame(grid, self.budget) - 1))

    def planned_count(self, grid: Grid) -> int:
        return grid.T * (1 + self._side(grid) ** 2)


def _pooling(size: int, parts: int, x: Tensor) -> Tensor:
    """Weights of adaptive average pooling along one axis, [parts,size], in the dtype and on the device of `x`."""
    return F.adaptive_avg_pool1d(torch.eye(size, dtype=x.dtype, device=x.device), parts).T
