"""IVA's temporal tokens: one per frame, which has seen the frames before it."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from fewtokens.core.grid import Grid
from fewtokens.core.method import Resampled, Resampler, load_weights
from fewtokens.core.tokens import Tokens
from fewtokens.methods.ops.per_frame import check_dim, resample_frames
from fewtokens.methods.ops.resample import IdentityLayer, TokenSummary, check_counts, masked_features

# Waves of the time embedding.
_WAVES = 16


class Iva(Resampler):
    """Pools each frame to one token with learned weights, and lets it attend to the tokens of earlier frames.

    Interactive Visual Adapter (arXiv 2402.13546), its temporal tokens: the cells of a frame are summed with a softmax
    of learned scores, and a causal transformer over time follows. The other part of the paper, in which blocks of the
    language model read the cells of the frames that fit the instruction, is `fewtokens train video-llm --streams iva`.
    The paper leaves the layers open: here they are pre-norm, the last layer of each branch starts at zero, so that
    without training the tokens are the weighted means, and the frame's number is added as sines and cosines through a
    learned layer that starts at zero too. There is no global vector in addition to the pooled one.

    Attribution: the softmax weights of the frame, though later tokens have seen it too.

    Args:
        num_layers: number of layers of the transformer. Default: 2.
        dim: channels of the features.
        hidden: channels of the hidden layer of the scores.
        checkpoint: path of a safetensors file with trained parameters; None initializes them randomly.
    """

    learned = True
    full_grid = True
    paper = "LLMs Meet Long Video: Advancing Long Video QA with an Interactive Visual Adapter in LLMs, arXiv 2402.13546"
    license = "written from the abstract; no code found"
    cost = "N*hidden*C + N*C MACs, then per layer 12*T*C*C + 2*T*T*C for T frames"

    def __init__(self, num_layers: int = 2, *, dim: int = 384, hidden: int = 64, checkpoint: str | None = None) -> None:
        super().__init__()
        check_counts(num_layers=num_layers, hidden=hidden)
        self.num_layers, self.dim, self.hidden, self.checkpoint = num_layers, dim, hidden, checkpoint
        self.summary = TokenSummary(dim, 1, hidden)
        self.time = nn.Linear(2 * _WAVES, dim, bias=False)
        nn.init.zeros_(self.time.weight)
        self.layers = nn.ModuleList(IdentityLayer(dim) for _ in range(num_layers))
        load_weights(self, checkpoint)

    def planned_count(self, grid: Grid) -> int:
        return grid.T

    def resample(self, tokens: Tokens, **cues: Any) -> Resampled:
        check_dim(self.name, tokens.C, self.dim)
        B, T = tokens.B, tokens.grid.T
        frames = masked_features(tokens, self.time.weight.dtype).reshape(B * T, -1, self.dim)
        maps = self.summary(frames)
        x = (maps.to(frames.dtype) @ frames).reshape(B, T, -1)
        t = torch.arange(T, device=x.device)
        angles = t[:, None] * 10_000.0 ** (-torch.arange(_WAVES, device=x.device) / _WAVES)
        x = x + self.time(torch.cat([angles.sin(), angles.cos()], 1).to(x.dtype))
        # A padded frame comes after all real ones, which do not see it.
        earlier = (t <= t[:, None]).expand(B, -1, -1)
        for layer in self.layers:
            x = layer(x, mask=earlier)
        return resample_frames(tokens, maps, x.reshape(B * T, 1, -1))
