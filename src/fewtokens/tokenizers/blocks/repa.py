"""Alignment of the features of a diffusion network with those of a frozen image encoder."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fewtokens.tokenizers.encoders.frozen import Frozen


class Repa(nn.Module):
    """The loss of REPA (arXiv 2410.06940): minus the cosine of projected features and those of a teacher.

    Args:
        dim: channels of the features.
        network: the teacher, see the encoder `frozen`; its last layer is read. It is not trained.
        hidden: hidden channels of the projection, an MLP of three layers.
        cell: pixels of a side of a patch of the teacher, to which frames are resized. Features are resized to its grid.
    """

    def __init__(self, dim: int, network: str, *, hidden: int = 2048, cell: int = 16) -> None:
        super().__init__()
        self.teacher = Frozen(network, stride=(1, cell, cell))
        self.project = nn.Sequential(
            nn.Linear(dim, hidden), nn.SiLU(), nn.Linear(hidden, hidden), nn.SiLU(), nn.Linear(hidden, self.teacher.dim)
        )

    def forward(self, features: Tensor, frames: Tensor) -> Tensor:
        """Compares features [B,T,H,W,C] with those of frames [B,T,3,height,width] in -1..1."""
        with torch.no_grad():
            target = self.teacher.latents(frames.transpose(1, 2)).transpose(1, 2).flatten(0, 1)
        projected = self.project(features).movedim(-1, 2).flatten(0, 1)
        if projected.shape[-2:] != target.shape[-2:]:
            projected = F.interpolate(projected, target.shape[-2:], mode="bicubic", align_corners=False)
        return -F.cosine_similarity(projected.float(), target.float(), dim=1).mean()
