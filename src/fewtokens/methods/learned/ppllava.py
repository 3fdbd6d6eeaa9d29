"""PPLLaVA: pooling in space-time windows, weighted by what the prompt asks for."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fewtokens.core.grid import Grid
from fewtokens.core.method import Resampled, Resampler, load_weights
from fewtokens.core.tokens import Tokens
from fewtokens.methods.ops.blocks import window_for, windows_of
from fewtokens.methods.ops.per_frame import check_dim
from fewtokens.methods.ops.resample import by_time, check_text, features_of, wide


class PpLlava(Resampler):
    """Each window of cells becomes its average, weighted by softmax(cos(text, f(x)) / tau).

    PPLLaVA (arXiv 2411.02327): prompt-guided pooling. The softmax over the whole video, made to sum to 1
    within each window, is a softmax within each window, and so it is computed. The released code gives the softmax over
    the video to a second one within each window, so that only a token with more than about `tau` of the whole video's
    weight stands out and the rest is a plain average: softmax="twice". Written from the formula: f is one
    linear layer into the space of the text, which begins as the identity where the widths are equal (features and
    text of one space, such as CLIP's); vectors have length 1, as in CLIP; the text is the mean of its L rows (take
    padding away before), the paper has CLIP's one vector. Windows that reach past an edge average what is there.

    Attribution is exact: the weights are those that made the features. The features are averaged as they are; a
    weight below 1e-9 counts as 1e-9. The tokens come in the order of their mean time.

    Args:
        kernel: frames, rows and columns of a window; (2, 3, 3) by default, which takes 32 frames of 24 x 24 to 1024
            tokens.
        keep: a budget instead: share of the cells (float) or count (int).
        tau: temperature, above 0.
        softmax: "window", the formula; or "twice", as released.
        dim: channels of the features.
        text_dim: channels of the cue "text" [B,L,D]; None means `dim`.
        checkpoint: a safetensors file with trained parameters; None draws them.
    """

    learned = True
    full_grid = True
    paper = "PPLLaVA, arXiv 2411.02327"
    license = "written from the paper"
    cost = "N*C*D + N*M*C MACs, D the channels of the text"

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
        self.take_budget(keep, kernel=kernel)
        kernel = (2, 3, 3) if kernel is None else kernel
        if len(kernel) != 3 or any(not isinstance(side, int) or side < 1 for side in kernel):
            raise ValueError(f"kernel must be three counts of at least 1 (frames, rows, columns), got {kernel!r}")
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
        tokens = tokens.require_full_grid(self.name)
        x = features_of(tokens, self.to_text.weight.dtype)
        asked = _directions(text.to(x.dtype).mean(1))
        logits = (_directions(self.to_text(x)) @ asked[..., None]).squeeze(2) / self.tau
        logits = logits.masked_fill(~tokens.mask, -torch.inf)
        if self.softmax == "twice":
            logits = (logits.softmax(1) / self.tau).masked_fill(~tokens.mask, -torch.inf)
        grids = tokens.grid.videos(tokens.B)
        windows = [self._window(grid) for grid in grids]
        counts = torch.tensor([windows_of(g.shape, w) for g, w in zip(grids, windows, strict=True)], device=x.device)
        M = int(counts.prod(1).max())
        cells = tokens.grid.positions(x.device).long() // torch.tensor(windows, device=x.device)[:, None]
        t, row, column = cells.unbind(2)  # [B,S]
        index = ((t * counts[:, None, 1] + row) * counts[:, None, 2] + column).masked_fill(~tokens.mask, 0)
        inside = F.one_hot(index, M).transpose(1, 2).bool()  # [B,M,S]
        # The largest of each window is taken off, so that a window far from the text does not vanish.
        most = torch.full_like(logits[:, :1], -torch.inf).repeat(1, M)
        most = most.scatter_reduce(1, index, logits.detach(), "amax").nan_to_num(neginf=0.0)
        parts = (logits - most.gather(1, index)).exp()
        total = torch.zeros_like(most).scatter_add(1, index, parts)
        share = (parts / total.clamp(min=1e-12).gather(1, index)).clamp(min=1e-9) * tokens.mask
        return by_time(tokens, Resampled(None, share[:, None] * inside, counts.prod(1)))

    def _window(self, grid: Grid) -> tuple[int, int, int]:
        if self.budget is not None:
            return window_for(grid.shape, self.budget.count(grid))
        assert self.kernel is not None
        return self.kernel

    def planned_count(self, grid: Grid) -> int:
        return math.prod(windows_of(grid.shape, self._window(grid)))


def _directions(x: Tensor) -> Tensor:
    """Vectors of length 1 along the last dimension, in float32; smooth at zero."""
    x = wide(x)
    return x * (x.square().sum(-1, keepdim=True) + 1e-6).rsqrt()
