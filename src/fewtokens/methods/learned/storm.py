"""STORM: a state-space mixer over all tokens of the video, then average pooling over time and space."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from fewtokens.core.grid import Grid
from fewtokens.core.method import Method, load_weights
from fewtokens.core.plan import Plan
from fewtokens.core.tokens import Tokens
from fewtokens.methods.ops.blocks import num_windows, window_shape
from fewtokens.methods.ops.per_frame import check_dim
from fewtokens.methods.ops.resample import check_counts, masked_features
from fewtokens.methods.ops.scan import Mixer


class Storm(Method):
    """Mixes all tokens with bidirectional selective scans, then averages over time and space.

    STORM (arXiv 2503.04130): Mamba mixers with a residual, between encoder and language model, so that temporal average
    pooling loses less. The scan runs through frames and rows in raster order, forward and backward. Then `pool` frames
    at each position and `spatial` x `spatial` cells are averaged; windows that extend past an edge average the cells
    inside. Differences from the paper: its depth and widths are not published (here one mixer with an inner width of
    twice `dim`, the block of Vision Mamba, arXiv 2401.09417), the scan is plain PyTorch and slower than a fused kernel,
    and token sampling at test time is left to a subsequent method.

    The plan is hard: a token stands for the cells of its window, whose features were averaged after mixing.

    Args:
        pool: number of frames to average. Default: 4.
        spatial: rows and columns to average. Default: 1 (no spatial pooling).
        keep: budget instead of both: fraction of the cells (float in (0, 1]) or number of tokens (int).
        dim: channels of the features.
        state: state size of each inner channel.
        num_layers: number of mixers.
        checkpoint: path of a safetensors file with trained parameters; None initializes them randomly.
    """

    learned = True
    full_grid = True
    paper = "STORM, arXiv 2503.04130"
    license = "written from the paper"
    cost = "per mixer: N*C*(6.5*C + 72*state) MACs, peak memory B*64*2*C*state values; pooling N*C"

    def __init__(
        self,
        pool: int | None = None,
        *,
        spatial: int | None = None,
        keep: float | int | str | None = None,
        dim: int = 384,
        state: int = 16,
        num_layers: int = 1,
        checkpoint: str | None = None,
    ) -> None:
        super().__init__()
        if pool is None:
            self.set_budget(keep, spatial=spatial)
        else:
            self.set_budget(keep, pool=pool)
        self.pool = None if self.budget else 4 if pool is None else pool
        self.spatial = None if self.budget else 1 if spatial is None else spatial
        windows = {} if self.budget else {"pool": self.pool, "spatial": self.spatial}
        check_counts(**windows, state=state, num_layers=num_layers)
        self.dim, self.state = dim, state
        self.num_layers, self.checkpoint = num_layers, checkpoint
        self.layers = nn.ModuleList(Mixer(dim, state) for _ in range(num_layers))
        load_weights(self, checkpoint)

    def _window(self, grid: Grid) -> tuple[int, int, int]:
        if self.budget is not None:
            return window_shape(grid.shape, self.budget.count(grid))
        assert self.pool is not None and self.spatial is not None
        return self.pool, self.spatial, self.spatial

    def forward(self, tokens: Tokens, **cues: Any) -> Tokens:
        check_dim(self.name, tokens.C, self.dim)
        x = masked_features(tokens, next(self.parameters()).dtype)
        for layer in self.layers:
            x = layer(x, tokens.mask)
        pooled = tokens.replace(features=x).apply(self.decide(tokens))
        return pooled.replace(features=pooled.features.to(tokens.features.dtype))

    def decide(self, tokens: Tokens, **cues: Any) -> Plan:
        """Assigns each cell to its pooling window; mixing does not change the assignment."""
        grids = tokens.grid.videos(tokens.B)
        windows = [self._window(grid) for grid in grids]
        counts = torch.tensor(
            [num_windows(g.shape, w) for g, w in zip(grids, windows, strict=True)], device=tokens.device
        )
        window = tokens.positions.round().long() // torch.tensor(windows, device=tokens.device)[:, None]
        t, y, x = window.unbind(2)
        label = (t * counts[:, None, 1] + y) * counts[:, None, 2] + x
        return Plan.group(label, tokens, int(counts.prod(1).max()))

    def planned_count(self, grid: Grid) -> int:
        return math.prod(num_windows(grid.shape, self._window(grid)))
