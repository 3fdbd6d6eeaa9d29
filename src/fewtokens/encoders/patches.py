"""Pixel patches as features: an encoder without weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from fewtokens.core.grid import Grid
from fewtokens.core.method import Method
from fewtokens.core.tokens import Tokens
from fewtokens.encoders.frames import IMAGENET_MEAN, IMAGENET_STD, cells_of, fit, patchify, to_unit, unpatchify

# A frame is scaled up to whole patches, a clip filled up to whole tubelets; past this nothing is a patch any more.
_MOST = 1024


class Patches:
    """Each cell's feature is its own pixels, normalised: no weights, no network, and a way back.

    Args:
        patch: side of a patch in pixels.
        tubelet: frames in a cell.
        device, dtype: of the features.
    """

    id = "patches"
    gives = ("pixels",)
    skips = True
    walks = False

    def __init__(
        self,
        patch: int = 16,
        *,
        tubelet: int = 1,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        if not (1 <= patch <= _MOST and 1 <= tubelet <= _MOST):
            raise ValueError(f"patch and tubelet must be 1 to {_MOST}, got {patch} and {tubelet}")
        self.patch, self.tubelet = patch, tubelet
        self.device, self.dtype = torch.device(device), dtype
        self.progress: Callable[[int, int], None] | None = None

    @property
    def width(self) -> int:
        """Channels of a feature."""
        return 3 * self.tubelet * self.patch**2

    def grid(self, frames: int, height: int, width: int, times: Tensor | None = None) -> Grid:
        return cells_of(frames, height, width, self.tubelet, self.patch, times)

    def describe(self) -> dict[str, Any]:
        return {"id": self.id, "options": {"patch": self.patch, "tubelet": self.tubelet}, "weights": None}

    def __call__(
        self,
        frames: Tensor,
        times: Tensor | None = None,
        *,
        needs: Sequence[str] = (),
        before: Sequence[Method] = (),
        inside: Sequence[Method] = (),
    ) -> tuple[Tokens, dict[str, Tensor]]:
        """Frames [B,T,3,H,W] (uint8, or float in 0..1) to tokens [B,S,tubelet*patch*patch*3]."""
        if inside:
            raise ValueError(f"{inside[0].name} acts between the blocks of an encoder; patches have none")
        grid = self.grid(frames.shape[1], frames.shape[3], frames.shape[4], times)
        fitted = fit(to_unit(frames.to(self.device)), grid, self.tubelet, self.patch)
        pixels = patchify(fitted, self.tubelet, self.patch)
        mean, std = self._scale(pixels.device)
        features = ((pixels.unflatten(-1, (-1, 3)) - mean) / std).flatten(2)
        tokens = Tokens.from_cells(features.to(self.dtype), grid)
        for method in before:
            reduced = method(tokens, pixels=pixels)
            pixels = pixels.gather(1, reduced.cell[..., None, None].expand(-1, -1, *pixels.shape[2:]))
            tokens = reduced
        return tokens, {"pixels": pixels} if "pixels" in needs else {}

    def decode(self, features: Tensor) -> Tensor:
        """Features [B,T,H,W,C] back to frames [B,T*tubelet,3,height,width] in 0..1, where they were; exact."""
        grid = Grid(*features.shape[1:4])
        mean, std = self._scale(features.device)
        pixels = features.float().flatten(1, 3).unflatten(-1, (self.tubelet, -1, 3)) * std + mean
        return unpatchify(pixels.flatten(-2), grid, self.tubelet, self.patch)

    def _scale(self, device: torch.device) -> tuple[Tensor, Tensor]:
        return torch.tensor(IMAGENET_MEAN, device=device), torch.tensor(IMAGENET_STD, device=device)
