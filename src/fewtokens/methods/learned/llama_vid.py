"""LLaMA-VID: two tokens for each frame, one guided by the text, one of the content."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fewtokens.core.grid import Grid
from fewtokens.core.method import Method, load_weights
from fewtokens.core.tokens import Tokens
from fewtokens.methods.ops.per_frame import check_dim, plan_of, planned, separable
from fewtokens.methods.ops.resample import attention_weights, check_counts, check_text, features_of


class LlamaVid(Method):
    """Each frame becomes a context token, what the text looks at, and grid x grid content tokens, plain averages.

    LLaMA-VID (arXiv 2311.17043). Context: mean over the queries q of softmax(q (W_k X)^T / sqrt(C)) X,
    then W_v; content: adaptive average pooling of X to grid x grid, then a projector. It differs from the paper:
    there the queries come from a Q-Former over text and frame; here the embedded text itself is projected to queries,
    so that any text encoder will do; and where a side is no multiple of the grid, windows are those of adaptive pooling
    (there a fixed stride, rounded down). All L rows of the text count: take padding away before.

    Attribution: the attention, averaged over the queries, is the soft weights of the context token, the pooling those
    of the content tokens. Frame after frame: the context token, then the content tokens in raster order.

    Args:
        grid: rows and columns of content tokens; 1 gives two tokens for each frame.
        dim: channels of the features.
        text_dim: channels of the cue "text" [B,L,D]; None means `dim`.
        checkpoint: a safetensors file with trained parameters; None draws them.
    """

    needs = ("text",)
    trainable = True
    resamples = True
    dense = True
    paper = "LLaMA-VID, arXiv 2311.17043"
    license = "written from the paper; reference code Apache-2.0"
    cost = "a frame: H*W*C*C + 2*L*H*W*C + (1 + grid*grid)*C*C MACs"

    def __init__(
        self, grid: int = 1, *, dim: int = 384, text_dim: int | None = None, checkpoint: str | None = None
    ) -> None:
        super().__init__()
        check_counts(grid=grid)
        self.grid, self.dim, self.text_dim, self.checkpoint = grid, dim, text_dim, checkpoint
        self.query = nn.Linear(text_dim or dim, dim, bias=False)
        self.key = nn.Linear(dim, dim, bias=False)
        self.context, self.content = nn.Linear(dim, dim), nn.Linear(dim, dim)
        for layer in (self.query, self.key):
            nn.init.xavier_uniform_(layer.weight)
        load_weights(self, "llama_vid", checkpoint)

    def forward(self, tokens: Tokens, **cues: Any) -> Tokens:
        text = cues["text"]
        check_dim(self.name, tokens.C, self.dim)
        check_text(self.name, text, tokens, self.text_dim or self.dim)
        B, (T, H, W) = tokens.B, tokens.grid.shape
        x = features_of(tokens.require_full_grid(self.name), self.key.weight.dtype).reshape(B, T, H * W, -1)
        asked = self.query(text.to(x.dtype))[:, None]  # [B,1,L,C]
        # The mean over queries is linear, so it may come before the sum over patches.
        look = attention_weights(asked, self.key(x)).mean(2, keepdim=True)  # [B,T,1,H*W]
        pools = separable(_windows(H, self.grid, x), _windows(W, self.grid, x)).expand(B, T, -1, -1)
        seen = self.context(look.to(x.dtype) @ x)
        made = torch.cat([seen, self.content(pools @ x)], 2).flatten(1, 2)
        maps = torch.cat([look, pools.to(look.dtype)], 2)
        shown = tokens.apply(plan_of(tokens, maps.flatten(0, 1)))
        return shown.replace(features=made.to(tokens.features.dtype).masked_fill(~shown.mask[..., None], 0))

    def planned_count(self, grid: Grid) -> int:
        return planned(grid, 1 + self.grid**2)


def _windows(places: int, parts: int, like: Tensor) -> Tensor:
    """The weights of adaptive average pooling of one axis, [parts,places]."""
    return F.adaptive_avg_pool1d(torch.eye(places, dtype=like.dtype, device=like.device), parts).T
