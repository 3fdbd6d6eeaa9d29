"""LLaMA-VID: two tokens for each frame, one guided by the text, one of the content."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fewtokens.core.grid import Grid
from fewtokens.core.method import Resampled, Resampler, load_weights
from fewtokens.core.tokens import Tokens
from fewtokens.methods.ops.per_frame import check_dim, resampled_frames, separable, tokens_per_frame
from fewtokens.methods.ops.resample import attention_weights, check_text, features_of


class LlamaVid(Resampler):
    """Each frame becomes a context token, what the text looks at, and g x g content tokens, plain averages.

    LLaMA-VID (arXiv 2311.17043). Context: mean over the queries q of softmax(q (W_k X)^T / sqrt(C)) X,
    then W_v; content: adaptive average pooling of X to g x g, then a projector. It differs from the paper:
    there the queries come from a Q-Former over text and frame; here the embedded text itself is projected to queries,
    so that any text encoder will do; and where a side is no multiple of the grid, windows are those of adaptive pooling
    (there a fixed stride, rounded down). All L rows of the text count: take padding away before.

    Attribution: the attention, averaged over the queries, is the soft weights of the context token, the pooling those
    of the content tokens. Frame after frame: the context token, then the content tokens in raster order.

    Args:
        keep: tokens of each frame, written "2/frame", or share of the cells (float): a context token, and the largest
            square of content tokens that fits, at least one.
        dim: channels of the features.
        text_dim: channels of the cue "text" [B,L,D]; None means `dim`.
        checkpoint: a safetensors file with trained parameters; None draws them.
    """

    learned = True
    full_grid = True
    paper = "LLaMA-VID, arXiv 2311.17043"
    license = "written from the paper; reference code Apache-2.0"
    cost = "a frame: H*W*C*C + 2*L*H*W*C + (1 + g*g)*C*C MACs"

    def __init__(
        self,
        keep: float | str = "2/frame",
        *,
        dim: int = 384,
        text_dim: int | None = None,
        checkpoint: str | None = None,
    ) -> None:
        super().__init__()
        self.take_budget(keep, units=("per frame", "share"))
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
        x = features_of(tokens.require_full_grid(self.name), self.key.weight.dtype).reshape(B, T, H * W, -1)
        asked = self.query(text.to(x.dtype))[:, None]  # [B,1,L,C]
        # The mean over queries is linear, so it may come before the sum over patches.
        look = attention_weights(asked, self.key(x)).mean(2, keepdim=True)  # [B,T,1,H*W]
        side = self._side(tokens.grid)
        pools = separable(_windows(H, side, x), _windows(W, side, x)).expand(B, T, -1, -1)
        seen = self.context(look.to(x.dtype) @ x)
        features = torch.cat([seen, self.content(pools @ x)], 2)
        maps = torch.cat([look, pools.to(look.dtype)], 2)
        return resampled_frames(tokens, maps.flatten(0, 1), features.flatten(0, 1))

    def _side(self, grid: Grid) -> int:
        """Rows and columns of content tokens."""
        assert self.budget is not None
        return max(1, math.isqrt(tokens_per_frame(grid, self.budget) - 1))

    def planned_count(self, grid: Grid) -> int:
        return grid.T * (1 + self._side(grid) ** 2)


def _windows(places: int, parts: int, like: Tensor) -> Tensor:
    """The weights of adaptive average pooling of one axis, [parts,places]."""
    return F.adaptive_avg_pool1d(torch.eye(places, dtype=like.dtype, device=like.device), parts).T
