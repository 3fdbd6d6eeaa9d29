"""Pixel patches as features: an encoder without weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from fewtokens.core import files
from fewtokens.core.encoder import Encoder
from fewtokens.core.grid import Grid
from fewtokens.core.method import Method
from fewtokens.core.tokens import Tokens
from fewtokens.encoders.devices import pick_device, pick_dtype
from fewtokens.encoders.frames import IMAGENET_MEAN, IMAGENET_STD, fit, make_grid, patchify, resize, to_unit, unpatchify

# Upper limit of patch and tubelet size: small frames are scaled up to one patch, short clips padded to one tubelet.
_MAX_SIZE = 1024


class Patches(Encoder):
    """Encodes each cell as its normalized pixels: no network, no weights, exactly invertible with `decode`.

    Args:
        patch_size: side of a patch in pixels.
        tubelet_size: frames per cell.
        device, dtype: device and dtype of the features.
    """

    id = "patches"
    kind = "patches"  # in a saved config.json
    cues = ("pixels",)
    skips_dropped_patches = True
    exposes_blocks = False

    def __init__(
        self,
        patch_size: int = 16,
        *,
        tubelet_size: int = 1,
        device: str | torch.device = "cpu",
        dtype: str | torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        if not (1 <= patch_size <= _MAX_SIZE and 1 <= tubelet_size <= _MAX_SIZE):
            raise ValueError(
                f"patch_size and tubelet_size must be 1 to {_MAX_SIZE}, got {patch_size} and {tubelet_size}"
            )
        self.patch_size, self.tubelet_size = patch_size, tubelet_size
        self.options = {"patch_size": patch_size, "tubelet_size": tubelet_size}
        # Empty buffer that records device and dtype, so that `to` works as for any network.
        self.register_buffer(
            "_place", torch.empty(0, device=pick_device(device), dtype=pick_dtype(dtype)), persistent=False
        )

    @property
    def dim(self) -> int:
        return 3 * self.tubelet_size * self.patch_size**2

    def grid(self, frames: int, height: int, width: int, times: Tensor | None = None) -> Grid:
        return make_grid(frames, height, width, self.tubelet_size, self.patch_size, times)

    def save_pretrained(self, folder: str | Path) -> Path:
        with files.atomic_folder(folder, last="config.json") as temporary:
            files.write_json(temporary / "config.json", {"fewtokens_model": self.kind, "config": self.options})
        return Path(folder)

    def forward(
        self,
        frames: Tensor,
        times: Tensor | None = None,
        *,
        needs: Sequence[str] = (),
        pixel_methods: Sequence[Callable[..., Tokens]] = (),
        block_methods: Sequence[Method] = (),
    ) -> tuple[Tokens, dict[str, Tensor]]:
        """Encodes frames [B,T,3,H,W] (uint8, or float in 0..1) to tokens [B,S,tubelet*patch*patch*3]."""
        if block_methods:
            raise ValueError(f"{block_methods[0].name} acts between encoder blocks; 'patches' has no blocks")
        grid = self.grid(frames.shape[1], frames.shape[3], frames.shape[4], times)
        fitted = fit(to_unit(frames.to(self.device)), grid, self.tubelet_size, self.patch_size)
        pixels = patchify(fitted, self.tubelet_size, self.patch_size)
        mean, std = (values.repeat(self.patch_size**2) for values in self._scale(pixels.device))
        used = pixel_methods or "pixels" in needs  # in addition to the features
        features = (pixels - mean if used else pixels.sub_(mean)).div_(std).flatten(2)
        tokens = Tokens.from_cells(features.to(self.dtype), grid)
        for method in pixel_methods:
            reduced = method(tokens, pixels=pixels)
            pixels = reduced.pool(pixels, tokens)
            tokens = reduced
        return tokens, {"pixels": pixels} if "pixels" in needs else {}

    def decode(self, features: Tensor | Tokens, size: tuple[int, int] | None = None) -> Tensor:
        """Inverts the encoding: features to frames in 0..1; exact, except for resizing.

        Args:
            features: features [B,T,H,W,C] of all cells, or `Tokens`, which are unmerged.
            size: height and width of the frames, such as `video.size`. Default: a multiple of the patch size, to which
                the encoder resizes frames of other sizes.

        Returns:
            Frames [B,T*tubelet,3,height,width].
        """
        if isinstance(features, Tokens):
            features = features.unmerge()
        grid = Grid(*features.shape[1:4])
        mean, std = self._scale(features.device)
        pixels = features.float().flatten(1, 3).unflatten(-1, (self.tubelet_size, -1, 3)) * std + mean
        frames = unpatchify(pixels.flatten(-2), grid, self.tubelet_size, self.patch_size)
        return frames if size is None else resize(frames, size)

    def _scale(self, device: torch.device) -> tuple[Tensor, Tensor]:
        return torch.tensor(IMAGENET_MEAN, device=device), torch.tensor(IMAGENET_STD, device=device)
