"""STORM: a state-space mixer over the whole video, then averages over time and space."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from fewtokens.core.grid import Grid
from fewtokens.core.method import Method, load_weights
from fewtokens.core.plan import Plan
from fewtokens.core.tokens import Tokens
from fewtokens.methods.ops.blocks import window_for, windows_of
from fewtokens.methods.ops.per_frame import check_dim
from fewtokens.methods.ops.resample import check_counts, features_of
from fewtokens.methods.ops.scan import Mixer


class Storm(Method):
    """Selective scans over all tokens, forwards and backwards, spread the video over each; then plain averages.

    STORM (arXiv 2503.04130): mixers with a residual between encoder and language model, which let
    temporal average pooling lose less. The scan goes frame by frame, row by row, and back. Then the mean of `pool`
    frames at each place and of `spatial` x `spatial` places; windows that reach past the end average what is there.
    A variant: we know neither depth nor widths of the original (one mixer, inner width twice `dim`, the block of
    Vision Mamba, arXiv 2401.09417), and the scan is plain PyTorch (`scan.py`), slower than a fused kernel. Its
    sampling of tokens at test time is left to a method behind this one.

    The plan is hard: a token stands for the cells of its window, from which its features were averaged after mixing.

    Args:
        pool: frames that are averaged; 4 by default.
        spatial: rows and columns that are averaged; 1, for none, by default.
        keep: a budget instead of both: share of the cells (float) or count (int).
        dim: channels of the features.
        state: numbers that each inner channel remembers.
        num_layers: mixers.
        checkpoint: a safetensors file with trained parameters; None draws them.
    """

    learned = True
    full_grid = True
    paper = "STORM, arXiv 2503.04130"
    license = "written from the paper"
    cost = "a mixer: N*C*(6.5*C + 72*state) MACs, in memory B*64*2*C*state at a time; pooling N*C"

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
            self.take_budget(keep, spatial=spatial)
        else:
            self.take_budget(keep, pool=pool)
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
            return window_for(grid.shape, self.budget.count(grid))
        assert self.pool is not None and self.spatial is not None
        return self.pool, self.spatial, self.spatial

    def forward(self, tokens: Tokens, **cues: Any) -> Tokens:
        check_dim(self.name, tokens.C, self.dim)
        tokens = tokens.require_full_grid(self.name)
        x = features_of(tokens, next(self.parameters()).dtype)
        for layer in self.layers:
            x = layer(x, tokens.mask)
        pooled = tokens.replace(features=x).apply(self.decide(tokens))
        return pooled.replace(features=pooled.features.to(tokens.features.dtype))

    def decide(self, tokens: Tokens, **cues: Any) -> Plan:
        """Which window each cell is averaged in; the mixing moves nothing."""
        grids = tokens.grid.videos(tokens.B)
        windows = [self._window(grid) for grid in grids]
        counts = torch.tensor(
            [windows_of(g.shape, w) for g, w in zip(grids, windows, strict=True)], device=tokens.device
        )
        place = tokens.positions.round().long() // torch.tensor(windows, device=tokens.device)[:, None]
        t, y, x = place.unbind(2)
        label = (t * counts[:, None, 1] + y) * counts[:, None, 2] + x
        return Plan.group(label, tokens, int(counts.prod(1).max()))

    def planned_count(self, grid: Grid) -> int:
        return math.prod(windows_of(grid.shape, self._window(grid)))
