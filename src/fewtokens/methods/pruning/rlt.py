"""Run-Length Tokenization (RLT), arXiv 2411.05222."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fewtokens.core.method import load_weights
from fewtokens.core.tokens import Tokens
from fewtokens.methods.ops.runs import Runs

# The scale on which the paper states tau.
_IMAGENET_STD = (0.229, 0.224, 0.225)


class Rlt(Runs):
    """A patch that stays the same over time is one token, and its size says for how long.

    A patch starts a run where the mean absolute difference between its last sub-frame and the first
    sub-frame of the patch before exceeds tau; the first frame always does. With one frame to a patch that is
    the plain difference of frames. The token is the run's first patch, at its original position; sizes are
    the run lengths, which sum to T*H*W. Assumes a static camera; panning, noise and fades leave nothing to save.

    Args:
        tau: threshold on pixels divided by ImageNet's standard deviation (the paper's scale); None is 0.1, as there.
        keep: a budget instead: so many runs, begun where the change is largest; at least one frame.
        longest: above 0, a learned embedding of the run's length is added to each token, a table of so many lengths
            (longer runs take the last). It needs fine-tuning, so it is off by default, as in the paper's use
            without training.
        dim: channels of that table. checkpoint: a safetensors file with a trained one; None draws it.
    """

    paper = "Don't Look Twice: Faster Video Transformers with Run-Length Tokenization, arXiv 2411.05222"
    license = "written from the paper; reference code MIT"
    cost = "O(pixels); streaming state of one frame"

    def __init__(
        self,
        tau: float | None = None,
        *,
        keep: float | int | None = None,
        longest: int = 0,
        dim: int = 384,
        checkpoint: str | None = None,
    ) -> None:
        if tau is not None and keep is not None:
            raise ValueError("rlt takes tau= or keep=, not both")
        if tau is not None and tau < 0:
            raise ValueError(f"tau is a difference of pixels and cannot be negative, got {tau}")
        if longest < 0 or (checkpoint is not None and not longest):
            raise ValueError(
                f"longest counts the run lengths with an embedding, at least 1 with checkpoint=; got {longest}"
            )
        super().__init__(0.1 if tau is None else float(tau), keep)
        self.tau = self.threshold if keep is None else None
        self.longest, self.dim, self.checkpoint = longest, dim, checkpoint
        self.trainable = longest > 0
        # How long a run will be is not known chunk by chunk.
        self.causal = self.causal and not longest
        self.lengths = nn.Parameter(nn.init.trunc_normal_(torch.empty(longest, dim), std=0.02)) if longest else None
        load_weights(self, "rlt", checkpoint)

    def change(self, before: Tensor, now: Tensor) -> Tensor:
        std = torch.tensor(_IMAGENET_STD, device=now.device)
        return ((before - now).abs().unflatten(-1, (-1, 3)) / std).mean((-1, -2))

    def forward(self, tokens: Tokens, **cues: Any) -> Tokens:
        with torch.no_grad():
            plan = self.plan(tokens, **cues)
        out = tokens.apply(plan)
        if self.lengths is None:
            return out
        row = out.sizes.long().clamp(1, self.longest) - 1
        return out.replace(features=out.features + self.lengths.to(out.features.dtype)[row] * out.mask[..., None])
