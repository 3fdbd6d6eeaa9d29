"""PPLLaVA: space-time pooling weighted by similarity to the prompt."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from fewtokens.core.grid import Grid
from fewtokens.core.method import Resampled, Resampler, load_weights
from fewtokens.core.plan import split_blocks
from fewtokens.core.tokens import Tokens
from fewtokens.methods.ops.blocks import num_windows, window_shape
from fewtokens.methods.ops.per_frame import check_dim
from fewtokens.methods.ops.resample import check_text, masked_features, sort_by_time, to_float32


class PpLlava(Resampler):
    """Averages each space-time window, weighted by softmax(cos(text, f(x)) / tau).

    Prompt-guided pooling of PPLLaVA (arXiv 2411.02327). The paper's softmax over the full video, renormalized within
    each window, equals a softmax within each window and is computed as one. The released code instead applies a second
    softmax within each window to the weights of the first, so only a token with more than about `tau` of the video's
    total weight stands out and the rest is nearly an unweighted average; `softmax="twice"` does this. Differences from
    the paper: f is one linear layer into the text space, the identity at initialization if both dims are equal (for
    features and text in one space, such as CLIP's), and the text is the mean of its L rows instead of CLIP's one
    vector, so remove padding. Windows that extend past an edge average the cells inside.

    Attribution is exact: the soft weights are those of the average. Weights below 1e-9 are raised to 1e-9. Outputs are
    sorted by their mean time.

    Args:
        kernel: frames, rows and columns of a window. Default: (2, 3, 3), which maps 32 frames of 24 x 24 cells to 1024
            tokens.
        keep: budget instead of `kernel`: fraction of the cells (float in (0, 1]) or number of tokens (int).
        tau: temperature, above 0.
        softmax: "window" (the paper's formula) or "twice" (the released code).
        dim: channels of the features.
        text_dim: channels of the cue "text" [B,L,D]; None for `dim`.
        checkpoint: path of a safetensors file with trained parameters; None initializes them randomly.
    """

    learned = True
    full_grid = True
    paper = "PPLLaVA, arXiv 2411.02327"
    license = "written from the paper"
    cost = "N*C*D + N*m*C MACs for D channels of the text and m windows in the same frames"

    def __init__(
        self,
        kernel: tuple[int, int, int] | None = None,
        *,
        keep: float | int | str | None = None,
        tau: float = 0.01,
        softmax: str = "window",
        dim: int = 384,
        text_dim: int | None = None,
        checkpoint: str | None = None,
    ) -> None:
        super().__init__()
        self.set_budget(keep, kernel=kernel)
        kernel = (2, 3, 3) if kernel is None else kernel
        if len(kernel) != 3 or any(not isinstance(side, int) or side < 1 for side in kernel):
            raise ValueError(f"kernel must be three integers of at least 1 (frames, rows, columns), got {kernel!r}")
        if not tau > 0:
            raise ValueError(f"tau must be above 0, got {tau!r}")
        if softmax not in ("window", "twice"):
            raise ValueError(f"softmax must be 'window' or 'twice', got {softmax!r}")
        self.softmax = softmax
        self.kernel = None if self.budget else (kernel[0], kernel[1], kernel[2])
        self.tau, self.dim, self.text_dim, self.checkpoint = tau, dim, text_dim, checkpoint
        self.to_text = nn.Linear(dim, text_dim or dim, bias=False)
        if (text_dim or dim) == dim:
            nn.init.eye_(self.to_text.weight)
        load_weights(self, checkpoint)

    @property
    def needs(self) -> tuple[str, ...]:
        return ("text",)

    def resample(self, tokens: Tokens, **cues: Any) -> Resampled:
        check_dim(self.name, tokens.C, self.dim)
        text: Tensor = cues["text"]
        check_text(self.name, text, tokens, self.text_dim or self.dim)
        x = masked_features(tokens, self.to_text.weight.dtype)
        prompt = _unit(text.to(x.dtype).mean(1))
        logits = (_unit(self.to_text(x)) @ prompt[..., None]).squeeze(2) / self.tau
        logits = logits.masked_fill(~tokens.mask, -torch.inf)
        if self.softmax == "twice":
            logits = (logits.softmax(1) / self.tau).masked_fill(~tokens.mask, -torch.inf)
        grids = tokens.grid.videos(tokens.B)
        windows = [self._window(grid) for grid in grids]
        counts = [num_windows(grid.shape, window) for grid, window in zip(grids, windows, strict=True)]
        # The sums are computed in blocks of frames if all videos have the same windows, otherwise in one block.
        frames = min(windows[0][0], tokens.grid.T) if len(set(windows)) == 1 else tokens.grid.T
        n, G = frames * tokens.grid.cells_per_frame, -(-tokens.grid.T // frames)
        m = max(math.prod((t if G == 1 else 1, rows, columns)) for t, rows, columns in counts)
        # The window of each cell among the m of its block, [B,S].
        t, row, column = tokens.grid.positions(x.device).long().unbind(1)
        steps, (_, rows, columns) = (torch.tensor(v, device=x.device).T[..., None] for v in (windows, counts))
        window = ((t % frames // steps[0]) * rows + row // steps[1]) * columns + column // steps[2]
        window = window.masked_fill(~tokens.mask, 0)
        index = window + t // frames * m
        # Subtract the maximum of each window, so that windows far from the text do not underflow.
        peak = torch.full_like(logits[:, :1], -torch.inf).repeat(1, G * m)
        peak = peak.scatter_reduce(1, index, logits.detach(), "amax").nan_to_num(neginf=0.0)
        parts = (logits - peak.gather(1, index)).exp()
        total = torch.zeros_like(peak).scatter_add(1, index, parts)
        weights = (parts / total.clamp(min=1e-12).gather(1, index)).clamp(min=1e-9) * tokens.mask
        inside = split_blocks(window, n)[:, :, None] == torch.arange(m, device=x.device)[:, None]  # [B,G,m,n]
        count = torch.tensor([math.prod(c) for c in counts], device=x.device)
        return sort_by_time(tokens, Resampled(None, split_blocks(weights, n)[:, :, None] * inside, count))

    def _window(self, grid: Grid) -> tuple[int, int, int]:
        if self.budget is not None:
            return window_shape(grid.shape, self.budget.count(grid))
        assert self.kernel is not None
        return self.kernel

    def planned_count(self, grid: Grid) -> int:
        return math.prod(num_windows(grid.shape, self._window(grid)))


def _unit(x: Tensor) -> Tensor:
    """Normalizes to length 1 along the last dimension, in float32; smooth at zero."""
    x = to_float32(x)
    return x * (x.square().sum(-1, keepdim=True) + 1e-6).rsqrt()
