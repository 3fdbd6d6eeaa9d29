"""A trained ViT or ViViT as an encoder: its last tokens, with the maps of its learner as attribution."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from fewtokens import networks as models
from fewtokens.core.batch import collate
from fewtokens.core.encoder import Encoder
from fewtokens.core.grid import Grid
from fewtokens.core.method import Method
from fewtokens.core.tokens import Tokens
from fewtokens.encoders.frames import fit, make_grid, to_unit
from fewtokens.encoders.vit_encoder import VitEncoder
from fewtokens.encoders.weights import fingerprint
from fewtokens.networks.pretrained import is_pretrained, load_pretrained_vit
from fewtokens.networks.vit import VisionTransformer


class ModelEncoder(Encoder):
    """Runs a trained network on full videos.

    A network for images processes each frame separately. A network for clips processes the video as one clip, with
    positions resized to its length.

    Args:
        model: the network, on its device, in its dtype.
        name: id in saved files.
        batch: frames in one forward pass, for networks for images.
        fingerprint: SHA-256 of the weight files, or None.
    """

    cues = ()
    skips_dropped_patches = False
    exposes_blocks = False

    def __init__(
        self,
        model: VisionTransformer,
        *,
        name: str = "model (unnamed)",
        batch: int = 32,
        fingerprint: str | None = None,
    ) -> None:
        super().__init__()
        self.id, self.model, self.batch, self.fingerprint = name, model, batch, fingerprint
        self.train(model.training)

    def save_pretrained(self, folder: str | Path) -> Path:
        return self.model.save_pretrained(folder)

    @property
    def dim(self) -> int:
        return self.model.config.dim

    def grid(self, frames: int, height: int, width: int, times: Tensor | None = None) -> Grid:
        return make_grid(frames, height, width, self.model.config.tubelet_size, self.model.config.patch_size, times)

    def forward(
        self,
        frames: Tensor,
        times: Tensor | None = None,
        *,
        needs: Sequence[str] = (),
        pixel_methods: Sequence[Callable[..., Tokens]] = (),
        block_methods: Sequence[Method] = (),
    ) -> tuple[Tokens, dict[str, Tensor]]:
        """Encodes frames [B,T,3,H,W] (uint8, or float in 0..1); returns no cues."""
        if needs or pixel_methods or block_methods:
            raise ValueError(f"{self.id} is a complete network: methods can act only after it, and it provides no cues")
        B, T, _, height, width = frames.shape
        config = self.model.config
        grid = self.grid(T, height, width, times)
        videos = []
        for b, video in enumerate(frames):
            fitted = fit(to_unit(video[None].to(self.device)), grid, config.tubelet_size, config.patch_size)
            video_grid = grid if grid.times is None or grid.times.ndim == 1 else grid.select(torch.tensor([b]))
            if config.grid[0] == 1 and config.tubelet_size == 1:
                parts = [self.model.tokens(part) for part in fitted[0].split(self.batch)]
                videos.append(_join_frames(collate(parts), video_grid))
            else:
                tokens = self.model.tokens(fitted)
                videos.append(tokens.replace(grid=video_grid))
            if self.progress is not None:
                self.progress((b + 1) * T, B * T)
        return collate(videos).replace(grid=grid), {}


def _join_frames(frames: Tokens, grid: Grid) -> Tokens:
    """Joins single frames with equal token counts into one video, with their attribution."""
    T, M = frames.B, frames.N
    first = M * torch.arange(T, device=frames.device)[:, None]
    positions = frames.positions.clone()
    positions[..., 0] += torch.arange(T, device=frames.device)[:, None]
    return frames.replace(
        features=frames.features.reshape(1, T * M, -1),
        positions=positions.reshape(1, T * M, 3),
        sizes=frames.sizes.reshape(1, -1),
        mask=frames.mask.reshape(1, -1),
        assignment=torch.where(frames.assignment < 0, -1, frames.assignment + first).reshape(1, -1),
        grid=grid,
        prefix=None,
        attribution=None if frames.attribution is None else frames.attribution.reshape(1, T * M, -1),
    )


def load_model_encoder(
    folder: Path, *, name: str, batch: int, device: torch.device, dtype: torch.dtype
) -> ModelEncoder | VitEncoder:
    """Loads a saved network as an encoder; of a pre-training network only its ViT, with or without a saved decoder.

    Raises:
        ValueError: the output of the network is not a grid of tokens.
    """
    if is_pretrained(folder):
        vit = load_pretrained_vit(folder).to(device, dtype)
        return VitEncoder(vit, name=name, batch=batch, fingerprint=fingerprint(folder))
    model = models.load(folder)
    if not isinstance(model, VisionTransformer) or model.config.attention == "factorized_encoder":
        raise ValueError(
            f"{folder}: the last features of this {model.kind} are not a grid of tokens; use a ViT or ViViT"
        )
    return ModelEncoder(model.to(device, dtype), name=name, batch=batch, fingerprint=fingerprint(folder))
